"""Preferences as token ids: pairs of a better and a worse answer, and single answers with a label."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from rlhf_ray.config.data import DataConfig
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.dpo import PreferenceDataConfig
from rlhf_ray.data.bad_rows import BadRow, ReadReport
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.data.columns import completion_column, labelled_of, pair_of
from rlhf_ray.data.file_formats import Row
from rlhf_ray.data.loading import Loaded, converted_rows, fingerprint_of, report_of
from rlhf_ray.data.records import Prompt
from rlhf_ray.data.sources import read_rows
from rlhf_ray.data.tokenization import Encoder, Ids


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt with a response whose log-probability is wanted."""

    prompt_ids: Int32[np.ndarray, " prompt"]
    response_ids: Int32[np.ndarray, " response"]
    shares: Float32[np.ndarray, " response"] | None = None
    """How much each token counts in the sum. None: 1 each."""


@dataclass(frozen=True, slots=True)
class PairRow:
    """A prompt with two answers, of which people prefer the first."""

    number: int
    """Position among the rows that are used."""
    prompt_ids: Int32[np.ndarray, " prompt"]
    chosen_ids: Int32[np.ndarray, " chosen"]
    rejected_ids: Int32[np.ndarray, " rejected"]

    def answers(self, desensitisation: float | None = None) -> tuple[Answer, Answer]:
        """Return the chosen and the rejected answer.

        Args:
            desensitisation: how much tokens beyond the length of the shorter answer count (LD-DPO, Liu et al. 2024).
        """
        shorter = min(len(self.chosen_ids), len(self.rejected_ids))

        def answer(ids: Ids) -> Answer:
            if desensitisation is None:
                return Answer(self.prompt_ids, ids)
            return Answer(self.prompt_ids, ids, np.where(np.arange(len(ids)) < shorter, 1, desensitisation))

        return answer(self.chosen_ids), answer(self.rejected_ids)


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """A prompt with one answer that is desirable or not."""

    number: int
    """Position among the rows that are used."""
    prompt_ids: Int32[np.ndarray, " prompt"]
    response_ids: Int32[np.ndarray, " response"]
    desirable: bool
    mismatched_ids: Int32[np.ndarray, " mismatched"]
    """The response to another row's prompt; with this prompt, it tells how far the policy has moved (KTO)."""

    @property
    def answer(self) -> Answer:
        """The answer that is judged."""
        return Answer(self.prompt_ids, self.response_ids)

    @property
    def mismatch(self) -> Answer:
        """The prompt with the response to another one."""
        return Answer(self.prompt_ids, self.mismatched_ids)


def read_pairs(data: PreferenceDataConfig, tokenizer: Any) -> Loaded[PairRow]:
    """Read pairs; answers that reach past `max_tokens` are cut at the end.

    A pair whose answers became the same tokens is a bad row: its loss has no gradient.

    Raises:
        BadInput: nothing there, too many bad rows (named by file and line), or nothing left.
    """
    encoder, report = Encoder(tokenizer), report_of(data)
    report.read_keys = encoder.read_keys

    def convert(_: int, row: Row) -> PairRow | None:
        return _pair(row, encoder, data.max_tokens, report)

    rows = [replace(row, number=number) for number, row in enumerate(converted_rows(data, report, convert))]
    parts = ((row.prompt_ids, row.chosen_ids, row.rejected_ids) for row in rows)
    return Loaded(rows, report, fingerprint_of(ids for part in parts for ids in part))


