"""What stands on a page: blocks of commands and of Python, each with what the text before it says is needed first.

Four wordings say so, and the tests understand them:

- "After [set-up](running.md#set-up)": the blocks of that section come first, of this page or another;
- "After `make demo`": that command comes first;
- "`rows.jsonl` has rows with `prompt` and `answer`": a file that the reader brings;
- "`models/reward` is a reward model" (a model, an adapter): a directory that the reader brings.
"""

import re
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHELL, PYTHON = ("bash", "sh", "console"), "python"
PROJECT = Path("rlhf_ray/jobs/tools/templates/project/README.md")
"""The page of the folder that `rlhf init` writes."""

FENCE = re.compile(r"^```(\w*)\s*$")
HEADING = re.compile(r"^#+ (.*)$")
AFTER_SECTION = re.compile(r"[Aa]fter (?:the )?\[[^\]]*\]\(([^)#\s]*)(?:#([\w-]+))\)")
AFTER_COMMAND = re.compile(r"[Aa]fter `((?:make|rlhf|python) [^`]+)`")
ROWS = re.compile(r"((?:`[\w./-]+\.[\w.]+`(?:, | and )?)+) (?:has|have) rows with (`\w+`(?:(?:, | and |, and )`\w+`)*)")
MODEL = re.compile(r"`([\w./-]+/[\w./-]+)` is an? (reward model|model|adapter)\b")
MENTION = re.compile(r"`((?:rlhf|make|python -m)\s[^`]+)`")
QUOTED = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Section:
    """A section of a page whose blocks come first."""

    page: Path
    anchor: str


@dataclass(frozen=True)
class Brought:
    """A file of rows, or the directory of a model, that the reader has."""

    path: str
    columns: tuple[str, ...] = ()
    kind: str = "rows"


@dataclass(frozen=True)
class Block:
    """A block of a page, and what is needed before it: sections, commands, and files that the reader brings."""

    page: Path
    line: int
    language: str
    text: str
    anchor: str
    needs: tuple[Section | Brought | str, ...]

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass
class _Reading:
    """Where a reading of a page is."""

    page: Path
    anchor: str = ""
    prose: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    def block(self, language: str, line: int, text: str) -> None:
        if language in SHELL or language == PYTHON:
            needs = needs_of(" ".join(self.prose), self.page)
            self.blocks.append(Block(self.page, line, language, text, self.anchor, needs))
            self.prose.clear()


def tracked_files() -> list[str]:
    """Return the files that a clone has, as they are now: those that git knows and new ones that it does not ignore."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [name for name in names if name and (ROOT / name).is_file()]


@cache
def pages() -> list[Path]:
    """Return the pages that have blocks, in the order of their names."""
    written = ("README.md", "CONTRIBUTING.md", "docs/", "launch/", "examples/", "benchmarks/", str(PROJECT))
    found = [Path(name) for name in tracked_files() if name.endswith(".md") and name.startswith(written)]
    return [page for page in sorted(found) if blocks_of(page)]


@cache
def blocks_of(page: Path) -> tuple[Block, ...]:
    """Return the blocks of a page of the repository in their order."""
    reading = _Reading(page)
    fence: tuple[str, int] | None = None
    inside: list[str] = []
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        opened = FENCE.match(line)
        if fence is not None and line.startswith("```"):
            reading.block(*fence, "\n".join(inside) + "\n")
            fence, inside = None, []
        elif fence is not None:
            inside.append(line)
        elif opened:
            fence = (opened[1], number)
        elif heading := HEADING.match(line):
            reading.anchor = anchor_of(heading[1])
        else:
            reading.prose.append(line)
    return tuple(reading.blocks)


@cache
def mentions() -> list[tuple[Path, str]]:
    """Return the commands that stand within the text of a page, each once, with their pages."""
    found: dict[tuple[Path, str], None] = {}
    for name in tracked_files():
        if name.endswith(".md") and not name.startswith(("CHANGELOG", "docs/configuration")):
            text = re.sub(r"^```.*?^```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
            found |= {(Path(name), " ".join(said.split())): None for said in MENTION.findall(text)}
    return list(found)


def anchor_of(heading: str) -> str:
    """Return the anchor that a heading has on a page as it is shown."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def needs_of(prose: str, page: Path) -> tuple[Section | Brought | str, ...]:
    """Return what some text says is needed before what follows it."""
    needs: list[Section | Brought | str] = []
    for target, anchor in AFTER_SECTION.findall(prose):
        where = page if not target else Path((ROOT / page.parent / target).resolve().relative_to(ROOT))
        needs.append(Section(where, anchor))
    needs += AFTER_COMMAND.findall(prose)
    for files, columns in ROWS.findall(prose):
        needs += [Brought(file, tuple(QUOTED.findall(columns))) for file in QUOTED.findall(files)]
    needs += [Brought(path, (), kind) for path, kind in MODEL.findall(prose)]
    return tuple(needs)


def section(need: Section) -> list[Block]:
    """Return the blocks of a section."""
    found = [block for block in blocks_of(need.page) if block.anchor == need.anchor]
    assert found, f"{need.page} has no section #{need.anchor} with a block"
    return found
