"""What is exported comes back as it was, through every format, whatever the texts hold."""

import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_ray.config.data import RankingDataConfig, RowSource
from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.columns import ranking_of
from rlhf_ray.data.file_formats import READERS
from rlhf_ray.data.layouts.reading import own_rows
from rlhf_ray.data.loading import read_rankings
from rlhf_ray.data.records import Message, Ranking
from rlhf_ray.data.sources import read_rows
from rlhf_ray.evaluation.verdicts import check_people, judged, read_people
from rlhf_ray.feedback.labelling.agreement import win_rates
from rlhf_ray.feedback.labelling.exports import NO_PREFERENCE, write_export
from rlhf_ray.feedback.labelling.labels import Label
from tests.feedback.labelling_cases import HOSTILE

TEXT = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip())


def _label(
    prompt: str | list[Message], answers: list[str], ranks: list[int], reason: str = "", **more: object
) -> Label:
    count = len(answers)
    given = {
        "id": 1,
        "item_id": 1,
        "annotator": "anna",
        "time": 1.8e9,
        "seconds": 3.14159,
        "prompt": prompt,
        "prompt_class": "chat",
        "answers": tuple(answers),
        "versions": ("v",) * count,
        "ranks": tuple(ranks),
        "shown": tuple(range(count)),
        "overall": (None,) * count,
        "flags": ((),) * count,
        "reason": reason,
    }
    return Label(**(given | more))  # type: ignore[arg-type]


def _read(content: bytes, kind: str) -> list[Ranking]:
    return [ranking_of(row) for _, row in READERS[kind](io.BytesIO(content), f"x{kind}") if not isinstance(row, BadRow)]


@st.composite
def _labels(draw: st.DrawFn) -> list[Label]:
    labels = []
    for _ in range(draw(st.integers(1, 3))):
        answers = draw(st.lists(TEXT, min_size=2, max_size=4, unique=True))
        given = [draw(st.integers(0, 3)) for _ in answers]
        order = sorted(set(given))
        labels.append(
            _label(
                draw(st.text(st.characters(codec="utf-8"))),
                answers,
                [order.index(r) for r in given],
                draw(st.text(st.characters(codec="utf-8"))),
            )
        )
    return labels


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
@given(labels=_labels())
def test_rows_come_back_with_ties_and_all_columns(kind: str, labels: list[Label]) -> None:
    stream = io.BytesIO()
    report = write_export(labels, stream, f"labels{kind}", "label")
    decided = [label for label in labels if len(set(label.ranks)) > 1]
    assert report.rows == len(decided)
    assert report.left_out[NO_PREFERENCE] == len(labels) - len(decided)
    back = _read(stream.getvalue(), kind)
    assert [(r.prompt, tuple(r.responses), tuple(r.ranks)) for r in back] == [
        (label.prompt, label.answers, label.ranks) for label in decided
    ]
    assert [r.columns["reason"] for r in back] == [label.reason for label in decided]


@settings(deadline=None, max_examples=100)
@given(labels=_labels())
def test_rank_lists_come_back_best_first_and_ties_are_counted(labels: list[Label]) -> None:
    stream = io.BytesIO()
    report = write_export(labels, stream, "labels.tsv", "label")
    strict = [label for label in labels if len(set(label.ranks)) == len(label.ranks)]
    assert report.rows == len(strict)
    assert report.left_out.total() == len(labels) - len(strict)
    expected = [
        [f"{label.prompt}{text}" for _, text in sorted(zip(label.ranks, label.answers, strict=True))]
        for label in strict
    ]
    assert [list(r.responses) for r in _read(stream.getvalue(), ".tsv")] == expected


@pytest.mark.parametrize("kind", [".jsonl", ".parquet", ".tsv"])
def test_hostile_texts_come_back(kind: str) -> None:
    labels = [_label(text, [text, "other"], [1, 0], text) for text in HOSTILE]
    stream = io.BytesIO()
    write_export(labels, stream, f"labels{kind}", "label")
    back = _read(stream.getvalue(), kind)
    if kind == ".tsv":
        assert [list(r.responses) for r in back] == [[f"{text}other", text * 2] for text in HOSTILE]
    else:
        assert [(r.prompt, list(r.responses), list(r.ranks)) for r in back] == [
            (text, [text, "other"], [1, 0]) for text in HOSTILE
        ]


def test_a_rank_list_without_our_header_is_read_as_it_stands(tmp_path: Path) -> None:
    stream = io.BytesIO()
    write_export([_label("a\n", ["b\tc", "d\\n"], [0, 1])], stream, "x.tsv", "label")
    header, _, lines = stream.getvalue().partition(b"\n")
    assert header == rb"# rank list, best first; escapes: \t \n \\"
    assert list(_read(lines, ".tsv")[0].responses) == [r"a\nb\tc", r"a\nd\\n"]


