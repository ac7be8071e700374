"""`rlhf schema`: the JSON Schema of each job's config, for editors."""

import json
from pathlib import Path

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.config.jobs.tools import SchemaConfig
from rlhf_ray.config.reading.json_schema import json_schema
from rlhf_ray.config.reading.verbs import SCHEMAS


def run(config: SchemaConfig) -> None:
    """Write `VERB.json` for each job.

    Raises:
        RlhfError: the folder cannot be written.
    """
    folder = Path(config.folder).expanduser()
    try:
        write_schemas(folder)
    except OSError as error:
        raise RlhfError(f"folder: cannot write to {folder}: {error.strerror or error}") from error
    print(f"{folder}: {', '.join(f'{verb}.json' for verb in SCHEMAS)}")


def write_schemas(folder: Path) -> None:
    """Write all of them into a folder, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for verb in SCHEMAS:
        text = json.dumps(json_schema(verb), indent=1, ensure_ascii=False) + "\n"
        (folder / f"{verb}.json").write_text(text, encoding="utf-8")
