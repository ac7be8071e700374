"""The JSON schemas for editors: they are current, take every config that is shipped, and find mistakes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from rlhf_ray.config.reading.documents import read_document
from rlhf_ray.config.reading.schema import describe
from rlhf_ray.config.reading.verbs import SCHEMAS, import_schema, load_job
from rlhf_ray.jobs.tools.schema import json_schema

ROOT = Path(__file__).parents[3]
INCOMPLETE = {"examples/iterate/evaluate.yaml", "examples/iterate/ppo.yaml"}
"""Configs of stages, which `rlhf iterate` completes."""
CONFIGS = [
    path
    for folder in ("configs", "examples", "launch", "rlhf_ray/jobs/tools/templates")
    for path in sorted((ROOT / folder).rglob("*.yaml"))
    if path.name != "kuberay.yaml" and str(path.relative_to(ROOT)) not in INCOMPLETE
]
MODELINE = re.compile(r"# yaml-language-server: \$schema=(\S+)\n")


@pytest.mark.parametrize("verb", SCHEMAS)
def test_the_file_is_current(verb: str) -> None:
    written = json.loads((ROOT / "schemas" / f"{verb}.json").read_text(encoding="utf-8"))
    assert written == json_schema(verb), "run `rlhf schema schemas`"


@pytest.mark.parametrize("verb", SCHEMAS)
def test_it_is_a_schema_and_documents_every_field(verb: str) -> None:
    schema = json_schema(verb)
    Draft202012Validator.check_schema(schema)
    top = [field for field in describe(import_schema(SCHEMAS[verb])) if "." not in field.path]
    for field in top:
        part = schema["properties"][field.path]
        # Where a field is explained in the very words of its section, the section's own are shown.
        part = part if "description" in part else schema["$defs"][part["$ref"].rpartition("/")[2]]
        assert part["description"] == field.doc


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_config_names_its_schema_and_fits_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = MODELINE.match(text)
    assert found, "its first line names no schema"
    if not path.is_relative_to(ROOT / "rlhf_ray"):
        assert (path.parent / found[1]).resolve().parent == ROOT / "schemas"
    verb = Path(found[1]).stem
    load_job(verb, [str(path)], check_files=False)
    assert _mistakes(verb, read_document(path).data) == []


@pytest.mark.parametrize(
    "change",
    [
        {"policy": {"learning_rat": 1e-6}},
        {"steps": 0},
        {"rewards": [{"path": "some/model"}]},
        {"rewards": [{"kind": "modl", "path": "some/model"}]},
        {"algorithm": {"advantages": "grop"}},
    ],
)
def test_mistakes_are_found(change: dict[str, Any]) -> None:
    good = {"output": "o", "model": {"path": "m"}, "data": {"path": "d"}, "rewards": [{"kind": "model", "path": "r"}]}
    assert _mistakes("ppo", good) == []
    assert _mistakes("ppo", good | change) != []


def _mistakes(verb: str, settings: dict[str, Any]) -> list[str]:
    return [error.message for error in Draft202012Validator(json_schema(verb)).iter_errors(settings)]