def test_conversations_in_every_format() -> None:
    prompt: list[Message] = [{"role": "user", "content": "你好\t?"}]
    label = _label(prompt, ["a", "b"], [1, 0])
    for kind, expected in ((".jsonl", prompt), (".parquet", prompt)):
        stream = io.BytesIO()
        write_export([label], stream, f"x{kind}", "label")
        assert _read(stream.getvalue(), kind)[0].prompt == expected
    stream = io.BytesIO()
    write_export([label], stream, "x.tsv", "label")
    assert list(_read(stream.getvalue(), ".tsv")[0].responses) == ["你好\t?\nb", "你好\t?\na"]


def test_parquet_says_what_it_cannot_hold() -> None:
    mixed = [_label("text", ["a", "b"], [0, 1]), _label([{"role": "user", "content": "x"}], ["a", "b"], [0, 1])]
    with pytest.raises(BadInput, match=r"column 'prompt'.*write \.jsonl"):
        write_export(mixed, io.BytesIO(), "x.parquet", "label")


TAMPERED = {
    "a rank is missing": ("x.jsonl", b'"ranks": [1, 0]', b'"ranks": [1]', "1 ranks for 2 responses"),
    "a rank is a text": ("x.jsonl", b'"ranks": [1, 0]', b'"ranks": ["1", 0]', "whole numbers"),
    "all ranks are equal": ("x.jsonl", b'"ranks": [1, 0]', b'"ranks": [0, 0]', "prefers nothing"),
    "an answer is gone": ("x.jsonl", b'"other"', b'""', "is empty"),
    "one text at two ranks": ("x.jsonl", b'"other"', b'"answer"', "the same text"),
    "a line is cut": ("x.jsonl", b"}\n", b"\n", "not JSON"),
    "another encoding": ("x.jsonl", "问".encode(), "问".encode("gb18030"), "not UTF-8"),
    "a tab is gone": ("x.tsv", b"\t", b" ", "holds 1 texts"),
    "Parquet is cut": ("x.parquet", b"PAR1", b"", "not a Parquet file"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampered_export_is_refused_by_place(case: str, tmp_path: Path, tiny_model) -> None:
    from transformers import AutoTokenizer

    name, old, new, words = TAMPERED[case]
    stream = io.BytesIO()
    write_export([_label("问题", ["answer", "other"], [1, 0])], stream, name, "label")
    content = stream.getvalue()
    assert old in content
    (tmp_path / name).write_bytes(content.replace(old, new))
    data = RankingDataConfig(path=str(tmp_path / name))
    with pytest.raises(BadInput, match=words):
        read_rankings(data, AutoTokenizer.from_pretrained(tiny_model.tied))


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_choices_are_what_an_evaluation_and_a_reward_model_read(kind: str, tmp_path: Path, tiny_model) -> None:
    from transformers import AutoTokenizer

    turns: list[Message] = [{"role": "user", "content": "问题\u2028?"}]
    sides = {"versions": ("old", "new"), "reason": "因为"}
    ranks = ([0, 1], [1, 0], [1, 0], [0, 0])
    path = tmp_path / f"choices{kind}"
    with path.open("wb") as stream:
        labels = [_label(turns, [f"a{n}", f"b{n}"], ranking, **sides) for n, ranking in enumerate(ranks)]
        assert write_export(labels, stream, path.name, "compare").rows == 4
    check_people(path, ["old", "new"])
    verdicts = read_people(path, "new", "old")
    assert [verdict.winner for verdict in verdicts] == ["baseline", "candidate", "candidate", "tie"]
    assert {verdict.reason for verdict in verdicts} == {"因为"}
    assert judged(verdicts).outcome.rate.value == win_rates(labels)[0].rate.value
    rows = [row for _, row in read_rows(RowSource(path=str(path)))]
    assert list(rows[0])[:6] == ["prompt", "a", "b", "winner", "model_a", "model_b"]
    pairs = [ranking_of(pair) for row in rows for pair in own_rows(row, "auto")]
    assert [(pair.prompt, pair.responses) for pair in pairs] == [
        (turns, ["a0", "b0"]),
        (turns, ["b1", "a1"]),
        (turns, ["b2", "a2"]),
    ]
    loaded = read_rankings(RankingDataConfig(path=str(path)), AutoTokenizer.from_pretrained(tiny_model.tied))
    assert loaded.report.used == 3
    assert "1 row left out: nothing to choose between" in "\n".join(loaded.report.lines())


def test_win_rates_by_class() -> None:
    def judged(ranks: list[int], name: str) -> Label:
        return _label("p", ["a", "b"], ranks, prompt_class=name)

    rates = win_rates([judged([1, 0], "chat"), judged([1, 0], "chat"), judged([0, 1], "chat"), judged([0, 0], "poem")])
    assert [(r.prompt_class, r.b_wins, r.a_wins, r.equal) for r in rates] == [
        ("all", 2, 1, 1),
        ("chat", 2, 1, 0),
        ("poem", 0, 0, 1),
    ]
    assert rates[0].rate.value == pytest.approx(2.5 / 4)
    assert rates[1].rate.low < 2 / 3 < rates[1].rate.high


def test_no_judgement_is_no_win_rate() -> None:
    (everything,) = win_rates([])
    assert everything.rate.count == 0