def read_labelled(data: PreferenceDataConfig, tokenizer: Any, group: int) -> Loaded[LabelledRow]:
    """Read single answers with their labels; a pair gives two, as in TRL first all chosen and then all rejected ones.

    Raises:
        BadInput: nothing there, too many bad rows (named by file and line), or nothing left.

    Args:
        data: where the rows are.
        tokenizer: of the policy.
        group: so many neighbouring rows exchange their responses for `mismatched_ids`.
    """
    encoder, report = Encoder(tokenizer), report_of(data)
    report.read_keys = encoder.read_keys

    def convert(_: int, row: Row) -> LabelledRow | PairRow | None:
        if ("chosen" in row and "rejected" in row) or "responses" in row:
            return _pair(row, encoder, data.max_tokens, report)
        labelled = labelled_of(row)
        report.pass_over(labelled.columns)
        prompt, answers = _ids(encoder, labelled.prompt, [labelled.completion], data.max_tokens, report)
        return LabelledRow(0, prompt, answers[0], labelled.desirable, answers[0][:0]) if answers else None

    read = converted_rows(data, report, convert)
    rows = [row for row in read if isinstance(row, LabelledRow)]
    pairs = [row for row in read if isinstance(row, PairRow)]
    rows += [LabelledRow(0, row.prompt_ids, row.chosen_ids, True, row.chosen_ids[:0]) for row in pairs]
    rows += [LabelledRow(0, row.prompt_ids, row.rejected_ids, False, row.rejected_ids[:0]) for row in pairs]
    rows = [replace(row, number=number) for number, row in enumerate(_with_mismatches(rows, group, data.max_tokens))]
    parts = ((row.prompt_ids, row.response_ids, np.array([row.desirable], np.int32)) for row in rows)
    return Loaded(rows, report, fingerprint_of(ids for part in parts for ids in part))


def holds_labels(data: DataConfig) -> bool:
    """Tell whether the first row that can be read holds a single answer with a label."""
    first = next((row for _, row in read_rows(data) if not isinstance(row, BadRow)), {})
    return "label" in first and completion_column(first) is not None


def answers_batch(answers: Sequence[Answer]) -> TokenBatch:
    """Pack answers in their order, one row each."""
    return TokenBatch.from_sequences([a.prompt_ids for a in answers], [a.response_ids for a in answers])


def token_shares(answers: Sequence[Answer]) -> Float32[np.ndarray, " response_tokens"]:
    """Return how much each response token counts, in flat order."""
    shares = [np.ones(len(a.response_ids)) if a.shares is None else a.shares for a in answers]
    return np.concatenate(shares).astype(np.float32)


def _pair(row: Row, encoder: Encoder, max_tokens: int, report: ReadReport) -> PairRow | None:
    ranking = pair_of(row)
    report.pass_over(ranking.columns)
    prompt, answers = _ids(encoder, ranking.prompt, ranking.responses, max_tokens, report)
    if not answers:
        return None
    chosen, rejected = answers
    if np.array_equal(chosen, rejected):
        raise BadRow(
            f"`chosen` and `rejected` are the same tokens within max_tokens ({max_tokens}), so the pair teaches "
            "nothing; raise data.max_tokens or take the row away"
        )
    return PairRow(0, prompt, chosen, rejected)


def _ids(
    encoder: Encoder, prompt: Prompt, responses: Sequence[str], max_tokens: int, report: ReadReport
) -> tuple[Ids, list[Ids]]:
    """Encode a prompt and its responses within the limit; no responses where the prompt fills it."""
    prompt_ids = encoder.prompt(prompt)
    if len(prompt_ids) >= max_tokens:
        report.left_out[f"prompt fills max_tokens ({max_tokens})"] += 1
        return prompt_ids, []
    room = max_tokens - len(prompt_ids)
    answers = [encoder.answer(prompt, response) for response in responses]
    if any(len(answer) > room for answer in answers):
        report.shortened[f"longer than max_tokens ({max_tokens}), answers cut at the end"] += 1
    return prompt_ids, [answer[:room] for answer in answers]


def _with_mismatches(rows: list[LabelledRow], group: int, max_tokens: int) -> list[LabelledRow]:
    """Give each row the response of the one before it in its group, as TRL; and not one to the same prompt."""
    starts = list(range(0, len(rows), group))
    if len(starts) > 1 and len(rows) - starts[-1] == 1:
        # A row alone could only be compared with itself.
        starts.pop()
    found = []
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        members = rows[start:end]
        for place, row in enumerate(members):
            before = [members[place - step] for step in range(1, len(members))] or [row]
            other = next((one for one in before if not np.array_equal(one.prompt_ids, row.prompt_ids)), before[0])
            room = max_tokens - len(row.prompt_ids)
            found.append(replace(row, mismatched_ids=other.response_ids[:room]))
    return found


def check_mismatches(rows: Sequence[LabelledRow], path: str) -> None:
    """Check that there is something to compare with.

    Raises:
        BadInput: all rows have one prompt.
    """
    if all(np.array_equal(row.prompt_ids, rows[0].prompt_ids) for row in rows):
        raise BadInput(f"{path}: kto compares answers with those of other prompts, but all rows have the same prompt")
