"""Links and files that the README and the docs name exist; examples and make say what they are asked."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.docs.pages import anchor_of

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launch/README.md")),
    *sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*/README.md")]),
]
LINK = re.compile(r"\]\(([^)#:]*)(#[^)]*)?\)")


def anchors(page: Path) -> set[str]:
    """Return the places within a page that a link can lead to."""
    return {anchor_of(heading) for heading in re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)}


def _modules_with_a_command() -> list[str]:
    """Of the examples, as `python -m` names them."""
    found = []
    for path in (ROOT / "examples").rglob("*.py"):
        if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8"):
            found.append(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"))
    return found


@pytest.mark.parametrize("module", sorted(_modules_with_a_command()))
def test_every_example_says_what_it_is_asked(
    module: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """`--help` of each module of the examples that has a command of its own, which does nothing else then."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("sys.argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    code = None
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as left:
        code = left.code
    assert not code
    said = capfd.readouterr().out
    assert any(word in said for word in ("usage: ", "python -m examples.", "rlhf ppo CONFIG", "rlhf reward CONFIG"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor.removeprefix("#") in anchors(file), f"{page.name} links to {target}{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_exist(page: Path) -> None:
    named = re.findall(
        r"(?<![\w/])((?:configs|requirements|launch|docs)/[\w./-]+\.\w+)", page.read_text(encoding="utf-8")
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_make_help_lists_every_target(monkeypatch: pytest.MonkeyPatch) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split()
    documented = re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)
    assert set(targets) == set(documented)


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_pins_are_exact_and_name_no_host(path: Path) -> None:
    for line in path.read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._]+", line), line


def test_pins_of_all_machine_kinds_agree() -> None:
    pages = [(ROOT / "requirements" / f"{kind}.txt").read_text().splitlines() for kind in ("cpu", "gpu")]
    kinds = [dict(line.split("==") for line in page if "==" in line) for page in pages]
    differing = {name for name in kinds[0].keys() & kinds[1].keys() if kinds[0][name] != kinds[1][name]}
    # vLLM's CUDA build pins another tvm-ffi than the CPU build does.
    assert differing == {"apache-tvm-ffi"}
