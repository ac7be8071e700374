"""The names of DeepSpeed's settings, against the installed DeepSpeed."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.config.checks.deepspeed import CLASSES, KNOWN, OTHERS, TABLES, deepspeed_problems
from rlhf_ray.config.passthrough import OWNED_DEEPSPEED_SETTINGS, UNSUPPORTED_DEEPSPEED_SETTINGS

SOURCES = ("runtime", "comm", "monitor", "profiling", "compile", "autotuning", "datastates", "elasticity", "utils")


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    """DeepSpeed's modules of settings and constants, parsed."""
    package = importlib.util.find_spec("deepspeed")
    assert package is not None
    assert package.origin is not None
    root = Path(package.origin).parent
    files = [root / "constants.py", root / "compression" / "constants.py"]
    files += [file for folder in SOURCES for file in (root / folder).rglob("*.py") if "con" in file.stem]
    return {str(file.relative_to(root)): ast.parse(file.read_text()) for file in files if file.is_file()}


def strings(tree: ast.AST) -> Iterator[str]:
    yield from (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def read_at_the_top(trees: dict[str, ast.Module]) -> Iterator[str]:
    """Keys that the main class of settings takes out of what it is given."""
    values = {
        node.targets[0].id: node.value.value
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        and "\n" not in node.value.value
    }
    for node in ast.walk(trees["runtime/config.py"]):
        if isinstance(node, ast.Call) and len(node.args) > 1 and ast.unparse(node.args[0]) == "param_dict":
            name = node.args[1]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "param_dict":
            name = node.slice
        else:
            continue
        if isinstance(name, ast.Constant):
            yield str(name.value)
        elif isinstance(name, ast.Name) and name.id in values:
            yield values[name.id]


def test_all_that_deepspeed_reads_is_known(trees: dict[str, ast.Module]) -> None:
    found = set(read_at_the_top(trees))
    assert {"zero_allow_untested_optimizer", "gradient_clipping", "weight_quantization"} <= found
    assert found <= KNOWN | OWNED_DEEPSPEED_SETTINGS.keys()


def test_all_that_is_known_is_deepspeeds(trees: dict[str, ast.Module]) -> None:
    known = {*KNOWN, *(name for names in TABLES.values() for name in names)}
    assert not known - {text for tree in trees.values() for text in strings(tree)}
    assert len(KNOWN) == len(CLASSES) + len(TABLES) + len(OTHERS) + len(UNSUPPORTED_DEEPSPEED_SETTINGS)


def test_settings_of_its_documentation_pass() -> None:
    given = {
        "zero_optimization": {
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
            "offload_param": {"device": "nvme", "nvme_path": "/local"},
            "stage3_max_live_parameters": 1_000_000,
            "max_live_parameters": 1_000_000,
            "zero_hpz_partition_size": 8,
        },
        "communication_data_type": "fp32",
        "aio": {"block_size": 1},
        "comms_logger": {"enabled": True},
        "wall_clock_breakdown": True,
        "flops_profiler": {"enabled": True},
        "zero_force_ds_cpu_optimizer": False,
    }
    assert not list(deepspeed_problems(given))


@pytest.mark.parametrize("section", CLASSES)
def test_every_class_is_found_where_it_is_looked_for(section: str) -> None:
    assert [problem.key for problem in deepspeed_problems({section: {"no_such_setting": 1}})] == [
        (section, "no_such_setting")
    ]


@pytest.mark.parametrize(
    "name", ["tensor_parallel", "sequence_parallel_size", "expert_parallel", "compile", "pipeline"]
)
def test_what_batches_and_checkpoints_do_not_follow_is_refused(name: str) -> None:
    [problem] = deepspeed_problems({name: {"enabled": True}})
    assert problem.key == (name,)
    assert "is not supported: " in problem.message
