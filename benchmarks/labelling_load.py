"""Many annotators on one store of labels: is every accepted click stored once, and how long does a click take?

Annotators are threads of several processes, each as the page's own sessions work (the same desk, the same store); some
savings are sent twice, as by a nervous finger. Beside them real browsers work on a real page over the same store.

    python -m benchmarks.labelling_load --annotators 50 --processes 5 --browsers 3 --seconds 120 --store labels.db
"""

import argparse
import json
import multiprocessing
import random
import statistics
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlhf_ray.feedback.labelling.database import Database
from rlhf_ray.feedback.labelling.desk import Desk, DeskSettings, Sheet
from rlhf_ray.feedback.labelling.items import NewItem, Overlap
from rlhf_ray.feedback.labelling.labels import Labels

ANSWERS = 2
"""Answers to each prompt: a label is that many clicks on ranks, and one on saving."""
TWICE = 0.2
"""Share of savings that are sent twice."""


@dataclass
class Tally:
    """Clicks and labels of one annotator."""

    name: str
    clicks: int = 0
    """Accepted: the store said that it has them."""
    saved: list[str] = field(default_factory=list)
    """Submission of each accepted label."""
    seconds: list[float] = field(default_factory=list)
    """That each click took."""
    errors: list[str] = field(default_factory=list)


def work(store: str, names: list[str], period: float, seconds: float, results: Any) -> None:
    """Let the annotators of one process work."""
    desk = Desk(Database(store), "label", [], SETTINGS)
    tallies = [Tally(name) for name in names]
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=annotate, args=(desk, tally, period, until)) for tally in tallies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(tallies)


def annotate(desk: Desk, tally: Tally, period: float, until: float) -> None:
    """Click at the pace of a person until the time is over."""
    dice = random.Random(tally.name)
    time.sleep(dice.uniform(0, period))
    sheet = desk.draw(tally.name)
    places = list(range(ANSWERS))
    while sheet is not None and time.monotonic() < until:
        began = time.monotonic()
        try:
            sheet = click(desk, tally, sheet, places, dice)
            tally.clicks += 1
            tally.seconds.append(time.monotonic() - began)
        except Exception as error:
            tally.errors.append(repr(error))
        time.sleep(max(0.0, began + period - time.monotonic()))


def click(desk: Desk, tally: Tally, sheet: Sheet, places: list[int], dice: random.Random) -> Sheet | None:
    """Make one click: a rank, or saving and drawing the next prompt."""
    unranked = [place for place in places if sheet.draft.ranks[place] is None]
    if unranked:
        ranks = list(sheet.draft.ranks)
        ranks[dice.choice(unranked)] = len(ranks) - len(unranked) + 1
        sheet.draft = replace(sheet.draft, ranks=tuple(ranks))
        if not desk.assignments.keep_draft(tally.name, sheet.item.id, sheet.draft):
            raise RuntimeError(f"the prompt {sheet.item.id} is with somebody else")
        return sheet
    first = desk.save(tally.name, sheet)
    if dice.random() < TWICE and desk.save(tally.name, sheet) != first:
        raise RuntimeError("a saving that was sent twice was stored twice")
    tally.saved.append(sheet.submission)
    return desk.current(tally.name) or desk.draw(tally.name)


SETTINGS = DeskSettings(overlap=Overlap(0.1, 2, 0), lease_seconds=1800)


def fill(store: str, prompts: int) -> None:
    """Fill a store with so many prompts, whose order differs from run to run of nothing."""
    desk = Desk(Database(store), "label", [], SETTINGS)
    answers = [tuple(f"answer {n}.{k}" for k in range(ANSWERS)) for n in range(prompts)]
    desk.items.add(NewItem(f"prompt {n}", "chat", "load", answers[n], ("v",) * ANSWERS) for n in range(prompts))


def main() -> None:
    """Run the load and print what was measured as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--browsers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--period", type=float, default=3)
    parser.add_argument("--store", help="a new file, or a URL of PostgreSQL; a temporary file by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = given.store or f"{folder}/labels.db"
        found = run(store, Path(folder), given.annotators, given.processes, given.browsers, given.seconds, given.period)
    print(json.dumps(found, indent=2))


def run(
    store: str, folder: Path, annotators: int, processes: int, browsers: int, seconds: float, period: float
) -> dict[str, Any]:
    """Load a store, and compare what was accepted with what is in it."""
    fill(store, prompts=int((annotators + browsers) * seconds / period))
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    names = [f"annotator {n}" for n in range(annotators)]
    workers = [
        context.Process(target=work, args=(store, names[n::processes], period, seconds, results))
        for n in range(processes)
    ]
    with ExitStack() as stack:
        if browsers:
            from benchmarks.labelling_browsers import browse, page_over

            url = stack.enter_context(page_over(store, folder))
            workers += [
                context.Process(target=browse, args=(url, f"browser {n}", period, seconds, results))
                for n in range(browsers)
            ]
        for worker in workers:
            worker.start()
        gathered = [results.get(timeout=seconds + 300) for _ in workers]
        for worker in workers:
            worker.join()
    tallies = [tally for group in gathered for tally in group]
    return compare(store, tallies)


def compare(store: str, tallies: list[Tally]) -> dict[str, Any]:
    """Compare what was accepted with what is stored."""
    database = Database(store)
    stored = list(Labels(database, "label").all())
    with database.reading() as connection:
        submissions = [row[0] for row in connection.exec_driver_sql("SELECT submission FROM labels")]
    database.close()
    by_hand = [tally for tally in tallies if not tally.name.startswith("browser")]
    real = [tally for tally in tallies if tally.name.startswith("browser")]
    accepted = [submission for tally in by_hand for submission in tally.saved]
    of_browsers = sum(label.annotator.startswith("browser") for label in stored)
    return {
        "annotators": len(tallies),
        "clicks": sum(tally.clicks for tally in tallies),
        "labels accepted": len(accepted) + sum(len(tally.saved) for tally in real),
        "labels stored": len(stored),
        "accepted and not stored": len(set(accepted) - set(submissions))
        + sum(len(t.saved) for t in real)
        - of_browsers,
        "stored twice": len(stored) - len({(label.item_id, label.annotator) for label in stored}),
        "errors": [error for tally in tallies for error in tally.errors],
        "click p50 and p95, ms": quantiles(by_hand),
        "click in a browser p50 and p95, ms": quantiles(real),
    }


def quantiles(tallies: list[Tally]) -> list[float]:
    """Return median and 95th percentile of all clicks in milliseconds."""
    seconds = sorted(one for tally in tallies for one in tally.seconds)
    if len(seconds) < 2:
        return []
    cuts = statistics.quantiles(seconds, n=20)
    return [round(1000 * statistics.median(seconds), 1), round(1000 * cuts[-1], 1)]


if __name__ == "__main__":
    main()
