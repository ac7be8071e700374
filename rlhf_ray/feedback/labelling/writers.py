"""Where answers come from, as the page sees it: something that writes so many different answers to a prompt."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.config.jobs.labelling import MOST_ANSWERS, FileAnswers
from rlhf_ray.data.bad_rows import ReadReport
from rlhf_ray.data.cleaning.prompt_classes import use_case
from rlhf_ray.data.cleaning.texts import joined
from rlhf_ray.data.columns import answered_of, ranking_of
from rlhf_ray.data.file_formats import RANKED_TEXTS, Row
from rlhf_ray.data.loading import usable_rows
from rlhf_ray.data.records import Prompt
from rlhf_ray.feedback.labelling.items import NewItem

ROUNDS = 4
"""How often a model is asked again for answers that differ from those that it gave."""

READ_COLUMNS = ("class", "model", "versions")
"""Columns that are read beside prompts and answers."""

TOO_FEW = "fewer than two different answers"
"""Why a prompt of a file is left out."""


class NoAnswers(RlhfError):
    """A source cannot answer a prompt; the message says why."""


class AnswerWriter(Protocol):
    """Writes answers. Safe to call from several threads."""

    @property
    def version(self) -> str:
        """Name what writes the answers; the name is kept with each of them."""
        ...

    def write(self, prompt: Prompt, count: int) -> list[str]:
        """Write so many answers, equal ones among them perhaps.

        Raises:
            RlhfError: it cannot answer.
        """
        ...


def different_answers(writer: AnswerWriter, prompt: Prompt, count: int) -> list[str]:
    """Ask for answers until so many differ; at least two, or the prompt cannot be ranked.

    Raises:
        NoAnswers: there are not two different ones.
    """
    found: dict[str, None] = {}
    for _ in range(ROUNDS):
        found |= dict.fromkeys(text for text in writer.write(prompt, count) if text.strip())
        if len(found) >= count:
            break
    answers = list(found)[:count]
    if len(answers) < 2:
        raise NoAnswers(
            f"{writer.version} gives {'only empty answers' if not answers else 'always the same answer'} to this "
            "prompt; skip it, or raise the temperature"
        )
    return answers


class FileWriter:
    """The answers of a file, one to each prompt; it knows no others."""

    def __init__(self, version: str, answers: Mapping[str, str]) -> None:
        """Serve answers, given by the text of the prompt."""
        self.version = version
        self._answers = answers

    def write(self, prompt: Prompt, count: int) -> list[str]:
        """Return the answer of the file, whatever the count.

        Raises:
            NoAnswers: the file has none.
        """
        if joined(prompt) not in self._answers:
            raise NoAnswers(f"{self.version} has no answer to this prompt")
        return [self._answers[joined(prompt)]]


class AnswerFile:
    """Prompts with the answers that a file gives them, in the order of the file.

    Rows hold `prompt` and `responses` (or another layout of rankings, whose order is not looked at), or `prompt` and
    one `completion`; rows with the same prompt are put together.
    """

    def __init__(self, source: FileAnswers) -> None:
        """Read the file.

        Raises:
            BadInput: it is not there, or too many rows are bad.
        """
        self.report = ReadReport(source.path, source.bad_rows)
        self.version = source.version or source.path
        self._named = source.version is not None
        self._found: dict[str, tuple[Prompt, str, dict[str, str]]] = {}
        for prompt, name, written in usable_rows(source, self.report, self._read):
            known = self._found.setdefault(joined(prompt), (prompt, name, {}))[2]
            for answer, version in written:
                known.setdefault(answer, version)

    def _read(self, row: Row) -> tuple[Prompt, str, list[tuple[str, str]]]:
        """Return a prompt with its class, and the answers with what wrote them."""
        prompt, answers, columns = _answers_of(row)
        self.report.pass_over({name: value for name, value in columns.items() if name not in READ_COLUMNS})
        return prompt, prompt_class(row, prompt), list(zip(answers, self._versions(row, len(answers)), strict=True))

    def _versions(self, row: Row, count: int) -> list[str]:
        """Tell what wrote the answers: the config's word, else the row's columns, else the file."""
        given = row.get("versions")
        if not self._named and isinstance(given, list) and len(given) == count:
            return [str(version) for version in given]
        alone = row.get("model")
        return [alone if isinstance(alone, str) and not self._named else self.version] * count

    def items(self, count: int) -> Iterator[NewItem]:
        """Yield prompts to rank, with at most so many answers; the report counts those with fewer than two."""
        for prompt, name, answers in self._found.values():
            kept = list(answers.items())[:count]
            if len(kept) < 2:
                self.report.left_out[TOO_FEW] += 1
                continue
            texts, versions = zip(*kept, strict=True)
            yield NewItem(prompt, name, self.version, texts, versions)

    def prompts(self) -> list[tuple[Prompt, str]]:
        """List all prompts with their classes."""
        return [(prompt, name) for prompt, name, _ in self._found.values()]

    def writer(self) -> FileWriter:
        """Make a writer of the first answer to each prompt."""
        return FileWriter(self.version, {text: next(iter(found[2])) for text, found in self._found.items()})


def prompt_class(row: Row, prompt: Prompt) -> str:
    """Return column `class`, else what the prompt asks for by rules."""
    given = row.get("class")
    return given if isinstance(given, str) and given.strip() else use_case(joined(prompt))


def _answers_of(row: Row) -> tuple[Prompt, Sequence[str], Mapping[str, Any]]:
    if RANKED_TEXTS in row or "responses" in row or ("chosen" in row and "rejected" in row):
        # What is to be ranked needs no ranks yet, and those that are there decide nothing.
        ranking = ranking_of({name: value for name, value in row.items() if name != "ranks"})
        return ranking.prompt, ranking.responses[:MOST_ANSWERS], ranking.columns
    answered = answered_of(row)
    return answered.prompt, [answered.completion], answered.columns
