"""docs/configuration.md, written from the schema: `make docs`."""

from rlhf_ray.config.base import Section
from rlhf_ray.config.reading.schema import FieldDoc, describe
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

Placement (`on`, `workers`, `gpus_per_worker`, `cpus_per_worker`, `threads`) means the same for each role.
"""


def configuration_page() -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION]
    for verb, reference in SCHEMAS.items():
        schema = import_schema(reference)
        parts.append(f"## rlhf {verb}\n\n{' '.join((schema.__doc__ or '').split())}\n\n{_table(schema)}")
    return "\n".join(parts)


def _table(schema: type[Section]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join(lines + [_row(field) for field in describe(schema)]) + "\n"


def _row(field: FieldDoc) -> str:
    default = f"*{field.default}*" if field.default == "required" else f"`{field.default}`" if field.default else ""
    cells = (f"`{field.path}`", field.type, default, field.doc)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(configuration_page(), end="")
