"""Imports go down only; `config` and `cli` import nothing heavy. import-linter holds the first, this file the rest."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rlhf_ray"
HEAVY = {"torch", "vllm", "ray", "deepspeed", "transformers", "datasets", "wandb", "matplotlib", "peft", "accelerate"}
GUESTS_OF_CONFIG = {"pydantic", "annotated_types", "yaml"}
LIMIT_LINES = 400
VAGUE_NAMES = {"utils", "helpers", "common", "manager", "misc", "util", "helper"}


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def _imported_at_import_time(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_layers() -> None:
    done = subprocess.run(
        [str(Path(sys.prefix) / "bin" / "lint-imports"), "--no-cache"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", _files(PACKAGE / "config"), ids=lambda path: path.name)
def test_config_imports_nothing_heavy_and_nothing_of_ours(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    own = ("rlhf_ray.config", "rlhf_ray.redaction")
    ours = {module for module in modules if module.startswith("rlhf_ray.") and not module.startswith(own)}
    assert ours == set()
    outside = {module.split(".")[0] for module in modules} - {"rlhf_ray"} - set(sys.stdlib_module_names)
    assert outside <= GUESTS_OF_CONFIG


def test_the_command_imports_nothing_heavy() -> None:
    assert not _imported_at_import_time(PACKAGE / "cli.py") & HEAVY


def test_algorithms_are_pure() -> None:
    for path in _files(PACKAGE / "algorithms"):
        assert not _imported_at_import_time(path) & (HEAVY - {"torch"}), path


@pytest.mark.parametrize("path", _files(PACKAGE), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short_and_named_for_what_they_hold(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LIMIT_LINES
    assert not VAGUE_NAMES & set(path.stem.split("_"))


def test_weight_transfer_names_of_vllm_stay_in_one_file() -> None:
    users = [
        path.relative_to(PACKAGE)
        for path in _files(PACKAGE)
        if any(
            isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vllm.distributed.weight_transfer")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    ]
    assert [str(path) for path in users] in ([], ["transfer/vllm_adapter.py"])


@pytest.mark.parametrize("page", ["docs/architecture.md", "rlhf_ray/jobs/ppo/step.py"])
def test_maps_name_files_that_exist(page: str) -> None:
    text = (PACKAGE.parent / page).read_text(encoding="utf-8")
    text = text if page.endswith(".md") else text.split('"""')[1]
    named = re.findall(r"(?<![\w/.(])((?:\w+/)+\w+\.py)", text)
    assert len(named) > 10
    assert [name for name in named if not (PACKAGE / name).is_file()] == []
