"""What pip installs: metadata as a package index shows it, and everything that works outside the repository."""

import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import rlhf_ray

ROOT = Path(__file__).parents[1]
TEMPLATE = "rlhf_ray/jobs/tools/templates/project"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of this checkout, built from a copy, so that no build folder of an earlier one takes part."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    names = ("rlhf_ray", "examples", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")
    subprocess.run(["cp", "-r", *names, str(source)], cwd=ROOT, check=True)
    build = "from setuptools import build_meta; build_meta.build_wheel(__import__('sys').argv[1])"
    subprocess.run([sys.executable, "-c", build, str(target)], cwd=source, check=True, capture_output=True)
    [file] = target.glob("*.whl")
    return zipfile.ZipFile(file)


def _shipped(folder: str) -> set[str]:
    files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(ROOT)) for path in files}


def test_the_wheel_brings_all_that_works_outside_the_repository(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert _shipped(TEMPLATE) <= names
    assert {f"rlhf_ray/shipped/{name}" for name in _shipped("examples") | _shipped("configs")} <= names
    assert "rlhf_ray/py.typed" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests/", "examples/"))]


def test_the_metadata_is_what_an_index_needs(wheel: zipfile.ZipFile) -> None:
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = Parser().parsestr(wheel.read(name).decode())
    urls = dict(entry.split(", ") for entry in metadata.get_all("Project-URL"))
    assert set(urls) == {"Repository", "Documentation", "Changelog", "Issues"}
    assert all(url.startswith(urls["Repository"]) for url in urls.values())
    assert metadata["Author"] == "The rlhf_ray authors"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    page = metadata.get_payload()
    targets = re.findall(r"\]\(([^)\s]+)\)", page)
    assert len(targets) > 10
    for target in targets:
        # An index renders the page far from the files that it names.
        assert target.startswith((f"{urls['Repository']}/blob/main/", f"{urls['Repository']}/raw/main/")), target
        assert (ROOT / target.split("/main/")[1].split("#")[0]).exists()
    assert re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page) == [target for target in targets if "/raw/main/" in target]


def test_without_vllm_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes with an extra, as its builds for CPU and GPU differ."""
    from rlhf_ray.config.model import ModelConfig
    from rlhf_ray.config.rollout import RolloutConfig
    from rlhf_ray.runs.model_checks import check_engine

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(rlhf_ray.BadInput, match=r"vLLM is not installed.*pip install 'rlhf_ray\[cpu\]'"):
        check_engine(ModelConfig(path="some/model"), RolloutConfig(), 64)
