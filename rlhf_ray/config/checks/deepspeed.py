"""Names of DeepSpeed's settings: those of its classes, read from the installed source without importing it, and others.

An unknown name is ignored by DeepSpeed at the top level and in tables, and refused in classes only when it starts.
"""

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from rlhf_ray.config.errors import perhaps
from rlhf_ray.config.passthrough import OWNED_DEEPSPEED_SETTINGS, UNSUPPORTED_DEEPSPEED_SETTINGS
from rlhf_ray.config.reading.documents import KeyPath, Problem

CLASSES = {
    "zero_optimization": ("runtime/zero/config.py", "DeepSpeedZeroConfig"),
    "comms_logger": ("comm/config.py", "CommsLoggerConfig"),
    "tensorboard": ("monitor/config.py", "TensorBoardConfig"),
    "wandb": ("monitor/config.py", "WandbConfig"),
    "csv_monitor": ("monitor/config.py", "CSVConfig"),
    "comet": ("monitor/config.py", "CometConfig"),
}
"""Sections that DeepSpeed reads into a class: its file and name."""

TABLES: Mapping[str, tuple[str, ...]] = {
    "data_types": ("grad_accum_dtype", "param_dtype", "buffer_dtype", "keep_in_fp32_modules"),
    "torch_autocast": ("enabled", "dtype", "lower_precision_safe_modules"),
    "activation_checkpointing": (
        "partition_activations",
        "number_checkpoints",
        "contiguous_memory_optimization",
        "synchronize_checkpoint_boundary",
        "profile",
        "cpu_checkpointing",
    ),
    "aio": ("block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events", "use_gds"),
    "flops_profiler": (
        "enabled",
        "recompute_fwd_factor",
        "profile_step",
        "module_depth",
        "top_modules",
        "detailed",
        "output_file",
    ),
}
"""Sections that DeepSpeed reads key by key."""

OTHERS = (
    "autotuning",
    "checkpoint",
    "communication_data_type",
    "compression_training",
    "data_efficiency",
    "dataloader_drop_last",
    "datastates_ckpt",
    "disable_allgather",
    "disable_python_gc",
    "dump_state",
    "elasticity",
    "gradient_allreduce_op",
    "gradient_predivide_factor",
    "log_level",
    "managed_gradient_accumulation",
    "memory_breakdown",
    "prescale_gradients",
    "steps_per_print",
    "timers",
    "vocabulary_size",
    "wall_clock_breakdown",
    "weight_quantization",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
)
"""Further names at the top level, whose values are not looked into."""

Fields: TypeAlias = dict[str, "Fields | None"]
"""Names of a section; those that are sections themselves with theirs."""

KNOWN = frozenset((*CLASSES, *TABLES, *OTHERS, *UNSUPPORTED_DEEPSPEED_SETTINGS))


def deepspeed_problems(settings: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what DeepSpeed would ignore or refuse, by the key within its settings."""
    for name, value in settings.items():
        if name in OWNED_DEEPSPEED_SETTINGS:
            yield Problem((name,), f"is set by {OWNED_DEEPSPEED_SETTINGS[name]}")
        elif name in UNSUPPORTED_DEEPSPEED_SETTINGS:
            yield Problem((name,), UNSUPPORTED_DEEPSPEED_SETTINGS[name])
        elif name not in KNOWN:
            yield Problem((name,), f"not a setting of DeepSpeed{_instead(name)}")
        elif name not in OTHERS and not isinstance(value, dict):
            yield Problem((name,), f"is a section of settings, not {value!r}")
        elif name == "zero_optimization" and "stage" in value:
            yield Problem((name, "stage"), "is set by zero_stage")
        elif name not in OTHERS:
            known = _installed(*CLASSES[name]) if name in CLASSES else dict.fromkeys(TABLES[name])
            yield from _unknown((name,), value, known or dict.fromkeys(value))


def _instead(name: str) -> str:
    """Say where a name belongs, or what it may have been meant for."""
    if name in (_installed(*CLASSES["zero_optimization"]) or ()):
        return "'s top level; it belongs under zero_optimization"
    return perhaps(name, [*KNOWN, *OWNED_DEEPSPEED_SETTINGS])


def _unknown(key: KeyPath, given: Mapping[str, Any], fields: Fields) -> Iterator[Problem]:
    for name, value in given.items():
        section = fields.get(name)
        if name not in fields:
            shown = str(name)  # in YAML it may be a number
            yield Problem((*key, shown), f"not a setting of DeepSpeed's {key[-1]}{perhaps(shown, fields)}")
        elif section is not None and isinstance(value, dict):
            yield from _unknown((*key, name), value, section)


@cache
def _installed(file: str, name: str) -> Fields | None:
    """Find a class of the installed DeepSpeed; None where there is no such."""
    package = importlib.util.find_spec("deepspeed")
    if package is None or package.origin is None:
        return None
    root = Path(package.origin).parent
    return _read(root, root / file, name)


def _read(root: Path, file: Path, name: str) -> Fields | None:
    if not file.is_file():
        return None
    module = ast.parse(file.read_text(encoding="utf-8"))
    found = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name == name]
    if not found:
        return None
    files = dict(_classes(root, file, module))
    fields: Fields = {}
    for statement in found[0].body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            types = [node.id for node in ast.walk(statement.annotation) if isinstance(node, ast.Name)]
            inner = next((_read(root, files[one], one) for one in types if one in files), None)
            for alias in (statement.target.id, *_aliases(statement)):
                fields[alias] = inner
    return fields


def _classes(root: Path, file: Path, module: ast.Module) -> Iterator[tuple[str, Path]]:
    """Find the classes of settings that a module knows, by their own naming, and the files that hold them."""
    for node in module.body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            yield node.name, file
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".")
            above = file.parents[node.level - 1] if node.level else root.parent
            source = above.joinpath(*parts).with_suffix(".py")
            yield from ((one.name, source) for one in node.names if one.name.endswith("Config"))


def _aliases(statement: ast.AnnAssign) -> Iterator[str]:
    """List other names of a field."""
    if isinstance(statement.value, ast.Call):
        for keyword in statement.value.keywords:
            if keyword.arg == "alias" and isinstance(keyword.value, ast.Constant):
                yield str(keyword.value.value)
