"""Data sets as jobs take them: read, checked, tokenized, with a report of what was left out."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np

from rlhf_ray.config.data import DataConfig, PromptDataConfig, RankingDataConfig, RowLayout, RowSource, TextDataConfig
from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.bad_rows import BadRow, ReadReport
from rlhf_ray.data.columns import AnsweredPrompt, Demonstration, answered_of, demonstration_of, prompt_of, ranking_of
from rlhf_ray.data.file_formats import Row
from rlhf_ray.data.layouts.reading import own_rows
from rlhf_ray.data.messages import extra_keys
from rlhf_ray.data.records import Message, PromptRecord, Ranking
from rlhf_ray.data.rows import GRADES, MARGIN, RankedRow, SupervisedRow, grades_of
from rlhf_ray.data.sources import read_rows
from rlhf_ray.data.tokenization import Encoder, Ids, Written

T = TypeVar("T")

NOTHING_ASKED = "nothing to choose between: a tree without ranked answers, or a choice that ended in a tie"


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """The usable rows of a data set."""

    rows: list[T]
    report: ReadReport
    fingerprint: str
    """Of all token ids in their order: a resumed run can tell whether its data is still the same."""


def read_prompts(data: PromptDataConfig, tokenizer: Any, tools: Sequence[dict[str, Any]] = ()) -> Loaded[PromptRecord]:
    """Read prompts; those longer than `max_prompt_tokens` are left out and counted.

    `tools` are JSON schemas that stand in each prompt of messages that names no tools itself.

    Raises:
        BadInput: nothing there, too many bad rows (named by file and line), or nothing left.
    """
    encoder, report = Encoder(tokenizer), report_of(data)
    report.handed_on, report.read_keys = True, encoder.read_keys

    def convert(index: int, row: Row) -> PromptRecord | None:
        prompt, columns = prompt_of(row)
        report.pass_over(columns)
        if tools and not isinstance(prompt, str):
            prompt = [cast(Message, {"tools": list(tools), **prompt[0]}), *prompt[1:]]
        ids = encoder.prompt(prompt)
        if len(ids) > data.max_prompt_tokens:
            report.left_out[f"prompt longer than max_prompt_tokens ({data.max_prompt_tokens})"] += 1
            return None
        return PromptRecord(str(index), prompt, ids, columns)

    rows = converted_rows(data, report, convert)
    return Loaded(rows, report, fingerprint_of(row.prompt_ids for row in rows))


def read_supervised(data: TextDataConfig, tokenizer: Any) -> Loaded[SupervisedRow]:
    """Read rows to learn from; those longer than `max_tokens` are cut at the end.

    Raises:
        BadInput: nothing there, too many bad rows (named by file and line), or nothing left.
    """
    encoder, report = Encoder(tokenizer), report_of(data)
    report.read_keys = encoder.read_keys

    def convert(_: int, row: Row) -> list[SupervisedRow] | None:
        demonstration = demonstration_of(row)
        report.pass_over(demonstration.columns)
        sequences = _demonstrated(encoder, demonstration)
        rows = [found for one in sequences if (found := _supervised_row(one, data.max_tokens, data.loss_on == "all"))]
        if not rows:
            report.left_out[f"nothing to learn within max_tokens ({data.max_tokens})"] += 1
            return None
        if any(len(one.ids) > data.max_tokens for one in sequences):
            report.shortened[f"longer than max_tokens ({data.max_tokens}), cut at the end"] += 1
        report.split += len(sequences) > 1
        return rows

    rows = [row for found in converted_rows(data, report, convert) for row in found]
    return Loaded(rows, report, fingerprint_of(np.concatenate([r.prompt_ids, r.response_ids]) for r in rows))


def read_rankings(data: RankingDataConfig, tokenizer: Any) -> Loaded[RankedRow]:
    """Read rankings as a reward model reads them; texts longer than `max_tokens` lose their beginning.

    A ranking in which texts of different rank became the same tokens (by truncation, mostly) is left out.

    Raises:
        BadInput: nothing there, too many bad rows (named by file and line), or nothing left.
    """
    encoder, report = Encoder(tokenizer), report_of(data)
    report.read_keys = encoder.read_keys

    def convert(_: int, row: Row) -> RankedRow | None:
        ranking = ranking_of(row)
        report.pass_over({name: value for name, value in ranking.columns.items() if name not in (MARGIN, GRADES)})
        return ranked_row(ranking, encoder, data.max_tokens, report)

    rows = converted_rows(data, report, convert)
    return Loaded(rows, report, fingerprint_of(part for row in rows for part in _ranked_parts(row)))


def _ranked_parts(row: RankedRow) -> Iterator[np.ndarray]:
    yield from row.texts
    if row.grades is not None:
        yield row.grades.view(np.int32)


def ranked_row(ranking: Ranking, encoder: Encoder, max_tokens: int, report: ReadReport) -> RankedRow | None:
    """Encode a ranking; None, and counted, where texts of different rank became the same tokens."""
    whole = [encoder.judged(ranking.prompt, response) for response in ranking.responses]
    texts = tuple(encoder.shorten(ids, max_tokens) for ids in whole)
    rank_of: dict[bytes, int] = {}
    if any(rank_of.setdefault(t.tobytes(), r) != r for t, r in zip(texts, ranking.ranks, strict=True)):
        report.left_out[f"texts of different rank are the same within max_tokens ({max_tokens})"] += 1
        return None
    if any(len(ids) > max_tokens for ids in whole):
        report.shortened[f"texts longer than max_tokens ({max_tokens}), lost their beginning"] += 1
    return RankedRow(texts, np.array(ranking.ranks, np.int32), grades_of(ranking))


def read_answered(data: DataConfig) -> Loaded[AnsweredPrompt]:
    """Read prompts with completions, to be scored; nothing is tokenized, so the fingerprint is empty.

    Raises:
        BadInput: nothing there, or too many bad rows (named by file and line).
    """
    report = report_of(data)
    report.handed_on = True

    def convert(_: int, row: Row) -> AnsweredPrompt:
        answered = answered_of(row)
        report.pass_over(answered.columns)
        return answered

    return Loaded(converted_rows(data, report, convert), report, "")


def report_of(data: DataConfig) -> ReadReport:
    """Make an empty report of a data set."""
    return ReadReport(data.path, data.bad_rows)


def converted_rows(data: DataConfig, report: ReadReport, convert: Callable[[int, Row], T | None]) -> list[T]:
    """Convert all good rows, each with its number among all, for a model to read: keys of messages are remembered."""

    def converted(row: Row) -> T | None:
        found = convert(report.rows - 1, row)
        report.keys.update((key, None) for value in row.values() for key in extra_keys(value))
        return found

    return list(usable_rows(data, report, converted))


def usable_rows(source: RowSource, report: ReadReport, convert: Callable[[Row], T | None]) -> Iterator[T]:
    """Yield what is made of each good row; bad ones go to the report, which at the end decides whether the job goes on.

    Args:
        source: where the rows are.
        report: counts them.
        convert: raises BadRow for a row that cannot be used, and gives None for one that is left out.

    Raises:
        BadInput: nothing there, or too many bad rows (named by file and line).
    """
    for place, read in read_rows(source):
        for row in _laid_out(read, source.layout, report):
            report.rows += 1
            try:
                if isinstance(row, BadRow):
                    raise row
                converted = convert(row)
            except BadRow as error:
                report.add_bad(place, str(error))
            except BadInput as error:
                raise BadInput(f"{place}: {error}") from error
            else:
                if converted is not None:
                    yield converted
    report.check()


def _laid_out(row: Row | BadRow, layout: RowLayout, report: ReadReport) -> Sequence[Row | BadRow]:
    """Return the rows that a row of the data set holds, or why it cannot be used; one that holds none is counted."""
    try:
        if isinstance(row, BadRow):
            raise row
        rows = own_rows(row, layout)
    except BadRow as error:
        return [error]
    if not rows:
        report.rows += 1
        report.left_out[NOTHING_ASKED] += 1
    return rows


def _demonstrated(encoder: Encoder, demonstration: Demonstration) -> list[Written]:
    """Return all ids of a row, and which of them the completion holds; a plain text is a completion whole."""
    prompt, completion = demonstration.prompt, demonstration.completion
    if not isinstance(completion, str):
        turns = [] if prompt is None or isinstance(prompt, str) else prompt
        return encoder.conversation([*turns, *completion], first=len(turns))
    if prompt is None:
        ids = encoder.text(completion)
        return [Written(ids, np.ones(len(ids), bool))]
    prompt_ids, answer_ids = encoder.prompt(prompt), encoder.answer(prompt, completion)
    learned = np.repeat([False, True], [len(prompt_ids), len(answer_ids)])
    return [Written(np.concatenate([prompt_ids, answer_ids]), learned)]


def _supervised_row(written: Written, max_tokens: int, learn_all: bool) -> SupervisedRow | None:
    """Make a sequence up to its last learned token within the limit; None where there is none."""
    ids, marks = written.ids[:max_tokens], written.learned[:max_tokens]
    if learn_all:
        marks = np.ones(len(ids), bool)
    # The first token has nothing before it from which it could be predicted.
    learned = np.flatnonzero(marks[1:]) + 1
    if not len(learned):
        return None
    first, end = int(learned[0]), int(learned[-1]) + 1
    return SupervisedRow(ids[:first], ids[first:end], marks[first:end])


def fingerprint_of(rows: Iterator[Ids]) -> str:
    """Hash token ids, and where each row ends, to a short text."""
    digest = hashlib.sha256()
    for ids in rows:
        digest.update(len(ids).to_bytes(4, "little"))
        digest.update(np.ascontiguousarray(ids, np.int32).tobytes())
    return digest.hexdigest()[:16]
