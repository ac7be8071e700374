"""Jobs of `rlhf data` on rows of a test, and rows of preferences."""

import json
import sys
from pathlib import Path

from rlhf_ray.config.jobs.cleaning import DataJobConfig
from rlhf_ray.jobs.data.run import run

sys.path.append(str(Path(__file__).parents[2] / "data"))
from planted_rows import clean_text


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def job(folder, sources, **settings):
    """Run a job and return its folder."""
    sources = [source if isinstance(source, dict) else {"kind": "files", "path": source} for source in sources]
    run(DataJobConfig.model_validate({"output": str(folder), "sources": sources} | settings))
    return folder


def preferences(count, seed):
    import random

    source = random.Random(seed)
    prompts = [clean_text(source) for _ in range(count // 3)]
    return [
        {"prompt": source.choice(prompts), "chosen": clean_text(source), "rejected": clean_text(source)}
        for _ in range(count)
    ]
