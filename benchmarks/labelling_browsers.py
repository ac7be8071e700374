"""Annotators in real browsers, for `benchmarks.labelling_load`."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.labelling_load import ANSWERS, Tally
from tests.browser.site import FLAGS, NO_CHROMIUM, find_chromium, serving
from tests.jobs.ppo_runs import write_rows


@contextmanager
def page_over(store: str, folder: Path) -> Iterator[str]:
    """Serve a page over a store, as `rlhf label` shows it, and yield its URL."""
    answers = write_rows(folder / "answers.jsonl", [{"prompt": "one more", "responses": ["a", "b"]}])
    settings = {"store": store, "answers": {"kind": "file", "path": str(answers)}}
    with serving("label", folder, settings) as site:
        yield site.url


def browse(url: str, name: str, period: float, seconds: float, results: Any) -> None:
    """Let one annotator work by keyboard in a browser of its own; a click is done when the page shows what it did."""
    from playwright.sync_api import sync_playwright

    tally = Tally(name)
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit(NO_CHROMIUM)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            page = browser.new_page()
            page.goto(f"{url}/?name={name}")
            page.get_by_role("button", name="随机 prompt").click()
            _wait_for(page, "?")
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                began = time.monotonic()
                _click(page, tally)
                tally.clicks += 1
                tally.seconds.append(time.monotonic() - began)
                page.wait_for_timeout(max(0.0, 1000 * (began + period - time.monotonic())))
            browser.close()
    except Exception as error:
        tally.errors.append(repr(error))
    results.put([tally])


def _wait_for(page: Any, order: str) -> None:
    """Wait until the order on the page begins so, on a sheet that takes keys."""
    page.locator(".sheet[aria-busy=false] output").get_by_text(re.compile(f"^{re.escape(order)}")).wait_for()


def _click(page: Any, tally: Tally) -> None:
    """Press the next key: the number of an answer, or the one that saves."""
    done = tally.clicks % (ANSWERS + 1)
    if done < ANSWERS:
        page.keyboard.press(str(done + 1))
        _wait_for(page, " > ".join("AB"[: done + 1]))
        return
    page.keyboard.press("Control+Enter")
    # The next sheet has no order yet.
    _wait_for(page, "?")
    tally.saved.append(str(len(tally.saved)))
