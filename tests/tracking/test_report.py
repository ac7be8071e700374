"""The report holds whatever a model writes, and needs nothing but itself."""

import json
import math
import re
from html.parser import HTMLParser

import pytest
import yaml

from rlhf_ray.tracking.history import History
from rlhf_ray.tracking.records import RecordFile
from rlhf_ray.tracking.report import duration, write_comparison, write_report
from rlhf_ray.tracking.sample_pairs import read_sample_pairs

HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)></td></table></main>",
    '" onmouseover="alert(3)" x=\'',
    "{{ 7 * 7 }}{% raw %}",
    "👨‍👩‍👧 مرحبا \u202e txt.exe \u0000 \u001b[31m \ud800 ]]> --> </style>",
    "长" * 100_000,
    "",
]
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "script", "header", "h1", "h2", "section", "div"),
    *("p", "span", "b", "i", "bdi", "small", "strong", "figure", "figcaption", "svg", "line", "text", "polyline"),
    *("circle", "rect", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "code", "pre", "details", "summary"),
}


class Page(HTMLParser):
    """Collects what a browser would see as markup, and checks that tags close in order."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.words, self.lines, self._open = 0, [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        assert tag in TAGS
        for name, value in attributes:
            assert not name.startswith("on")
            assert name not in ("src", "href")
            if name == "data-lines":
                self.lines.append(json.loads(value))
        self.scripts += tag == "script"
        if tag not in ("meta",):
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in TAGS

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("script", "style"):
            self.words.append(data)


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "<b>run"
    samples = RecordFile(run / "samples.jsonl")
    for step in (0, 5):
        for index, text in enumerate(HOSTILE):
            rewards = {text[:50]: 0.5 * step, "none": None}
            row = {
                "prompt_id": str(index),
                "prompt": text,
                "response": f"{step} {text}",
                "rewards": rewards,
                "why": text,
            }
            samples.append({"step": step, "kind": "evaluation", **row})
    samples.close()
    config = {"name": HOSTILE[0], "api_key": "geheim", "url": "https://me:geheim@host/"}
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return run


def history():
    made = History()
    for step in range(1, 60):
        names = {f"rewards/{text[:60]}/mean": 1.0 for text in HOSTILE if "\ud800" not in text}
        made.add(step, {"reward": step, "loss": math.nan, **names, "sync/logprob_diff": 1e-6, "sync/tolerance": 1e-4})
        made.add(step, {"sync/send": 0.05, "time/generate": 1.0, "time/</svg><script>": 2.0, "step_time": 3.0})
    return made


def test_hostile_text_stays_text(folder):
    write_report(folder, history(), folder / "report.html")
    content = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(content)
    assert page.scripts == 1
    words = "".join(page.words)
    assert "<script>alert(1)</script>" in words
    assert "{{ 7 * 7 }}" in words
    assert "👨‍👩‍👧" in words
    assert not set("\u202e\u0000\u001b") & set(content)
    assert "geheim" not in content
    assert "98,002 more characters" in words
    assert len(content) < 1_000_000
    assert "http" not in re.sub(r"http-equiv|https://\[hidden\]@host", "", content)
    assert "not a number" in words
    assert "verified" in words
    assert "50.0 ms" in words


def test_values_under_the_pointer_are_those_that_were_logged(folder):
    write_report(folder, history(), folder / "report.html")
    lines = [
        line for chart in Page((folder / "report.html").read_text(encoding="utf-8")).lines for line in chart["lines"]
    ]
    reward = next(line for line in lines if line["label"] == "reward")
    assert reward["steps"] == reward["values"] == list(range(1, 60))


def test_an_empty_folder_still_has_a_report(tmp_path):
    write_report(tmp_path, History(), tmp_path / "report.html")
    assert "No metrics yet." in "".join(Page((tmp_path / "report.html").read_text(encoding="utf-8")).words)


def test_a_sync_over_its_tolerance_is_not_called_verified(tmp_path):
    made = history()
    made.add(60, {"sync/logprob_diff": 1e-3})
    write_report(tmp_path, made, tmp_path / "report.html")
    words = "".join(Page((tmp_path / "report.html").read_text(encoding="utf-8")).words)
    assert "over tolerance" in words
    assert "verified" not in words.replace("verified syncs", "")


def test_evaluation_samples_are_paired_by_prompt(folder):
    pairs = read_sample_pairs(folder)
    assert len(pairs) == len(HOSTILE)
    for pair in pairs:
        assert pair.before is not None
        assert pair.after is not None
        assert (pair.before.step, pair.after.step) == (0, 5)
    assert dict(pairs[2].after.facts)["none"] == "none"


def test_without_evaluation_first_and_last_step_are_shown(tmp_path):
    samples = RecordFile(tmp_path / "samples.jsonl")
    for step in range(1, 5):
        for index in range(2):
            samples.append(
                {"step": step, "kind": "train", "prompt": [{"role": "user", "content": "hi"}], "response": f"{index}"}
            )
    samples.close()
    pairs = read_sample_pairs(tmp_path)
    assert [(pair.before.step if pair.before else None, pair.after.step if pair.after else None) for pair in pairs] == [
        (1, None),
        (1, None),
        (None, 4),
        (None, 4),
    ]
    assert pairs[0].prompt == "user: hi"


def words_of(folder):
    write_report(folder, history(), folder / "report.html")
    return "".join(Page((folder / "report.html").read_text(encoding="utf-8")).words)


def test_answers_to_different_prompts_are_no_before_and_after(tmp_path):
    rows = [{"step": step, "kind": "train", "prompt": f"p{step}", "response": f"r{step}"} for step in (1, 2)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = words_of(tmp_path)
    assert "before and after" not in words
    assert all(text in words for text in ("p1", "r1", "p2", "r2"))


def test_prompts_that_are_shown_are_paired_as_held_out_ones_are(tmp_path):
    rows = [
        {"step": step, "kind": kind, "prompt": prompt, "response": f"{prompt} at {step}"}
        for step in (0, 1, 9)
        for kind, prompts in (("shown", ["p", "q"]), ("train", ["other"]))
        for prompt in prompts
        if kind == "train" or step != 1
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [(pair.prompt, pair.before.response, pair.after.response) for pair in read_sample_pairs(tmp_path)]
    assert found == [("p", "p at 0", "p at 9"), ("q", "q at 0", "q at 9")]
    assert "before and after" in words_of(tmp_path)


def test_a_source_named_as_the_sum_is_shown_once_where_it_is_the_sum(tmp_path):
    rows = [
        {"step": 1, "kind": "evaluation", "prompt": prompt, "response": "r", "rewards": rewards, "reward": 2.0}
        for prompt, rewards in [("alone", {"reward": 2.0}), ("weighed", {"reward": 5.0})]
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone, weighed = (pair.before.facts for pair in read_sample_pairs(tmp_path))
    assert alone == [("reward", "2")]
    assert weighed == [("reward", "5"), ("reward", "2")]


def test_comparison_escapes_names_of_runs(tmp_path):
    write_comparison({"<script>a": history(), "b": History()}, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.scripts == 1
    assert "<script>a" in "".join(page.words)


def test_duration():
    assert [duration(seconds) for seconds in (0.4, 61, 3600 * 2 + 60 * 9)] == ["0 s", "1 min 1 s", "2 h 9 min"]
