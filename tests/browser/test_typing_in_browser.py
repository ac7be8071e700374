"""Whoever types like a person is understood: no key is lost on a busy machine, whatever has the focus."""

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rlhf_ray.feedback.app import sheet_view
from rlhf_ray.feedback.labelling.ranking import conflicts, order_line
from tests.browser.site import IMAGES, Site, serving
from tests.browser.test_label_in_browser import (
    LOOK_MS,
    REVIEWS,
    Visit,
    _closed,
    _draw,
    _labels,
    _next_sheet,
    _order,
    _press,
    _until,
)
from tests.jobs.ppo_runs import write_rows

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

PACES_MS = (60, 120, 300)
"""Between two keys: a hasty, a fast and an ordinary typist."""
ROUNDS = 3
PHONE = (390, 844)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Path]]:
    folder = tmp_path_factory.mktemp("typing")
    rows = [row | {"prompt": f"{number}. {row['prompt']}"} for number in range(10) for row in REVIEWS]
    write_rows(folder / "answers.jsonl", rows)
    settings = {
        "store": str(folder / "labels.db"),
        "answers": {"kind": "file", "path": str(folder / "answers.jsonl")},
        "overlap": 1.0,
        "overlap_annotators": 9,
    }
    with serving("label", folder, settings) as site:
        yield site, folder / "labels.db"


