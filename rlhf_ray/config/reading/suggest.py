"""Which key was meant by one that is not in the schema."""

from typing import Any

from rlhf_ray.config.base import Section
from rlhf_ray.config.errors import nearest
from rlhf_ray.config.passthrough import REFUSED_SAMPLING
from rlhf_ray.config.reading.documents import KeyPath
from rlhf_ray.config.reading.schema import child_names, child_types, describe

OTHER_NAMES = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "n": "samples_per_prompt",
    "num_generations": "samples_per_prompt",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "max_steps": "steps",
    "warmup": "warmup_steps",
    "grad_clip": "max_grad_norm",
    "max_completion_length": "max_new_tokens",
    "output_dir": "output",
    "adam_epsilon": "epsilon",
    "eps": "epsilon",
    "lora_r": "r",
    "world_size": "workers",
}
"""What other systems call our keys, where the two words are not alike."""


def types_at(key: KeyPath, section: type[Section]) -> list[Any]:
    """List the types that the schema has at a key; empty where anything may stand."""
    expected: list[Any] = [section]
    for step in key:
        expected = [one for found in (child_types(one, step) for one in expected) for one in found or []]
    return expected


def suggest(key: KeyPath, section: type[Section], option: str = "") -> tuple[str, str]:
    """Suggest, in words, the valid key nearest to an unknown one; return that key too, empty where there is none.

    The same name in another section is meant rather than a similar one beside it. `option` stands before keys that are
    told: `--` on the command line.
    """
    given = str(key[-1]).replace("-", "_")
    name = OTHER_NAMES.get(given.lower(), given)
    paths = [field.path for field in describe(section)]
    same = [path for path in paths if path.rsplit(".", 1)[-1] == name]
    if name in REFUSED_SAMPLING and str(key[0]) == "rollout" and not same:
        return f": {REFUSED_SAMPLING[name]}", ""
    prefix = "".join(f"{step}." for step in key[:-1])
    siblings = child_names(types_at(key[:-1], section))
    if name in siblings:
        return f". Perhaps you meant {option}{prefix}{name}?", f"{prefix}{name}"
    if same:
        return f" here. Perhaps you meant {option}{same[0]}?", same[0]
    close = nearest(name, siblings) or nearest(name.lower(), siblings)
    if close:
        return f". Perhaps you meant {option}{prefix}{close}?", f"{prefix}{close}"
    return f". Keys here: {', '.join(siblings)}" if siblings else "", ""
