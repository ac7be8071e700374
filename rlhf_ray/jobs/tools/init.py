"""`rlhf init`: a project to begin with, anywhere; or the examples and presets, which travel in the package."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.config.jobs.tools import InitConfig
from rlhf_ray.jobs.tools.schema import write_schemas

PACKAGE = Path(__file__).parents[2]
PROJECT = Path(__file__).parent / "templates" / "project"
SHIPPED = "shipped"
"""Folder of the package to which a wheel brings examples and presets; a checkout has them beside the package."""
EXAMPLES = ("examples", "configs")
VOCABULARY = 400
"""Tokens of the project's model; bytes are 256 of them."""


def run(config: InitConfig) -> None:
    """Write a folder; it appears when everything in it is complete.

    Raises:
        BadInput: the folder is there already and holds something.
        RlhfError: it cannot be written.
    """
    folder = Path(config.folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"folder: {config.folder} exists already; name a new one")
    unfinished = folder.with_name(f".{folder.resolve().name}.partial")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write_schemas(unfinished / "schemas")
        begin = list(_write_examples(unfinished) if config.examples else _write_project(unfinished, folder))
        unfinished.replace(folder)
    except OSError as error:
        raise RlhfError(f"folder: cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{folder} is ready; begin with:", f"  cd {folder}", *(f"  {line}" for line in begin), sep="\n")


def _write_project(unfinished: Path, folder: Path) -> Iterator[str]:
    """Write the project; yield what to do first."""
    # DeepSpeed looks for GPUs as it is imported with Transformers, and says so; nothing is computed here.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from transformers.utils.logging import disable_progress_bar

    from rlhf_ray.models.tiny import build_tiny

    disable_progress_bar()

    shutil.copytree(PROJECT, unfinished, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    readme = unfinished / "README.md"
    text = readme.read_text(encoding="utf-8")
    readme.write_text(text.format(name=folder.resolve().name), encoding="utf-8")
    with (unfinished / "data" / "demonstrations.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [row["prompt"] + row["completion"] for row in rows]
    # vLLM's attention on CPU takes heads of 32 and more.
    build_tiny(unfinished / "base", texts, hidden=64, heads=2, vocab_size=VOCABULARY)
    yield from ("rlhf sft sft.yaml", "rlhf ppo ppo.yaml", "(README.md says more)")


def _write_examples(unfinished: Path) -> Iterator[str]:
    """Write the examples; yield what to do first."""
    shipped = PACKAGE / SHIPPED
    root = shipped if shipped.is_dir() else PACKAGE.parent
    for name in EXAMPLES:
        shutil.copytree(root / name, unfinished / name, ignore=shutil.ignore_patterns("__pycache__"))
    yield from ("python -m examples.reviews.demo --output outputs/demo", "rlhf plan configs/ppo_cpu_tiny.yaml")
