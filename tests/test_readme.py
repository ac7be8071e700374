"""Every command in the README and the docs parses; targets and files that they name exist."""

import importlib.util
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from rlhf_ray import cli
from rlhf_ray.config.reading.loading import load_arguments
from rlhf_ray.config.reading.verbs import SCHEMAS, deduce_verb, import_schema, load_job

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")
# Commands of other programs that the docs show; what they do is not ours to check.
OTHERS = {"source", "ray", "kubectl", "sbatch", "docker", "pip", "wandb", "python"}


def _commands() -> list[tuple[str, list[str]]]:
    found = []
    for page in PAGES:
        for block in BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in block.strip().splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    found.append((page.name, words[: words.index(">")] if ">" in words else words))
    return found


COMMANDS = _commands()


def _modules_with_a_command() -> list[str]:
    """Of the examples, as `python -m` names them."""
    found = []
    for path in (ROOT / "examples").rglob("*.py"):
        if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8"):
            found.append(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"))
    return found


def _check_rlhf(words: list[str]) -> None:
    verb, *arguments = words
    assert verb in (*cli.JOBS, *cli.TOOLS)
    if "--help" in arguments:
        return
    if verb in cli.JOBS:
        load_job(verb, arguments, check_files=False)
        return
    tool = cli.TOOLS[verb]
    config = load_arguments(import_schema(tool.schema), arguments, positional=tool.positional, rest=tool.rest)
    if tool.rest:
        job = list(config.model_dump()["job"])
        verb, job = (job[0], job[1:]) if job[0] in SCHEMAS else (deduce_verb(job[0]), job)
        load_job(verb, job, check_files=False)


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[" ".join(words) for _, words in COMMANDS])
def test_command(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program, *rest = words
    if program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in rest if "=" not in word} <= targets
    elif program == "rlhf":
        _check_rlhf(rest)
    else:
        assert program in OTHERS
        if program == "python":
            assert rest[0] == "-m"
            assert importlib.util.find_spec(rest[1]), f"{rest[1]} does not exist"
        if "rlhf" in rest:
            _check_rlhf(rest[rest.index("rlhf") + 1 :])


MADE_BY = {"make demo": "outputs/demo/"}
"""What commands leave that a config of the repository reads."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_the_first_block_reads_is_made_in_it(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newcomer pastes it into a fresh clone."""
    monkeypatch.chdir(ROOT)
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    made: list[str] = []
    for line in blocks[0].strip().splitlines() if blocks else []:
        words = shlex.split(line, comments=True)
        made += [folder for command, folder in MADE_BY.items() if " ".join(words) == command]
        if words[:1] == ["rlhf"] and words[1] in cli.JOBS and "--help" not in words:
            settings = load_job(words[1], words[2:], check_files=False).model_dump(mode="json")
            read = [path for key, path in _paths(settings) if key != "output" and path.startswith("outputs/demo/")]
            assert not [path for path in read if not path.startswith(tuple(made))], line


def _paths(value: object, key: str = "") -> list[tuple[str, str]]:
    """Every text of some settings with its key."""
    if isinstance(value, dict):
        return [found for name, item in value.items() for found in _paths(item, name)]
    if isinstance(value, list):
        return [found for item in value for found in _paths(item, key)]
    return [(key, value)] if isinstance(value, str) else []


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


def test_there_are_commands_of_each_kind() -> None:
    programs = {words[0] for page, words in COMMANDS if page == "README.md"}
    assert {"make", "rlhf"} <= programs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_pages_name_exist(page: Path) -> None:
    named = re.findall(r"\b((?:configs|requirements|launch|docs)/[\w./-]+\.\w+)", page.read_text(encoding="utf-8"))
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
