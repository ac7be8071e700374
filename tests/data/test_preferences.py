"""Preferences as token ids: TRL's columns, truncation, mismatched answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.dpo import PreferenceDataConfig
from rlhf_ray.data.preferences import (
    Answer,
    LabelledRow,
    PairRow,
    answers_batch,
    holds_labels,
    read_labelled,
    read_pairs,
    token_shares,
)

PROMPT, CHOSEN, REJECTED = "The film", " was wonderful.", " was bad."


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def config(path: Path, rows: list[dict[str, Any]], **more: Any) -> PreferenceDataConfig:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return PreferenceDataConfig(path=str(path), **more)


def pairs(tmp_path: Path, tokenizer: Any, *rows: dict[str, Any], **more: Any) -> list[PairRow]:
    return read_pairs(config(tmp_path / "d.jsonl", list(rows), **more), tokenizer).rows


def text(tokenizer: Any, ids: np.ndarray) -> str:
    return tokenizer.decode(ids)


def test_explicit_and_implicit_prompts_are_the_same_pair(tmp_path: Path, tokenizer: Any) -> None:
    user = message("user", PROMPT)
    answers = [[message("assistant", answer)] for answer in (CHOSEN, REJECTED)]
    rows = pairs(
        tmp_path,
        tokenizer,
        {"prompt": PROMPT, "chosen": CHOSEN, "rejected": REJECTED},
        {"chosen": PROMPT + CHOSEN, "rejected": PROMPT + REJECTED},
        {"prompt": [user], "chosen": answers[0], "rejected": answers[1]},
        {"chosen": [user, *answers[0]], "rejected": [user, *answers[1]]},
        {"prompt": [user], "chosen": CHOSEN, "rejected": REJECTED},
    )
    assert [row.number for row in rows] == [0, 1, 2, 3, 4]
    explicit, implicit, *messages = rows
    wholes = [text(tokenizer, np.concatenate([row.prompt_ids, row.chosen_ids])) for row in (explicit, implicit)]
    assert wholes[0] == wholes[1] == PROMPT + CHOSEN + tokenizer.eos_token
    for row in messages[1:]:
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            assert np.array_equal(getattr(row, name), getattr(messages[0], name))
    # What both answers begin with is the prompt, but for a space before the difference: " was" is in both.
    assert text(tokenizer, implicit.prompt_ids) == "The film was"
    assert text(tokenizer, implicit.chosen_ids) == " wonderful." + tokenizer.eos_token
    assert text(tokenizer, explicit.chosen_ids) == CHOSEN + tokenizer.eos_token
    rendered = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert text(tokenizer, messages[0].prompt_ids) == rendered
    assert text(tokenizer, messages[0].rejected_ids) == REJECTED + tokenizer.eos_token
    for row in rows:
        for ids in (row.chosen_ids, row.rejected_ids):
            assert (ids == tokenizer.eos_token_id).sum() == 1


def test_a_ranking_of_two_is_a_pair_and_a_longer_one_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    two = {"prompt": PROMPT, "responses": [REJECTED, CHOSEN], "ranks": [2, 1]}
    choice = {"prompt": PROMPT, "a": REJECTED, "b": CHOSEN, "winner": "b", "model_a": "x", "model_b": "y"}
    expected = text(tokenizer, pairs(tmp_path, tokenizer, PAIR)[0].chosen_ids)
    found = pairs(tmp_path, tokenizer, two, choice, choice | {"winner": "tie"})
    assert [text(tokenizer, row.chosen_ids) for row in found] == [expected] * 2
    single = read_labelled(config(tmp_path / "d.jsonl", [two, choice]), tokenizer, group=4).rows
    assert [row.desirable for row in single] == [True, True, False, False]
    with pytest.raises(BadInput, match="ranks 3 answers; give two of them as `chosen` and `rejected`"):
        pairs(tmp_path, tokenizer, {"prompt": PROMPT, "responses": ["a", "b", "c"]})


def test_long_answers_are_cut_at_the_end_and_long_prompts_left_out(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {"prompt": PROMPT, "chosen": CHOSEN * 9, "rejected": REJECTED},
        {"prompt": PROMPT * 9, "chosen": CHOSEN, "rejected": REJECTED},
    ]
    loaded = read_pairs(config(tmp_path / "d.jsonl", rows, max_tokens=16), tokenizer)
    [row] = loaded.rows
    whole = tokenizer(CHOSEN * 9)["input_ids"]
    assert len(row.prompt_ids) + len(row.chosen_ids) == 16
    assert row.chosen_ids.tolist() == whole[: len(row.chosen_ids)], "no EOS where the answer did not end"
    assert row.rejected_ids[-1] == tokenizer.eos_token_id
    assert loaded.report.left_out == {"prompt fills max_tokens (16)": 1}
    assert sum(loaded.report.shortened.values()) == 1


def test_desensitised_tokens_lie_beyond_the_shorter_answer() -> None:
    row = PairRow(0, np.zeros(2, np.int32), np.arange(5), np.arange(3))
    chosen, rejected = row.answers(0.25)
    assert token_shares([chosen, rejected]).tolist() == [1, 1, 1, 0.25, 0.25, 1, 1, 1]
    assert [answer.shares for answer in row.answers()] == [None, None]
    batch = answers_batch([chosen, rejected])
    assert batch.response_lengths.tolist() == [5, 3]
    assert token_shares([Answer(row.prompt_ids, row.chosen_ids)]).tolist() == [1] * 5


def labelled_rows(tmp_path: Path, tokenizer: Any, rows: list[dict[str, Any]], group: int) -> list[LabelledRow]:
    return read_labelled(config(tmp_path / "l.jsonl", rows), tokenizer, group).rows


def single(number: int, label: Any, prompt: str | None = None) -> dict[str, Any]:
    return {"prompt": prompt or f"p{number}", "completion": f"c{number}", "label": label}


def mismatches(tokenizer: Any, rows: list[LabelledRow]) -> list[str]:
    return [
        text(tokenizer, row.prompt_ids) + text(tokenizer, row.mismatched_ids).removesuffix(tokenizer.eos_token)
        for row in rows
    ]


def test_mismatches_rotate_within_groups_as_in_trl(tmp_path: Path, tokenizer: Any) -> None:
    rows = labelled_rows(tmp_path, tokenizer, [single(number, number % 2 == 0) for number in range(7)], 3)
    # The last row would be alone, so it joins the group before.
    assert mismatches(tokenizer, rows) == ["p0c2", "p1c0", "p2c1", "p3c6", "p4c3", "p5c4", "p6c5"]
    assert [row.desirable for row in rows] == [True, False] * 3 + [True]


def test_a_mismatch_is_never_of_the_same_prompt_where_there_is_another(tmp_path: Path, tokenizer: Any) -> None:
    given = [single(0, True, "p"), single(1, False, "p"), single(2, True, "q"), single(3, False, "p")]
    rows = labelled_rows(tmp_path, tokenizer, given, 4)
    assert mismatches(tokenizer, rows) == ["pc2", "pc2", "qc1", "pc2"]


def test_pairs_serve_as_single_answers(tmp_path: Path, tokenizer: Any) -> None:
    given = [{"prompt": f"p{n}", "chosen": f"good{n}", "rejected": f"bad{n}"} for n in range(2)]
    rows = labelled_rows(tmp_path, tokenizer, given, 4)
    answers = [text(tokenizer, row.response_ids).removesuffix(tokenizer.eos_token) for row in rows]
    assert answers == ["good0", "good1", "bad0", "bad1"]
    assert [row.desirable for row in rows] == [True, True, False, False]
    assert mismatches(tokenizer, rows) == ["p0bad1", "p1good0", "p0good1", "p1bad0"]


@pytest.mark.parametrize(("label", "desirable"), [(True, True), (0, False), ("True", True), ("false", False)])
def test_labels(label: Any, desirable: bool, tmp_path: Path, tokenizer: Any) -> None:
    assert labelled_rows(tmp_path, tokenizer, [single(0, label)], 1)[0].desirable is desirable


def test_the_fingerprint_tells_data_apart(tmp_path: Path, tokenizer: Any) -> None:
    def fingerprint(**changes: Any) -> str:
        row = {"prompt": PROMPT, "chosen": CHOSEN, "rejected": REJECTED} | changes
        return read_pairs(config(tmp_path / "d.jsonl", [row]), tokenizer).fingerprint

    swapped = {"chosen": REJECTED, "rejected": CHOSEN}
    moved = {"prompt": "The", "chosen": " film" + CHOSEN, "rejected": " film" + REJECTED}
    found = {fingerprint(), fingerprint(**swapped), fingerprint(**moved), fingerprint(prompt="A film")}
    assert len(found) == 4
    labels = {
        read_labelled(config(tmp_path / "l.jsonl", [single(0, label)]), tokenizer, 1).fingerprint for label in (0, 1)
    }
    assert len(labels) == 2


def test_the_first_row_says_whether_there_are_labels(tmp_path: Path) -> None:
    assert holds_labels(config(tmp_path / "l.jsonl", [single(0, True)]))
    assert not holds_labels(config(tmp_path / "d.jsonl", [{"chosen": "a", "rejected": "b"}]))
    assert not holds_labels(config(tmp_path / "empty.jsonl", []))


PAIR = {"prompt": PROMPT, "chosen": CHOSEN, "rejected": REJECTED}
LONG = " and so on" * 30
BAD_PAIRS: dict[str, tuple[dict[str, Any], str]] = {
    # name: (row, words of the message, which also names file and line)
    "rejected missing": ({"prompt": "p", "chosen": "a"}, "has no columns `chosen` and `rejected`; its columns are"),
    "labels instead of pairs": ({"prompt": "p", "completion": "a", "label": True}, "prompt, completion, label"),
    "chosen empty": (PAIR | {"chosen": "  "}, "`chosen` is empty"),
    "rejected null": (PAIR | {"rejected": None}, "`rejected` must be text or a list of messages"),
    "no messages": (PAIR | {"chosen": [], "rejected": []}, "`chosen` must be text or a list of messages"),
    "message empty": (PAIR | {"chosen": [message("assistant", "")]}, "turn 1 of chosen` is empty"),
    "prompt empty of words": (PAIR | {"prompt": 7}, "`prompt` must be text or a list"),
    "equal answers": (PAIR | {"rejected": CHOSEN}, "the same text stands at ranks 0 and 1"),
    "equal texts without prompt": ({"chosen": "same", "rejected": "same"}, "both are equal"),
    "equal after truncation": (
        PAIR | {"chosen": LONG + " good", "rejected": LONG + " bad"},
        "the same tokens within max_tokens (32), so the pair teaches nothing; raise data.max_tokens",
    ),
    "user's turn as answer": (
        PAIR | {"chosen": [message("user", "a")], "rejected": [message("assistant", "b")]},
        "one turn of the assistant",
    ),
    "text against messages": (PAIR | {"chosen": [message("assistant", "a")]}, "both be text or both be messages"),
    "nothing in common": (
        {"chosen": [message("user", "a"), message("assistant", "b")], "rejected": [message("assistant", "c")]},
        "must share all turns but the last",
    ),
}
BAD_LABELLED: dict[str, tuple[dict[str, Any], str]] = {
    "label missing": ({"prompt": "p", "completion": "c"}, "has no columns `prompt`, `completion` and `label`"),
    "label in words": ({"prompt": "p", "completion": "c", "label": "good"}, "must be true or false, not 'good'"),
    "label null": ({"prompt": "p", "completion": "c", "label": None}, "must be true or false, not None"),
    "label a grade": ({"prompt": "p", "completion": "c", "label": 3}, "must be true or false, not 3"),
    "completion empty": ({"prompt": "p", "completion": "", "label": True}, "`completion` is empty"),
}


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_bad_pairs(case: str, tmp_path: Path, tokenizer: Any) -> None:
    row, words = BAD_PAIRS[case]
    path = tmp_path / "d.jsonl"
    with pytest.raises(BadInput) as caught:
        read_pairs(config(path, [PAIR, row], max_tokens=32), tokenizer)
    assert f"{path}:2: " in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("case", BAD_LABELLED)
def test_bad_labelled_rows(case: str, tmp_path: Path, tokenizer: Any) -> None:
    row, words = BAD_LABELLED[case]
    path = tmp_path / "l.jsonl"
    with pytest.raises(BadInput) as caught:
        read_labelled(config(path, [single(0, True), row]), tokenizer, 2)
    assert f"{path}:2: " in str(caught.value)
    assert words in str(caught.value)


def test_few_bad_pairs_are_counted_and_shown(tmp_path: Path, tokenizer: Any) -> None:
    loaded = read_pairs(config(tmp_path / "d.jsonl", [PAIR, PAIR, PAIR | {"chosen": ""}], bad_rows=0.4), tokenizer)
    assert len(loaded.rows) == 2
    assert any(":3: `chosen` is empty" in line for line in loaded.report.lines())
