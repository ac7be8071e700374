"""Two checkpoints, blindly: from their files to choices, a win rate with its interval, and training data."""

import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rlhf_ray.data.columns import ranking_of
from rlhf_ray.data.file_formats import READERS
from rlhf_ray.data.layouts.reading import own_rows
from tests.browser.site import serving
from tests.browser.test_label_in_browser import (
    LOOK_MS,
    Visit,
    _closed,
    _download,
    _labels,
    _press,
    _settled,
    _shot,
    _train,
    _until,
)
from tests.jobs.ppo_runs import write_rows

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

GOOD, BAD = "很好，推荐购买，第 {} 次了。", "不怎么样，第 {} 次失望。"
PROMPTS = 10


def _side(page: "Page", name: str) -> str:
    place = 0 if name == "left" else 1
    return page.locator(".card .text").nth(place).inner_text()


def _all_of_the_results_is_in_sight_on_a_phone(page: "Page") -> None:
    """Every column of both tables, and nothing that floats over a heading."""
    before = page.viewport_size
    assert before is not None
    page.set_viewport_size({"width": 390, "height": 844})
    page.get_by_role("heading", name="B 的胜率").hover()
    cells = [cell.bounding_box() for cell in page.locator("td").all()]
    assert len(cells) >= 3 * 7 + 4
    assert all(box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in cells)
    assert page.locator("[data-testid=stElementToolbar]:visible").count() == 0
    page.set_viewport_size(before)


def test_choices_between_two_checkpoints(open_page: Visit, tmp_path: Path) -> None:
    for name, text in (("a", BAD), ("b", GOOD)):
        rows = [
            {"prompt": f"{'写一条' if n % 2 else '总结一下'}评价 {n}", "completion": text.format(n)}
            for n in range(PROMPTS)
        ]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    sides = {
        key: {"kind": "file", "path": str(tmp_path / f"{key}.jsonl"), "version": version}
        for key, version in (("a", "checkpoint-17"), ("b", "checkpoint-42"))
    }
    store = tmp_path / "comparison.db"
    with serving("compare", tmp_path, {"store": str(store), "overlap": 0.0, **sides}) as site:
        page = open_page(site.url, "小王")
        page.get_by_role("button", name="随机 prompt").click()
        page.get_by_role("button", name="左边更好").wait_for()
        _settled(page)
        stands: Counter[str] = Counter()
        dice = random.Random(0)
        for number in range(PROMPTS):
            good_is_left = "推荐" in _side(page, "left")
            stands["left" if good_is_left else "right"] += 1
            assert "checkpoint-" not in page.content() + page.locator(".sheet").inner_html()
            page.wait_for_timeout(LOOK_MS)
            if number == 0:
                page.get_by_role("textbox", name="理由（可不填）").fill("更具体")
                _settled(page)
                _shot(page, "comparison.png", height=640)
                page.get_by_role("button", name="左边更好" if good_is_left else "右边更好").click()
            elif number == 1:
                _press(page, "ArrowDown")
            else:
                wins = dice.random() < 0.9
                _press(page, "ArrowLeft" if good_is_left == wins else "ArrowRight")
            _until(lambda done=number + 1: len(_labels(store, "compare")) == done)
            _closed(page).wait_for(state="detached")
        assert min(stands["left"], stands["right"]) >= 1
        # The last choice was a slip.
        labels = _labels(store, "compare")
        assert labels[0].reason == "更具体"
        assert labels[0].ranks == (1, 0)
        assert labels[1].ranks == (0, 0)
        page.get_by_role("tab", name="Results 结果").click()
        page.get_by_role("heading", name="B 的胜率").wait_for()
        _settled(page)
        _shot(page, "comparison_results.png", height=640)
        _all_of_the_results_is_in_sight_on_a_phone(page)
        page.get_by_role("tab", name="Dataset 数据集").click()
        page.get_by_text(f"共 {PROMPTS} 条").wait_for()
        _settled(page)
        with _download(page, "jsonl", tmp_path).open("rb") as stream:
            rows = [row for _, row in READERS[".jsonl"](stream, "x")]  # type: ignore[arg-type]
        winners = {(0, 1): "a", (1, 0): "b", (0, 0): "tie"}
        assert [row["winner"] for row in rows] == [winners[label.ranks] for label in labels]
        decided = [row for row in rows if row["winner"] != "tie"]
        pairs = [ranking_of(one) for row in decided for one in own_rows(row, "compare")]
        assert [pair.responses[0] for pair in pairs] == [row[row["winner"]] for row in decided]
        said = site.stop()
        wins = sum(label.ranks == (1, 0) for label in labels) + 0.5 * sum(label.ranks == (0, 0) for label in labels)
        assert f"b preferred, all: {wins / PROMPTS:.1%} (" in said
        assert "b preferred, summarization:" in said
    _train(tmp_path / "downloaded.jsonl", tmp_path)
