"""Every command of the pages can be typed, in their order, in a clone that has only what the pages say."""

import re
import shlex
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import pytest

from rlhf_ray import cli
from rlhf_ray.config.reading.schema import describe
from rlhf_ray.config.reading.verbs import import_schema, load_job
from tests.docs.clone import PLACEHOLDER, commands_of, target_of
from tests.docs.pages import PYTHON, ROOT, Brought, Section, blocks_of, mentions, needs_of, pages
from tests.docs.reading import Reader


@pytest.mark.parametrize("page", pages(), ids=str)
def test_read_in_order(
    page: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    subtests: pytest.Subtests,
) -> None:
    """What cannot be done here is left out for a reason that follows from the command, and is shown with -rs."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Reader(tmp_path, model, monkeypatch).follow(page, subtests, "in part read only")


@pytest.mark.parametrize("place", mentions(), ids=lambda mention: f"{mention[0]}: {mention[1]}")
def test_commands_within_a_text(place: tuple[Path, str]) -> None:
    """Their verbs, targets, modules, options and configs exist; words in capitals stand for something."""
    program, *words = shlex.split(place[1])
    if program == "make":
        assert not [word for word in words if "=" not in word and not target_of(word)]
    elif program == "python":
        name = words[words.index("-m") + 1]
        assert PLACEHOLDER.search(name) or find_spec(name), f"no module {name}"
    else:
        verb, *arguments = words
        if PLACEHOLDER.fullmatch(verb):
            return
        schema = import_schema(cli.JOBS[verb].schema if verb in cli.JOBS else cli.TOOLS[verb].schema)
        known = {field.path for field in describe(schema)} | {"help"}
        options = [word.removeprefix("--").split("=")[0] for word in arguments if word.startswith("--")]
        assert not [option for option in options if not any(fnmatch(option, as_pattern(path)) for path in known)]
        if verb in cli.JOBS and [word for word in arguments[:1] if (ROOT / word).is_file()]:
            load_job(verb, [str(ROOT / arguments[0])], check_files=False)


def as_pattern(path: str) -> str:
    """The pattern of all options that a path of the settings stands for: N is a number, NAME a name of the user's."""
    return re.sub(r"\b(N|NAME)\b", "*", path)


def test_a_text_says_what_comes_first() -> None:
    page = Path("docs/data.md")
    said = (
        "After [set-up](running.md#set-up), after `make demo`; `a.jsonl` and `b/c.tsv` have rows with `x`, `y` and `z`."
    )
    assert needs_of(said, page) == (
        Section(Path("docs/running.md"), "set-up"),
        "make demo",
        Brought("a.jsonl", ("x", "y", "z")),
        Brought("b/c.tsv", ("x", "y", "z")),
    )
    assert needs_of("Where `m/r` is a reward model, and after [it](#its-place)", page) == (
        Section(page, "its-place"),
        Brought("m/r", (), "reward model"),
    )
    assert needs_of("After that, [set-up](running.md#set-up) has `rows`.", page) == ()


def test_lines_become_commands() -> None:
    lines = ("A=1 rlhf x --y [0] > out.yaml && sbatch out.yaml  # said", "rlhf z \\", "  | kubectl apply -f -")
    text = "\n".join((*lines, 'pip install "a[b]"'))
    assert [(stated.words, stated.file) for stated in commands_of(text)] == [
        (["A=1", "rlhf", "x", "--y", "[0]"], "out.yaml"),
        (["sbatch", "out.yaml"], None),
        (["rlhf", "z"], None),
        (["kubectl", "apply", "-f", "-"], None),
        (["pip", "install", "a[b]"], None),
    ]


def test_every_block_is_of_a_kind_that_is_read() -> None:
    """A command in a block without a language would be read by nobody."""
    for page in pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        unread = re.findall(r"^```(?:shell|text|)\n(?:(?:rlhf|make|python|ray) [^\n:]*)$", text, re.MULTILINE)
        assert not unread, f"{page}: {unread}"
    languages = {block.language for page in pages() for block in blocks_of(page)}
    assert languages == {"bash", PYTHON}
    assert {block.page.parts[0] for page in pages() for block in blocks_of(page)} >= {"README.md", "docs", "launch"}
