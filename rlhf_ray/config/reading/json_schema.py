"""The configs of the jobs as JSON Schema, by which an editor completes, explains and checks them."""

from typing import Any

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
        key: " ".join(value.split())
        if key == "description" and isinstance(value, str)
        else _without_titles(value, names=not names and key in {"properties", "$defs"})
        for key, value in node.items()
        if names or key != "title"
    }
