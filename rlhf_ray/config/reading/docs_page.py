"""docs/configuration.md, written from the schema: `make docs`."""

import re
from collections import Counter
from collections.abc import Mapping

from rlhf_ray.config.base import Section
from rlhf_ray.config.reading.schema import FieldDoc, describe, sections_of
from rlhf_ray.config.reading.verbs import SCHEMAS, import_schema

INTRODUCTION = """# Configuration

Written from the schema by `make docs`; do not edit.

A job is told by a YAML file, `rlhf VERB CONFIG.yaml`. Every key is also an option of the command line, and options win:
`--policy.learning_rate 1e-6`, `--rewards.0.weight 2`, `--critics.value.learning_rate 1e-5`. Values are read as YAML
reads them. `rollout.engine` and `policy.deepspeed` hand any key of vLLM's `AsyncEngineArgs` and of DeepSpeed's
configuration through: `--rollout.engine.max_num_seqs 64`. Relative paths start at the current directory.

`N` is a position in a list, `NAME` a name of yours. Keys without a default that are marked *required* must be given.
A value is of its key's own type: `true` is no number, `2.0` and `"2"` are no integers. Numbers are finite, at most 1e12
and, where they are above 0, at least 1e-12; integers are at most 2,147,483,647, and where the table has narrower ends,
those hold. A text is not empty.

Placement (`on`, `workers`, `gpus_per_worker`, `cpus_per_worker`, `threads`) means the same for each role. A type such
as [Model](#model) is a section that stands at several places; its keys are told once, under
[shared sections](#shared-sections). `rlhf VERB --help` prints all keys of a verb with their whole paths.
"""


SHARED_FIELDS = 2
"""A section of fewer fields is told wherever it stands."""


def configuration_page() -> str:
    """Return the whole page as Markdown: a table for each verb, then one for each section that several of them have."""
    schemas = {verb: import_schema(reference) for verb, reference in SCHEMAS.items()}
    shared = _shared_sections(schemas)
    links = {section: f"[{title}](#{title.lower().replace(' ', '-')})" for section, title in shared.items()}
    parts = [INTRODUCTION]
    for verb, schema in schemas.items():
        parts.append(f"## rlhf {verb}\n\n{_text(schema)}\n\n{_table(schema, links)}")
    parts.append("## Shared sections\n\nEach stands under the keys whose type names it.\n")
    for section, title in sorted(shared.items(), key=lambda one: one[1]):
        parts.append(f"### {title}\n\n{_text(section)}\n\n{_table(section, links)}")
    return "\n".join(parts)


def _shared_sections(schemas: Mapping[str, type[Section]]) -> dict[type[Section], str]:
    """Find the sections that stand at more than one place; return their titles."""
    places: Counter[type[Section]] = Counter()
    seen: set[type[Section]] = set()

    def visit(section: type[Section]) -> None:
        for info in section.model_fields.values():
            for child in set(sections_of(info.annotation)):
                places[child] += 1
                if child not in seen:
                    seen.add(child)
                    visit(child)

    for schema in schemas.values():
        visit(schema)
    shared = [child for child, count in places.items() if count > 1 and len(child.model_fields) >= SHARED_FIELDS]
    return {child: _title(child) for child in shared}


def _title(section: type[Section]) -> str:
    """Return the name of a class in words: `ModelReward` is "Model reward"."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]*", section.__name__.removesuffix("Config"))
    text = " ".join(word if word.isupper() else word.lower() for word in words)
    return text[0].upper() + text[1:]


def _text(section: type[Section]) -> str:
    return " ".join((section.__doc__ or "").split())


def _table(schema: type[Section], links: Mapping[type[Section], str]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join(lines + [_row(field) for field in describe(schema, elsewhere=links)]) + "\n"


def _row(field: FieldDoc) -> str:
    default = f"*{field.default}*" if field.default == "required" else f"`{field.default}`" if field.default else ""
    cells = (f"`{field.path}`", field.type, default, field.doc)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(configuration_page(), end="")