@pytest.fixture
def busy() -> Iterator[None]:
    """Two loops beside the page, as many as the machine has cores."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


def _mine(store: Path, name: str) -> list[Any]:
    return [label for label in _labels(store) if label.annotator == name]


@pytest.mark.usefixtures("busy")
def test_ranks_typed_at_a_persons_speed_are_those_that_are_saved(site: tuple[Site, Path], open_page: Visit) -> None:
    server, store = site
    page = open_page(server.url, "typist")
    outside: list[str] = []
    page.on("request", lambda request: outside.append(request.url))
    _draw(page)
    dice = random.Random(0)
    typed = []
    for pace in PACES_MS:
        for _ in range(ROUNDS):
            order = dice.sample("1234", 4)
            for key in order:
                page.keyboard.press(key)
                page.wait_for_timeout(pace)
            assert _order(page) == " > ".join("ABCD"[int(key) - 1] for key in order), f"{pace} ms"
            page.keyboard.press("Control+Enter")
            typed.append(order)
            _until(lambda: len(_mine(store, "typist")) == len(typed))
            _next_sheet(page)
    saved = [[label.ranks[place] for place in label.shown] for label in _mine(store, "typist")]
    assert saved == [[order.index(str(number + 1)) for number in range(4)] for order in typed]
    assert all(url.startswith((server.url, server.url.replace("http", "ws"), "blob:", "data:")) for url in outside)


def test_keys_reach_the_sheet_whatever_has_the_focus(site: tuple[Site, Path], open_page: Visit) -> None:
    server, store = site
    page = open_page(server.url, "mouse and keys")
    _draw(page)
    card = page.locator(".card").first
    places: dict[str, Callable[[], None]] = {
        "quality": lambda: card.get_by_role("group", name="质量").get_by_role("button", name="5").click(),
        "a flag": lambda: card.get_by_role("button", name="有害").click(),
        "the language": lambda: page.get_by_text("中文", exact=True).click(),
        "a tab": lambda: page.get_by_role("tab", name="Label 标注").click(),
        "ties": lambda: page.get_by_role("switch", name="允许并列").click(),
        "the reason": lambda: page.get_by_role("textbox", name="理由（可不填）").fill("4321 因为 s z n"),
    }
    for count, (place, focus) in enumerate(places.items(), 1):
        if place == "the reason":
            _press(page, "2", "1", "4", "3")
            focus()
        else:
            focus()
            _press(page, "2", "1", "4", "3")
        assert _order(page) == "B > A > D > C", place
        _press(page, "Control+Enter")
        _until(lambda done=count: len(_mine(store, "mouse and keys")) == done)
        _next_sheet(page)
    last = _mine(store, "mouse and keys")[-1]
    assert last.reason == "4321 因为 s z n", "letters of a reason are no keys, and the last of them are saved too"


def test_a_key_counts_once_and_for_the_sheet_that_was_seen(site: tuple[Site, Path], open_page: Visit) -> None:
    server, store = site
    page = open_page(server.url, "heavy finger")
    _draw(page)
    page.keyboard.down("3")
    for _ in range(3):
        page.keyboard.down("3")
    page.keyboard.up("3")
    assert _order(page) == "C ? A, B, D"
    _press(page, "1", "2", "4", "Control+Enter", "Control+Enter", "4", "3")
    _until(lambda: len(_mine(store, "heavy finger")) == 1)
    _closed(page).wait_for(state="detached")
    # Nobody has seen the next sheet when its keys come in the same breath as those that saved the last.
    assert _order(page) == "? A, B, C, D"
    _press(page, "1", "s", "s")
    assert _order(page).startswith("A ?")


def test_the_page_fits_a_phone(site: tuple[Site, Path], open_page: Visit) -> None:
    server, store = site
    page = open_page(server.url, "phone", *PHONE)
    page.get_by_role("button", name="随机 prompt").wait_for()
    page.wait_for_timeout(LOOK_MS)
    _picture(page, "phone_empty.png")
    _draw(page)
    for number in (2, 0, 3, 1):
        button = page.locator(".card").nth(number).locator(".next")
        button.scroll_into_view_if_needed()
        box = button.bounding_box()
        assert box is not None
        assert box["height"] >= 40, "a finger hits it"
        button.click()
    assert _order(page) == "C > A > D > B"
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    _picture(page, "phone.png")
    save = page.get_by_role("button", name="存储当前排序")
    edge = save.bounding_box()
    assert edge is not None
    assert edge["y"] + edge["height"] <= PHONE[1], "what is pressed most is in sight"
    save.click()
    _until(lambda: len(_mine(store, "phone")) == 1)
    _next_sheet(page)
    top = page.locator(".prompt").bounding_box()
    assert top is not None
    assert 0 <= top["y"] < PHONE[1] / 2, "the next prompt begins at its beginning"


def test_nothing_typed_is_lost_when_the_page_is_left_at_once(site: tuple[Site, Path], open_page: Visit) -> None:
    server, _ = site
    page = open_page(server.url, "in a hurry")
    _draw(page)
    reason = page.get_by_role("textbox", name="理由（可不填）")
    written = ""
    for leave in (page.reload, lambda: (page.goto("about:blank"), page.goto(f"{server.url}/?name=in a hurry"))):
        _press(page, "2", "r")
        for letter in f"{written and '、'}写到最后一个字":
            page.keyboard.insert_text(letter)
            written += letter
        leave()
        _open(page).wait_for()
        assert reason.input_value() == written
    assert _order(page).startswith("?"), "the key that named an answer and took it back again"


def test_keys_alone_do_all(site: tuple[Site, Path], open_page: Visit) -> None:
    server, store = site
    page = open_page(server.url)
    page.locator("[data-testid=stForm] input:focus").wait_for()
    page.keyboard.type("keys")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="随机 prompt").wait_for()
    page.keyboard.press("n")
    _open(page).wait_for()
    order = _order(page)
    page.keyboard.press("n")
    page.get_by_role("status").filter(has_text="请先完成或跳过").wait_for()
    assert _order(page) == order
    _press(page, "1", "3", "2", "4")
    # The answer named last, from there the next: D, A, B; there the second flag.
    _press(page, "f", "f", "f", "ArrowRight", "Space")
    # From an answer's flags to its quality, and on to the next: B, C.
    _press(page, "q", "q", *["ArrowRight"] * 5, "Enter")
    _press(page, "r")
    page.keyboard.type("fq r 1234")
    assert _tabs_from_the_sheet_to_the_reason(page) <= 20
    _press(page, "Control+Enter")
    _until(lambda: len(_mine(store, "keys")) == 1)
    (label,) = _mine(store, "keys")
    assert [label.ranks[place] for place in label.shown] == [0, 2, 1, 3]
    assert [label.flags[place] for place in label.shown] == [(), ("private",), (), ()]
    assert [label.overall[place] for place in label.shown] == [None, None, 6, None]
    assert label.reason == "fq r 1234"


def _tabs_from_the_sheet_to_the_reason(page: "Page") -> int:
    page.locator(".sheet").focus()
    for count in range(1, 90):
        page.keyboard.press("Tab")
        if page.locator("textarea:focus").count():
            return count
    raise AssertionError("the reason is not reached")


def _open(page: "Page") -> "Locator":
    """A sheet with answers that takes keys."""
    return page.locator(".sheet.rank[aria-busy=false] output")


LONG = "很长的一段话。\n" * 120


@pytest.fixture
def nine(tmp_path: Path) -> Iterator[Site]:
    """As many answers as there may be, and texts longer than a screen."""
    write_rows(tmp_path / "answers.jsonl", [{"prompt": LONG, "responses": [f"{n}. {LONG}" for n in range(9)]}] * 2)
    settings = {
        "store": str(tmp_path / "labels.db"),
        "answers": {"kind": "file", "path": str(tmp_path / "answers.jsonl")},
        "answers_per_prompt": 9,
    }
    with serving("label", tmp_path, settings) as site:
        yield site


def test_nine_long_answers_on_a_phone(nine: Site, open_page: Visit) -> None:
    page = open_page(nine.url, None, *PHONE)
    page.get_by_text("English", exact=True).click()
    page.get_by_text("Annotator's name").wait_for()
    page.get_by_role("textbox").first.fill("phone")
    page.get_by_role("textbox").first.press("Enter")
    page.get_by_text("中文", exact=True).click()
    page.get_by_role("button", name="随机 prompt").click()
    _open(page).wait_for()
    page.wait_for_timeout(LOOK_MS)
    _picture(page, "phone_nine.png")
    for scale in ("排名", "质量"):
        for button in page.locator(".card").first.get_by_role("group", name=scale).get_by_role("button").all():
            box = button.bounding_box()
            assert box is not None
            assert min(box["width"], box["height"]) >= 40, "a finger hits it"
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    _more_follows_and_is_shown(page)
    page.evaluate("document.scrollingElement.scrollTo(0, 1e6)")
    save = page.get_by_role("button", name="存储当前排序")
    before = save.bounding_box()
    save.click()
    page.get_by_text("请完成排序后再存储！").wait_for()
    assert save.bounding_box() == before, "no button moves when something is said"


def _more_follows_and_is_shown(page: "Page") -> None:
    """A text that goes on below its box says so until its end is seen."""
    box = page.locator(".prompt .text")
    more = page.locator(".prompt").get_by_role("button", name="显示全文")
    assert more.is_visible()
    assert "gradient" in box.evaluate("box => getComputedStyle(box).maskImage")
    box.evaluate("box => box.scrollTo(0, box.scrollHeight)")
    page.locator(".prompt .reading:not(.follows)").wait_for()
    assert box.evaluate("box => getComputedStyle(box).maskImage") == "none"
    more.click()
    assert box.evaluate("box => box.scrollHeight - box.clientHeight") == 0
    page.locator(".prompt").get_by_role("button", name="收起").click()
    assert box.evaluate("box => box.scrollHeight - box.clientHeight") > 0


def _picture(page: "Page", name: str) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(400)
    page.screenshot(path=IMAGES / name)


def test_the_browsers_rules_of_ranking_are_the_servers(browser: "Browser") -> None:
    rules = Path(sheet_view.__file__).with_name("browser") / "ranking.js"
    dice = random.Random(0)
    cases = [
        [dice.choice([None, *range(1, count + 1)]) for _ in range(count)] for count in range(2, 10) for _ in range(60)
    ]
    page = browser.new_page()
    try:
        found = page.evaluate(
            """async ([source, cases]) => {
              const rules = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
              return cases.map((ranks) => [rules.orderLine(ranks), rules.holders(ranks), rules.nextRank(ranks)]);
            }""",
            [rules.read_text(encoding="utf-8"), cases],
        )
    finally:
        page.close()
    for ranks, (line, holders, following) in zip(cases, found, strict=True):
        places = range(len(ranks))
        assert line == order_line(ranks, "ABCDEFGHI"[: len(ranks)]), ranks
        held = {clash.place: clash.holder for clash in conflicts(ranks, places)}
        assert holders == [held.get(place) for place in places], ranks
        free = [rank for rank in range(1, len(ranks) + 1) if rank not in ranks]
        assert following == (free[0] if free else None), ranks
