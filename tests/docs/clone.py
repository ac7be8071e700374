"""A fresh clone in which the commands of a page are done, one after the other, by whoever subclasses this."""

import ast
import itertools
import json
import re
import shlex
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray import cli
from rlhf_ray.config.base import Section as Config
from rlhf_ray.config.checks.files import is_adapter, names_local_path
from rlhf_ray.config.reading.loading import load_arguments
from rlhf_ray.config.reading.verbs import import_schema, load_job
from tests.docs.pages import PROJECT, PYTHON, ROOT, Block, Brought, Section, blocks_of, section, tracked_files

PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b")
ENVIRONMENT = re.compile(r"[A-Za-z_]+=.*")
OF_A_CLUSTER = {"kubectl": "Kubernetes", "sbatch": "Slurm", "docker": "Docker", "ray": "a Ray cluster"}
CI = (ROOT / ".ci/run").read_text(encoding="utf-8")
JOINTS = {"&&", "|", ">"}
ROWS_OF_A_FILE = 40
WORDS = (
    "The tea was warm and good.",
    "The room was cold, and nobody came.",
    "这部电影很好看。",
    "A long walk by the sea.",
)


class NotHere(Exception):
    """What a command needs and this machine lacks; the reason is for who reads the report."""


@dataclass(frozen=True)
class Stated:
    """A command as it stands: its words, and the file that takes what it prints."""

    words: list[str]
    file: str | None


