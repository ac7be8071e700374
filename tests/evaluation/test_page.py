"""The comparison page and its row files, with whatever models and judges write."""

import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rlhf_ray.config.errors import BadInput
from rlhf_ray.evaluation.answers import Answer, ModelResult, TextFit
from rlhf_ray.evaluation.figures import make_bars, make_spread
from rlhf_ray.evaluation.measures import headlines, same_decimals
from rlhf_ray.evaluation.page import ShownVerdict, summary_table, title_of, write_page
from rlhf_ray.evaluation.row_log import RowLogs, key_of
from rlhf_ray.evaluation.statistics import Estimate
from rlhf_ray.evaluation.summary import as_json, summarise
from rlhf_ray.evaluation.verdicts import Verdict, judged

HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)></td></table></main>",
    "{{ 7 * 7 }}{% raw %}",
    "👨‍👩‍👧 مرحبا \u202e txt.exe \u0000 \u001b[31m \ud800 ]]> --> </style>",
    "长" * 100_000,
    "",
]
VOID = {"meta", "wbr", "br", "line", "rect", "circle", "polyline"}


class Markup(HTMLParser):
    """What a browser would take as markup; checks that tags close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attributes)
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["script"] and self._open[-1:] != ["style"]:
            self.words.append(data)


def result(name: str, shift: float, *, everything: bool = True) -> ModelResult:
    answers = [Answer(str(row), 0, text, f"{name} {text}", [row, 1], "stop") for row, text in enumerate(HOSTILE)]
    found = ModelResult(name, f"<b>{name}", answers)
    if everything:
        found.scores = {"a<b>": [1.0 + shift, None, math.nan, 2.0, 3.0], "reward": [shift, None, math.nan, 2.0, 3.0]}
        found.divergence = [0.1 * shift] * 5
        found.texts = TextFit(np.array([-3.0, -4.0 - shift]), np.array([2, 3]))
        found.seconds, found.peak_memory = 70.0, 3 << 30
    return found


def test_text_is_shown_as_text(tmp_path: Path) -> None:
    results = [result("old", 0.0), result("new", 0.5)]
    verdicts = [Verdict(str(row), "candidate", text) for row, text in enumerate(HOSTILE)]
    summary = summarise(results, "old", "old", {"<i>judge": {"new": judged(verdicts, failed=2)}})
    shown = [ShownVerdict("<i>judge", "new", [{"role": "user", "content": text}], "tie", text) for text in HOSTILE]
    write_page(tmp_path / "page.html", HOSTILE[0], summary, results, shown, {"api_key": "geheim", "name": HOSTILE[0]})
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    markup = Markup(page)
    assert markup.tags.count("script") == 1, "only the page's own"
    assert "img" not in markup.tags
    words = "".join(markup.words)
    assert HOSTILE[0] in words
    assert HOSTILE[1] in words
    assert "\u202e" not in page
    assert "\x1b" not in page
    assert "geheim" not in page
    assert len(page) < 300_000, "long answers are cut"
    assert "1 min 10 s" in words


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    results = [result("alone", 0.0, everything=False)]
    summary = summarise(results, "alone", None, {})
    write_page(tmp_path / "page.html", "t", summary, results, [], {})
    words = "".join(Markup((tmp_path / "page.html").read_text(encoding="utf-8")).words)
    assert "perplexity" not in words
    assert "length" in words
    plain = as_json(summary)
    assert plain["models"]["alone"]["reward"] is None
    json.dumps(plain, allow_nan=False)


def test_what_a_reader_wants_to_know_first() -> None:
    def estimate(value: float, low: float, high: float) -> Estimate:
        return Estimate(value, low, high, 100)

    names = ("old", "new", "odd")
    summary = summarise([result(name, 0.0, everything=False) for name in names], "old", "old", {})
    better = {"reward_gain": estimate(1.124, 0.957, 1.298), "oracle_gain": estimate(0.0779, 0.0571, 0.0993)}
    better |= {"tax": estimate(0.156, 0.145, 0.167), "kl": estimate(3.79, 3.48, 4.11)}
    worse = {"reward_gain": estimate(-0.2, -0.3, -0.1), "tax": estimate(0.01, -0.01, 0.03)}
    worse |= {"oracle_gain": estimate(math.nan, math.nan, math.nan)}
    models = {name: replace(summary.models[name], **found) for name, found in (("new", better), ("odd", worse))}
    wins = judged([Verdict(str(n), "candidate", "") for n in range(40)], failed=0)
    summary = replace(summary, models=summary.models | models, win_rates={"grammar": {"new": wins}})
    found = headlines(summary, dict.fromkeys(names, "#000000"))
    assert [one.name for one in found] == ["new", "odd"], "the baseline is what they stand against"
    told = [[(fact.label, fact.value, fact.words) for fact in one.facts] for one in found]
    assert told[0] == [
        ("oracle", "+0.0779", "better"),
        ("reward", "+1.12", "better"),
        ("wins by grammar", "100.0%", "better"),
        ("alignment tax", "+0.156", "worse"),
        ("KL", "3.79 nats", ""),
    ]
    assert told[1] == [("reward", "-0.200", "worse"), ("alignment tax", "+0.0100", "no clear difference")]
    assert title_of(summary) == "new and odd against old"


def test_one_prompt_and_one_text_decide_nothing(tmp_path: Path) -> None:
    results = [result("old", 0.0, everything=False), result("new", 0.5, everything=False)]
    for one, shift in zip(results, (0.0, 0.5), strict=True):
        one.answers = [Answer("7", row, "p", f"{one.name} {row}", [row, 1], "stop") for row in (0, 1)]
        one.scores = {name: [1.0 + shift, 2.0 + shift] for name in ("reward", "quality", "oracle")}
        one.divergence = [shift, shift]
        one.texts = TextFit(np.array([-4.0 - shift]), np.array([3]))
    wins = judged([Verdict("7", "candidate"), Verdict("7", "candidate")])
    summary = summarise(results, "old", "old", {"people": {"new": wins}})
    [found] = headlines(summary, {"old": "#000000", "new": "#000000"})
    told = {fact.label: fact.words for fact in found.facts}
    assert told.pop("KL") == ""
    assert told == dict.fromkeys(("oracle", "reward", "wins by people", "alignment tax"), "no clear difference")
    write_page(tmp_path / "page.html", "t", summary, results, [], {})
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    words = "".join(Markup(page).words)
    assert "no interval" in words
    assert not re.search(r"\b(inf|nan)\b", page)
    console = Console(width=200, file=io.StringIO())
    console.print(summary_table(summary))
    assert not re.search(r"\b(inf|nan)\b", console.file.getvalue())  # type: ignore[attr-defined]
    new = as_json(summary)["models"]["new"]
    assert [new[name]["high"] for name in ("reward_gain", "tax", "perplexity", "kl")] == [None] * 4


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([-1.4723, -0.3483], ["-1.47", "-0.35"]),
        ([33.02, 8.0], ["33.0", "8.0"]),
        ([0.0, 9.189], ["0", "9.19"]),
        ([0.6331, 0.0937], ["0.633", "0.094"]),
        ([1234.5, 1.0], ["1234", "1"]),
        ([123456.0, 1.0], ["123k", "1"]),
        ([0.00004], ["4e-05"]),
        ([], []),
    ],
)
def test_numbers_that_are_compared_have_the_same_decimals(values: list[float], written: list[str]) -> None:
    assert list(map(same_decimals(values), values)) == written


def test_tax_is_paired_and_needs_the_same_tokens() -> None:
    old, new = result("old", 0.0), result("new", 0.5)
    assert summarise([old, new], "old", None, {}).models["new"].tax == pytest.approx(
        Estimate(0.1, 0.0, 0.5 / 3, 2), abs=1e-9
    )
    new.texts = TextFit(np.array([-3.0, -4.0]), np.array([2, 4]))
    assert summarise([old, new], "old", None, {}).models["new"].tax is None


def test_bars_reach_from_zero_and_whiskers_hold_the_interval() -> None:
    bars = make_bars("t", "", {"a": Estimate(-1.0, -2.0, 0.5, 9), "b": 1.0, "c": None, "d": math.nan})
    assert bars is not None
    first, second = bars.rows
    assert first.x + first.width == pytest.approx(bars.zero)
    assert second.x == pytest.approx(bars.zero)
    assert first.low is not None
    assert first.high is not None
    assert first.low < first.x < bars.zero < first.high
    assert make_bars("t", "", {"a": None}) is None
    assert make_spread("t", {"a": [1.0, 1.0]}) is None


def test_rows_stay_as_long_as_they_are_about_the_same(tmp_path: Path) -> None:
    logs = RowLogs(tmp_path)
    assert not logs.prepare("answers/a", key_of("one"))
    file = logs.open("answers/a")
    file.append({"row": 1})
    file.close()
    with logs.path("answers/a").open("ab") as torn:
        torn.write(b'{"row": 2, "te')
    again = RowLogs(tmp_path)
    assert not again.prepare("answers/a", key_of("one"))
    assert list(again.read("answers/a")) == [{"row": 1}]
    assert again.prepare("answers/a", key_of("two")), "what was there is gone, and that is said"
    assert list(again.read("answers/a")) == []


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_list_of_keys_that_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(BadInput, match="remove it to begin anew"):
        RowLogs(tmp_path)
