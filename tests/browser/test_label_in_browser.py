"""From an empty start to a saved, exported and trained-on data set, as an annotator in a browser gets there."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rlhf_ray import cli
from rlhf_ray.data.columns import ranking_of
from rlhf_ray.data.file_formats import READERS
from rlhf_ray.feedback.labelling.database import Database
from rlhf_ray.feedback.labelling.labels import Label, Labels
from rlhf_ray.models.tiny import build_tiny
from tests.browser.site import IMAGES, Site, serving
from tests.feedback.labelling_cases import HOSTILE
from tests.jobs.ppo_runs import write_config, write_rows

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

REVIEWS = [
    {
        "prompt": f"请写一条关于{product}的评价。",
        "responses": [
            f"{product}质量很好，已经是第二次购买了，家人都很喜欢，下次还会再来。",
            f"{product}一般般吧，凑合能用。",
            "The box was broken and it arrived late.",
            f"非常失望，{product}和描述的完全不一样，不推荐购买。",
        ],
    }
    for product in ("耳机", "雨伞", "茶叶", "书包", "台灯", "键盘")
]

Visit = Callable[..., "Page"]

LOOK_MS = 300
"""A person's look at a new sheet, before which no choice is taken."""


def _labels(store: Path, task: str = "label") -> list[Label]:
    database = Database(str(store))
    try:
        return list(Labels(database, task).all())  # type: ignore[arg-type]
    finally:
        database.close()


