"""A person teaches an agent: a run that waits for choices, its page in a browser, and what came of them."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from examples.online_preferences.run_name import run_name
from examples.online_preferences.settings import Settings
from rlhf_ray.feedback.clips.store import ClipStore
from rlhf_ray.feedback.labelling.database import Database
from tests.browser.site import IMAGES, START_SECONDS, free_port
from tests.browser.test_label_in_browser import LOOK_MS, Visit, _closed, _settled, _until

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
CHOSEN = {"ArrowLeft": "left", "ArrowRight": "right", "ArrowDown": "equal", "s": "cannot_tell"}


@pytest.fixture
def teaching(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Settings, str]]:
    """A run of three rounds that asks people 16 times, as a user starts it."""
    port = free_port()
    given = {"output": str(tmp_path / "runs"), "judge": "people", "seeds": [0], "rewards": ["preferences"]}
    given |= {"rounds": 3, "episodes": 2, "comparisons": 16, "fit_steps": 5, "evaluation_episodes": 2, "port": port}
    settings = Settings.model_validate(given).one("preferences", 0)
    options = [f"--{name}={json.dumps(value) if isinstance(value, list) else value}" for name, value in given.items()]
    command = [sys.executable, "-m", "examples.online_preferences", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    log = tmp_path / "run.log"
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=stream, stderr=stream, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(url):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
            time.sleep(0.2)
        yield process, settings, url
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/_stcore/health", timeout=2).close()
    except (OSError, urllib.error.URLError):
        return False
    return True


def test_a_person_teaches_an_agent(
    teaching: tuple[subprocess.Popen[str], Settings, str], open_page: Visit, tmp_path: Path
) -> None:
    process, settings, url = teaching
    page = open_page(url, "小王", height=820)
    database = Database(settings.page().store)
    store = ClipStore(database, run_name(settings))
    _first_clips(page, store)
    keys = iter(list(CHOSEN) * 10)
    while process.poll() is None:
        if page.get_by_role("button", name="左边更好").count() and store.waiting():
            done = len(store.chosen())
            page.wait_for_timeout(LOOK_MS)
            page.keyboard.press(next(keys))
            _until(lambda done=done: len(store.chosen()) > done or process.poll() is not None)  # type: ignore[misc]
            # The page ends with its run, which the last choice ends: then no other clips come.
            _until(lambda: not _closed(page).count() or process.poll() is not None)
        time.sleep(0.1)
    said = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert process.returncode == 0, said
    chosen = store.chosen()
    assert len(chosen) >= 12
    assert [choice for _, choice in chosen][3:11] == list(CHOSEN.values()) * 2
    assert "seed 0: return before" in said
    assert not _answers(url), "the page ends with its run"
    database.close()


def _first_clips(page: "Page", store: ClipStore) -> None:
    """Clips move; a click, a slip that is taken back, the other language."""
    left = page.get_by_role("img", name="左边")
    # The run has to begin, and its agent to act, before there are any.
    left.wait_for(timeout=START_SECONDS * 1000)
    page.get_by_text("哪一段里摆杆更接近直立且静止？").wait_for()
    _settled(page)
    assert _moves(page, left)
    IMAGES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=IMAGES / "clips.png")
    page.get_by_role("button", name="右边更好").click()
    _until(lambda: len(store.chosen()) == 1)
    _looked(page)
    page.get_by_role("button", name="无法判断").click()
    _until(lambda: len(store.chosen()) == 2)
    _looked(page)
    page.keyboard.press("z")
    page.get_by_text("已撤销").wait_for()
    assert [choice for _, choice in store.chosen()] == ["right"]
    page.get_by_text("English", exact=True).click()
    page.get_by_role("button", name="Equally good").wait_for()
    _looked(page)
    page.get_by_role("button", name="Equally good").click()
    _until(lambda: len(store.chosen()) == 2)
    page.get_by_text("中文", exact=True).click()
    page.get_by_role("button", name="左边更好").wait_for()
    _looked(page)
    # The switch that was clicked leaves the arrow keys to the clips.
    page.keyboard.press("ArrowLeft")
    _until(lambda: len(store.chosen()) == 3)
    _settled(page)


def _looked(page: "Page") -> None:
    """As long as a person needs to see new clips: what comes earlier was meant for those before."""
    _settled(page)
    page.wait_for_timeout(LOOK_MS)


def _moves(page: "Page", picture: "Locator") -> bool:
    """Whether a picture looks different at several moments."""
    seen = set()
    for _ in range(6):
        seen.add(picture.screenshot())
        page.wait_for_timeout(170)
    return len(seen) > 2