class Clone(ABC):
    """The files that git knows, and what commands have made beside them."""

    def __init__(self, folder: Path, model: Path) -> None:
        """Copy the files of the repository; `model` stands for models that the reader brings."""
        self.root = self.cwd = folder
        self.model = model
        self.is_active = False
        self.done: set[object] = set()
        self.left_out: list[tuple[Block, str]] = []
        for name in tracked_files():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)

    def follow(self, page: Path, subtests: pytest.Subtests, skipped: str) -> None:
        """Do all blocks of a page in their order; what is left out of one shows as a skip, with the reason."""
        self.begin(page)
        for block in blocks_of(page):
            try:
                self.do(block)
            except Exception as error:
                raise AssertionError(f"{block.place}: {error}") from error
        for block, reason in self.left_out:
            if block.page == page:
                with subtests.test(block.place):
                    pytest.skip(f"{block.place}: {skipped}: {reason}")

    def begin(self, page: Path) -> None:
        """Go where the commands of a page are typed."""
        if page == PROJECT:
            self.is_active = True
            self.command(["rlhf", "init", "project"])
            self.command(["cd", "project"])

    def do(self, block: Block) -> None:
        """Do what a block needs, then the block, and keep the reasons for which something of it was left out."""
        for need in block.needs:
            self.prepare(need)
        self.done.add(block.place)
        if block.language == PYTHON:
            self._attempt(block, lambda: self.python(block.text))
            return
        for stated in commands_of(block.text):
            self._attempt(block, lambda stated=stated: self.command(stated.words, stated.file))

    def prepare(self, need: Section | Brought | str) -> None:
        """Make what the text says is needed first, once."""
        if need in self.done:
            return
        self.done.add(need)
        if isinstance(need, Brought):
            self.bring(need)
        elif isinstance(need, str):
            self.command(shlex.split(need))
        else:
            for block in section(need):
                if block.place not in self.done:
                    self.do(block)

    def bring(self, brought: Brought) -> None:
        """Put a file, or a model, of the reader's own where the text says that it is."""
        path = self.cwd / brought.path
        if brought.kind == "rows":
            write_rows(path, brought.columns)
        else:
            self.write_model(path, brought.kind)

    def write_model(self, path: Path, kind: str = "model") -> None:
        """Put a small model where none is yet: a language model, a "reward model" or an "adapter"."""
        if path.exists():
            return
        if kind == "adapter":
            write_adapter(path, self.model)
            return
        shutil.copytree(self.model, path)
        if kind == "reward model":
            file = path / "config.json"
            kind_of_network = {"architectures": ["Qwen2ForSequenceClassification"], "id2label": {"0": "reward"}}
            file.write_text(json.dumps(json.loads(file.read_text()) | kind_of_network))

    def command(self, words: Sequence[str], file: str | None = None) -> None:
        """Do one command.

        Raises:
            AssertionError: it cannot be done with what is there.
            NotHere: it cannot be done on this machine, whatever is there.
        """
        program, *rest = itertools.dropwhile(ENVIRONMENT.fullmatch, words)
        if program in {"make", "cd", "source", "pip"}:
            getattr(self, f"_{program}")(rest)
            return
        assert self.is_active, f"{program} is no command before .venv is activated, which nothing here said"
        if program == "rlhf":
            self.rlhf(rest, file)
        elif program == "python":
            assert rest[0] == "-m", f"{rest}: files of Python are not run on these pages"
            assert self._has_module(rest[1]), f"{rest[1]} is no module here"
            self.module(rest[1], rest[2:])
        else:
            assert program in OF_A_CLUSTER, f"{program}: not known to these tests"
            named = [word for word in rest if word.endswith((".yaml", ".sh"))]
            assert not [name for name in named if not (self.cwd / name).is_file()]
            raise NotHere(OF_A_CLUSTER[program])

    def rlhf(self, words: list[str], file: str | None) -> None:
        """Do a verb of ours."""
        verb, *arguments = words
        if verb in cli.JOBS and "--help" not in arguments:
            self.job(verb, arguments)
            return
        assert verb in (*cli.JOBS, *cli.TOOLS), f"no verb {verb}"
        if "--help" in arguments or verb not in {"submit", "doctor", "merge"}:
            self.tool(words, file)
            return
        tool = cli.TOOLS[verb]
        settings = load_arguments(import_schema(tool.schema), arguments, positional=tool.positional, rest=tool.rest)
        said = settings.model_dump()
        if verb == "submit":
            load_job(said["job"][0], said["job"][1:], check_files=False)
            if not said["render"]:
                raise NotHere("a Ray cluster")
        if verb == "merge":
            assert is_adapter(self.cwd / said["adapter"]), f"{said['adapter']} is no adapter"
        self.tool(words, file)

    @abstractmethod
    def tool(self, words: list[str], file: str | None) -> None:
        """Run a verb that is no job, and write what it prints to a file, where one is named."""

    @abstractmethod
    def job(self, verb: str, arguments: list[str]) -> None:
        """Do a job of `rlhf`."""

    @abstractmethod
    def module(self, name: str, arguments: list[str]) -> None:
        """Run a module of the repository."""

    @abstractmethod
    def python(self, text: str) -> None:
        """Run a block of Python; those of a page follow one another."""

    def _attempt(self, block: Block, act: Any) -> None:
        try:
            act()
        except NotHere as reason:
            self.left_out.append((block, str(reason)))

    def _make(self, words: list[str]) -> None:
        reasons = []
        for target in (word for word in words if "=" not in word):
            needs, recipe = target_of(target)
            assert f"bounded make {target}\n" in CI or f"bounded make {target} " in CI, f".ci/run has no make {target}"
            if "setup" in (target, *needs):
                self._set_up()
            modules = [line.split()[2:] for line in recipe if line.startswith("$(BIN)/python -m examples.")]
            for name, *arguments in modules:
                self.module(name, arguments)
            if not modules:
                reasons.append("the CUDA builds" if "KIND=gpu" in words else "CI runs it as it is")
        if reasons:
            raise NotHere(reasons[0])

    def _set_up(self) -> None:
        environment = self.cwd / ".venv" / "bin"
        environment.mkdir(parents=True, exist_ok=True)
        (environment / "activate").touch()

    def _cd(self, words: list[str]) -> None:
        assert (self.cwd / words[0]).is_dir(), f"no folder {words[0]}"
        self.cwd = self.cwd / words[0]

    def _source(self, words: list[str]) -> None:
        assert (self.cwd / words[0]).is_file(), f"{words[0]} is not made before"
        self.is_active = True

    def _pip(self, words: list[str]) -> None:
        extras = re.findall(r"rlhf_ray\[(\w+)\]", " ".join(words))
        declared = (ROOT / "pyproject.toml").read_text()
        assert all(re.search(rf"^{extra} = \[", declared, re.MULTILINE) for extra in extras)
        self.is_active = True
        raise NotHere("a package index")

    def _has_module(self, name: str) -> bool:
        path = self.cwd / Path(*name.split("."))
        return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def not_here(config: Config) -> str | None:
    """Return what this machine lacks for a job, none where nothing is lacking."""
    groups = config.node_groups().values()
    if any(group.nodes > 1 for group in groups):
        return "several machines"
    if any(group.gpus_per_node for group in groups):
        return "GPUs"
    return "a model of the hub" if of_the_hub(config) else None


