"""Pages of runs and of comparisons on a phone: nothing is out of sight without a sign."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from rlhf_ray.evaluation.page import ShownVerdict
from rlhf_ray.evaluation.page import write_page as write_models
from rlhf_ray.evaluation.summary import summarise
from rlhf_ray.evaluation.verdicts import Verdict, judged
from rlhf_ray.tracking.records import RecordFile
from rlhf_ray.tracking.report import write_comparison, write_report
from tests.browser.site import IMAGES
from tests.evaluation.test_page import result
from tests.tracking.test_report import history

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]

PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run's report, runs side by side, and models side by side."""
    folder = tmp_path_factory.mktemp("pages")
    run = folder / "run"
    samples = RecordFile(run / "samples.jsonl")
    for step in (0, 9):
        row = {"prompt_id": "1", "prompt": "Tell it all.", "response": "A long story.\n" * 60, "rewards": {"r": 0.5}}
        samples.append({"step": step, "kind": "evaluation", **row})
    samples.close()
    report = folder / "report.html"
    write_report(run, history(), report)
    runs = folder / "runs.html"
    write_comparison({f"run number {number}": history() for number in range(5)}, runs)
    results = [result(name, 0.1 * number) for number, name in enumerate(("sft", "dpo", "ppo", "a model with a name"))]
    names = [one.name for one in results[1:]]
    rates = {name: judged([Verdict("0", "candidate", "because")], failed=1) for name in names}
    summary = summarise(results, "sft", "sft", {"people": rates})
    models = folder / "comparison.html"
    shown = [ShownVerdict("people", names[0], "Tell it all.", "tie", "They say the same.")]
    write_models(models, "models", summary, results, shown, {})
    return {"report": report, "runs": runs, "models": models}


@pytest.fixture(scope="module")
def phone(browser: "Browser") -> Iterator["Page"]:
    page = browser.new_page(viewport=PHONE)  # type: ignore[arg-type]
    yield page
    page.close()


@pytest.mark.parametrize("name", ["report", "runs", "models"])
def test_no_column_of_a_table_is_out_of_sight_on_a_phone(name: str, pages: dict[str, Path], phone: "Page") -> None:
    phone.set_viewport_size(PHONE)  # type: ignore[arg-type]
    phone.goto(pages[name].as_uri())
    phone.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    IMAGES.mkdir(parents=True, exist_ok=True)
    phone.screenshot(path=IMAGES / f"{name}_on_a_phone.png", full_page=True)
    hidden = phone.evaluate(
        """() => [...document.querySelectorAll("td")].filter((cell) => {
          const frame = cell.closest(".card").getBoundingClientRect();
          const box = cell.getBoundingClientRect();
          return box.right > frame.right + 1 || cell.scrollWidth > cell.clientWidth + 1;
        }).map((cell) => cell.textContent.slice(0, 60))"""
    )
    assert hidden == []
    assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    unnamed = phone.evaluate(
        """() => [...document.querySelectorAll("td.number")].filter((cell) => cell.closest("thead + tbody")
            && cell.textContent && getComputedStyle(cell, "::before").content.length < 5).length"""
    )
    assert unnamed == 0, "each figure is under the name of its column"


def test_what_scrolls_shows_where_more_follows(pages: dict[str, Path], phone: "Page") -> None:
    # A box that is higher than the window would be scrolled for its picture.
    phone.set_viewport_size({"width": 800, "height": 3000})
    phone.goto(pages["runs"].as_uri())
    wide = phone.locator(".wide")
    assert wide.evaluate("one => one.scrollWidth > one.clientWidth")
    assert _shadows(wide) == {"right"}
    wide.evaluate("one => one.scrollTo(1e6, 0)")
    assert _shadows(wide) == {"left"}
    phone.goto(pages["report"].as_uri())
    said = phone.locator(".said").nth(1)
    assert _shadows(said) == {"bottom"}
    said.evaluate("one => one.scrollTo(0, 1e6)")
    assert _shadows(said) == {"top"}


def _shadows(box: "Locator") -> set[str]:
    """Edges of a box along which a shadow lies, seen without its texts."""
    box.page.add_style_tag(content=".wide *, .said * { visibility: hidden; } .said { color: transparent; }")
    picture = np.asarray(Image.open(io.BytesIO(box.screenshot())).convert("L"))
    strips = {"left": picture[:, 3:6], "right": picture[:, -6:-3], "top": picture[3:6], "bottom": picture[-6:-3]}
    return {edge for edge, strip in strips.items() if np.median(strip) < 250}
