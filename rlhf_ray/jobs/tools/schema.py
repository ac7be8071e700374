"""`rlhf schema`: the JSON Schema of each job's config, by which an editor completes, explains and checks it."""

import json
from pathlib import Path
from typing import Any

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.config.jobs.tools import SchemaConfig
from rlhf_ray.config.reading.schema import without_breaks
from rlhf_ray.config.reading.verbs import SCHEMAS, import_schema


def json_schema(verb: str) -> dict[str, Any]:
    """Return the schema of a job's config file, as JSON holds it."""
    section = import_schema(SCHEMAS[verb])
    generated = _without_titles(section.model_json_schema())
    for part in generated["$defs"].values():
        # A section of several kinds must say which one it is, though each kind knows its own name.
        if "const" in part["properties"].get("kind", {}):
            part["required"] = ["kind", *(name for name in part.get("required", []) if name != "kind")]
    return {"title": f"rlhf {verb}", **generated}


def _without_titles(node: Any, names: bool = False) -> Any:
    """Leave out pydantic's titles, which repeat the keys' names, and put each documentation on one line.

    Args:
        node: a part of the schema.
        names: whether its keys are names of fields, of which one may be `title`.
    """
    if isinstance(node, list):
        return [_without_titles(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: without_breaks(value)
        if key == "description" and isinstance(value, str)
        else _without_titles(value, names=not names and key in {"properties", "$defs"})
        for key, value in node.items()
        if names or key != "title"
    }


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