def of_the_hub(config: Config) -> list[str]:
    """Return the models that only the hub has."""
    return [name for name in config.model_paths().values() if not Path(name).exists() and not names_local_path(name)]


def commands_of(text: str) -> Iterator[Stated]:
    """Yield the commands of a block; of a pipe, and of commands after one another in a line, each by itself."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|>")
        lexer.whitespace_split = True
        words: list[str] = []
        file = None
        for word in [*lexer, "&&"]:
            if word not in JOINTS and words[-1:] != [">"]:
                words.append(word)
            elif words[-1:] == [">"]:
                file = word
                words.pop()
            elif word == ">":
                words.append(word)
            elif words:
                yield Stated(words, file)
                words, file = [], None


def target_of(name: str) -> tuple[list[str], list[str]]:
    """Return what a target of the Makefile needs, of targets, and the lines of its recipe."""
    makefile = (ROOT / "Makefile").read_text()
    found = re.search(rf"^{name}:([^#\n]*)(?:##[^\n]*)?\n((?:\t[^\n]*\n)*)", makefile, re.MULTILINE)
    assert found, f"make has no target {name}"
    return [word for word in found[1].split() if word == "setup"], [line.strip() for line in found[2].splitlines()]


def write_rows(path: Path, columns: Sequence[str]) -> None:
    """Write rows of the columns that a page names, compressed where the file's name says so."""
    import bz2
    import gzip
    import lzma

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row_of(columns, number), ensure_ascii=False) + "\n" for number in range(ROWS_OF_A_FILE))
    opening = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(path.suffix, open)
    with opening(path, "wt", encoding="utf-8") as file:
        file.write(text)


def row_of(columns: Sequence[str], number: int) -> dict[str, Any]:
    """Return a row; answers without a prompt beside them are conversations."""

    def text(shift: int) -> str:
        return f"{WORDS[(number + shift) % len(WORDS)]} {WORDS[(number // 4 + shift) % len(WORDS)]} {number + shift}"

    asked = "" if "prompt" in columns else f"\n\nHuman: What happened on day {number}?\n\nAssistant: "
    values = {
        "prompt": f"Tell me of day {number}.",
        "chosen": asked + text(0),
        "rejected": asked + text(1),
        "responses": [text(shift) for shift in range(4)],
        "completion": text(0),
        "answer": str(number),
    }
    return {column: values[column] for column in columns}


def write_adapter(path: Path, model: Path) -> None:
    """Write a fresh adapter of a model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), settings).save_pretrained(path)
    AutoTokenizer.from_pretrained(model).save_pretrained(path)


def file_of(text: str) -> str | None:
    """Return the file that a block of Python is, where its first line names one, as in `# judge.py`."""
    ast.parse(text)
    named = re.match(r"# ([\w/]+\.py)\n", text)
    return named[1] if named else None