def _until(check: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def _settled(page: "Page") -> None:
    """Wait until the script has run and the page shows what it said."""
    page.wait_for_timeout(150)
    _at_rest(page).wait_for()


def _at_rest(page: "Page") -> "Locator":
    return page.locator("[data-testid='stApp'][data-test-script-state='notRunning']")


def _order(page: "Page") -> str:
    return page.locator("output").inner_text()


def _press(page: "Page", *keys: str) -> None:
    """Press keys one after the other, without a look at what the page does."""
    for key in keys:
        page.keyboard.press(key)


def _next_sheet(page: "Page") -> None:
    """Wait until the sheet is open, with nothing on it."""
    page.locator(".sheet[aria-busy=false] output").get_by_text(re.compile(r"^\?")).wait_for()


def _closed(page: "Page") -> "Locator":
    """The sheet between an act and what comes of it."""
    return page.locator(".sheet[aria-busy=true]")


def _draw(page: "Page") -> None:
    page.get_by_role("button", name="随机 prompt").click()
    page.get_by_text("句子 A").first.wait_for()
    _settled(page)


def _download(page: "Page", kind: str, folder: Path) -> Path:
    _settled(page)  # each run of the script makes the button's file anew, and refuses the one before
    with page.expect_download() as waiting:
        page.get_by_role("button", name=kind.upper(), exact=True).click()
    path = folder / f"downloaded.{kind}"
    waiting.value.save_as(path)
    return path


@pytest.fixture
def site(tmp_path: Path):
    write_rows(tmp_path / "answers.jsonl", REVIEWS)
    settings = {
        "store": str(tmp_path / "labels.db"),
        "answers": {"kind": "file", "path": str(tmp_path / "answers.jsonl"), "version": "sft"},
        "overlap": 1.0,
    }
    with serving("label", tmp_path, settings) as site:
        yield site


def test_an_annotators_day(site: Site, open_page: Visit, tmp_path: Path) -> None:
    store = tmp_path / "labels.db"
    page = open_page(site.url, "小王")
    _draw(page)
    _rank_by_keyboard(page, store)
    _rank_by_mouse(page, store)
    _undo_and_save_again(page, store)
    _go_on_after_a_reload(page, store)
    _share_with_another(open_page(site.url, "Li Lei"), store)
    _correct_the_data_set(page, store)
    _read_back_the_files(page, store, tmp_path)
    assert page.evaluate("window.hacked") is None
    assert "labels are in" in site.stop()
    # Rank lists are trained on where reward models are tested.
    _train(tmp_path / "downloaded.jsonl", tmp_path)


def _rank_by_keyboard(page: "Page", store: Path) -> None:
    """An incomplete ranking is refused, whatever the way to the button; then answers from best to worst, and on."""
    _press(page, "1")
    page.get_by_role("button", name="存储当前排序").click()
    page.get_by_text("请完成排序后再存储！").wait_for()
    assert _labels(store) == []
    _press(page, "3", "4", "2")
    assert _order(page) == "A > C > D > B"
    _press(page, "Control+Enter")
    saved = page.get_by_text("已存储。")
    saved.wait_for()
    (first,) = _labels(store)
    assert [first.ranks[place] for place in first.shown] == [0, 3, 1, 2]
    saved.wait_for(state="hidden")


def _rank_by_mouse(page: "Page", store: Path) -> None:
    """With a conflict that names its holder, ties, marks and a reason."""
    cards = page.locator(".card")

    def choose(number: int, scale: str, value: str) -> None:
        group = cards.nth(number).get_by_role("group", name=scale)
        group.get_by_role("button", name=value, exact=True).click()

    for number, rank in enumerate("1224"):
        choose(number, "排名", rank)
    cards.nth(2).get_by_text("第 2 名已被句子 B 占用").wait_for()
    page.get_by_role("button", name="存储当前排序").click()
    page.get_by_role("status").filter(has_text="第 2 名已被句子 B 占用").wait_for()
    _shot(page, "labelling_conflict.png")
    assert len(_labels(store)) == 1
    page.get_by_role("switch", name="允许并列").click()
    page.get_by_text("与句子 B 并列第 2 名").wait_for()
    choose(3, "标记", "有害")
    choose(0, "质量", "6")
    page.get_by_role("textbox", name="理由（可不填）").fill(
        "B 和 C 差不多 <script>window.hacked=1</script>\n第二行\t制表符"
    )
    assert _order(page) == "A > B = C > D"
    _shot(page, "labelling.png")
    page.get_by_role("button", name="存储当前排序").click()
    _until(lambda: len(_labels(store)) == 2)
    second = _labels(store)[-1]
    assert [second.ranks[place] for place in second.shown] == [0, 1, 1, 2]
    assert [second.overall[place] for place in second.shown] == [6, None, None, None]
    assert [second.flags[place] for place in second.shown] == [(), (), (), ("harmful",)]
    assert second.reason == "B 和 C 差不多 <script>window.hacked=1</script>\n第二行\t制表符"
    assert second.versions == ("sft",) * 4
    _settled(page)


def _undo_and_save_again(page: "Page", store: Path) -> None:
    """What was chosen is still there."""
    _press(page, "z")
    page.get_by_text("已撤销").wait_for()
    assert len(_labels(store)) == 1
    assert _order(page) == "A > B = C > D"
    page.get_by_role("button", name="存储当前排序").click()
    _until(lambda: len(_labels(store)) == 2)
    _settled(page)


def _go_on_after_a_reload(page: "Page", store: Path) -> None:
    """Half a ranking outlives the closing of the window; then the rest, until nothing is left."""
    _press(page, "2", "1")
    half = _order(page)
    _settled(page)
    page.reload()
    page.get_by_test_id("stTabs").wait_for()
    _settled(page)
    assert _order(page) == half == "B > A ? C, D"
    _press(page, "3", "4", "Control+Enter")
    for count in (4, 5):
        _next_sheet(page)
        _press(page, "1", "2", "3", "4", "Control+Enter")
        _until(lambda done=count: len(_labels(store)) == done)
    _next_sheet(page)
    page.wait_for_timeout(LOOK_MS)
    _press(page, "s")
    page.get_by_text("没有可标注的 prompt 了").wait_for()


def _share_with_another(other: "Page", store: Path) -> None:
    """A second annotator, in English, gets the prompts of the overlap."""
    other.get_by_text("English", exact=True).click()
    _settled(other)
    other.get_by_role("button", name="Random prompt").click()
    other.get_by_text("Answer A").first.wait_for()
    _settled(other)
    for number in range(4):
        _press(other, "1", "2", "3", "4", "Control+Enter")
        _until(lambda done=6 + number: len(_labels(store)) == done)
        _next_sheet(other)


def _correct_the_data_set(page: "Page", store: Path) -> None:
    """Look, agreement, delete."""
    page.get_by_role("tab", name="Dataset 数据集").click()
    page.get_by_text("共 9 条").wait_for()
    page.get_by_text("两两一致率").wait_for()
    _settled(page)
    _shot(page, "labelling_dataset.png", height=760)
    _choose_first_row(page)
    page.get_by_role("button", name="删除这条标注").click()
    page.get_by_role("button", name="确认删除").click()
    _until(lambda: len(_labels(store)) == 8)
    page.get_by_text("已删除").wait_for()


def _read_back_the_files(page: "Page", store: Path, folder: Path) -> None:
    """Each kind of file holds what the store holds; a file of tab-separated lists leaves ties out."""
    labels = _labels(store)
    for kind, count in (("jsonl", 8), ("parquet", 8), ("tsv", 7)):
        path = _download(page, kind, folder)
        with path.open("rb") as stream:
            back = [ranking_of(row) for _, row in READERS[f".{kind}"](stream, path.name)]  # type: ignore[arg-type]
        assert len(back) == count
        if kind != "tsv":
            assert [(r.prompt, tuple(r.responses), tuple(r.ranks)) for r in back] == [
                (label.prompt, label.answers, label.ranks) for label in labels
            ]


def _choose_first_row(page: "Page") -> None:
    """Tables are painted on a canvas, under what scrolls them; the first column of a row holds its box."""
    canvas = page.get_by_test_id("stDataFrame").locator("canvas").first
    canvas.click(position={"x": 16, "y": 52}, force=True)
    page.get_by_role("button", name="保存修改").wait_for()
    _settled(page)


def _train(data: Path, folder: Path) -> None:
    """A reward model of two steps on an export."""
    base = folder / "base"
    if not base.exists():
        build_tiny(base, [row["responses"][0] for row in REVIEWS], hidden=32, layers=1, heads=1, vocab_size=280)
    run = folder / f"reward-{data.suffix[1:]}"
    settings: dict[str, Any] = {
        "model": {"path": str(base), "dtype": "float32"},
        "data": {"path": str(data)},
        "output": str(run),
        "batch_size": 4,
        "epochs": 1,
        "tracking": {"wandb": "off", "tensorboard": False},
    }
    assert cli.main(["reward", str(write_config(folder / "reward.yaml", settings))]) == 0
    assert (run / "final" / "model.safetensors").is_file()
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert any("loss" in row for row in losses)


def _shot(page: "Page", name: str, height: int = 900) -> None:
    """A picture for the docs, without what differs from run to run."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    page.set_viewport_size({"width": 1280, "height": height})
    page.wait_for_timeout(400)
    page.screenshot(path=IMAGES / name, scale="css")
    page.set_viewport_size({"width": 1280, "height": 900})


def test_hostile_texts_are_shown_as_text_and_come_back_through_every_file(open_page: Visit, tmp_path: Path) -> None:
    write_rows(tmp_path / "answers.jsonl", [{"prompt": text, "responses": [text, "other"]} for text in HOSTILE])
    settings = {
        "store": str(tmp_path / "labels.db"),
        "answers": {"kind": "file", "path": str(tmp_path / "answers.jsonl")},
        "overlap": 0.0,
    }
    with serving("label", tmp_path, settings) as site:
        page = open_page(site.url, "<b>'; DROP TABLE labels; --")
        dialogs: list[str] = []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        _draw(page)
        for number, _ in enumerate(HOSTILE):
            page.get_by_text("句子 A").first.wait_for()
            _press(page, "1", "2")
            page.get_by_role("textbox", name="理由（可不填）").fill(HOSTILE[0])
            page.get_by_role("button", name="存储当前排序").click()
            _until(lambda done=number + 1: len(_labels(tmp_path / "labels.db")) == done)
            _closed(page).wait_for(state="detached")
        page.get_by_role("tab", name="Dataset 数据集").click()
        page.get_by_text(f"共 {len(HOSTILE)} 条").wait_for()
        _settled(page)
        assert page.evaluate("window.hacked") is None
        assert dialogs == []
        assert page.locator("script:has-text('hacked')").count() == 0
        stored = _labels(tmp_path / "labels.db")
        assert sorted(label.prompt for label in stored) == sorted(HOSTILE)  # type: ignore[type-var]
        for kind in ("jsonl", "parquet", "tsv"):
            with _download(page, kind, tmp_path).open("rb") as stream:
                back = [ranking_of(row) for _, row in READERS[f".{kind}"](stream, "x")]  # type: ignore[arg-type]
            if kind == "tsv":
                whole = [
                    [f"{label.prompt}{text}" for _, text in sorted(zip(label.ranks, label.answers, strict=True))]
                    for label in stored
                ]
                assert [list(ranking.responses) for ranking in back] == whole
            else:
                assert [(r.prompt, tuple(r.responses)) for r in back] == [(x.prompt, x.answers) for x in stored]


def test_two_clicks_at_once_are_one_label(site: Site, open_page: Visit, tmp_path: Path) -> None:
    page = open_page(site.url, "anna")
    _draw(page)
    _press(page, "1", "2", "3", "4")
    page.get_by_role("button", name="存储当前排序").dblclick()
    _until(lambda: len(_labels(tmp_path / "labels.db")) == 1)
    _settled(page)
    page.wait_for_timeout(1000)
    assert len(_labels(tmp_path / "labels.db")) == 1
    assert page.get_by_text("句子 A").first.is_visible()


def test_a_page_for_others_asks_for_the_token(open_page: Visit, tmp_path: Path) -> None:
    write_rows(tmp_path / "answers.jsonl", REVIEWS)
    settings = {
        "store": str(tmp_path / "labels.db"),
        "answers": {"kind": "file", "path": str(tmp_path / "answers.jsonl")},
        "host": "0.0.0.0",
        "token_file": str(tmp_path / "token"),
    }
    with serving("label", tmp_path, settings) as site:
        token = (tmp_path / "token").read_text().strip()
        stranger = open_page(site.url)
        stranger.get_by_text("This page needs the token").wait_for()
        stranger.locator("input").fill("guess")
        stranger.get_by_role("button", name="OK").click()
        stranger.get_by_text("This page needs the token").wait_for()
        stranger.locator("input").fill(token)
        stranger.get_by_role("button", name="OK").click()
        stranger.get_by_text("标注者姓名").wait_for()
        assert token not in stranger.url
        assert token in site.stop()
