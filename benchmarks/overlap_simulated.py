"""The loop of PPO on roles that sleep: how much each `max_staleness` gains at each ratio of training to generation.

An engine of some slots writes 32 answers of log-normal lengths (sigma 0.9) in the order in which they were asked for, a
policy learns for a fixed time, and nothing else takes any. What the loop takes is compared with a recursion: batch s is
asked for when version max(0, s - k) is there, and version s + 1 when batch s is written and version s was there, plus
the time of learning. `--plot FILE` draws the speeds.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_ray.schedule import Loop, Schedule

PROMPTS, SLOTS, SIGMA = 32, 16, 0.9
"""With half as many slots as answers, an engine is busy for about half of the time that a batch alone takes it."""


class Engine:
    """Slots that each write one answer at a time; an answer takes as long as it is."""

    def __init__(self, seed: int, seconds: float) -> None:
        """Let a median answer take `seconds`."""
        self._random = random.Random(seed)
        self._seconds = seconds
        self._free = [0.0] * SLOTS

    def ask(self, now: float) -> list[float]:
        """Take a batch; returns when its answers end, in that order."""
        ends = []
        for _ in range(PROMPTS):
            slot = min(range(SLOTS), key=self._free.__getitem__)
            length = self._seconds * math.exp(self._random.gauss(0, SIGMA))
            self._free[slot] = max(now, self._free[slot]) + length
            ends.append(self._free[slot])
        return sorted(ends)


def predicted(staleness: int, steps: int, seed: int, seconds: float, learning: float) -> float:
    """Return the time at which the last version is there."""
    engine, there, ends = Engine(seed, seconds), [0.0], list[float]()
    for step in range(steps):
        while len(ends) < steps and len(ends) - staleness <= step:
            ends.append(engine.ask(there[max(0, len(ends) - staleness)])[-1])
        there.append(max(there[step], ends[step]) + learning)
    return there[-1]


@dataclass
class Groups:
    """A batch on its way."""

    ends: list[float]
    clock: Any

    def __iter__(self) -> Iterator[float]:
        while self.ends:
            time.sleep(max(0.0, self.ends[0] - self.clock()))
            yield self.ends.pop(0)

    def poll(self) -> float | None:
        return self.ends.pop(0) if self.ends and self.ends[0] <= self.clock() else None

    def close(self) -> None:
        self.ends.clear()


@dataclass
class SleepingRoles:
    """A driver whose roles sleep for as long as they would work."""

    engine: Engine
    learning: float
    began: float = field(default_factory=time.perf_counter)

    def now(self) -> float:
        return time.perf_counter() - self.began

    def sync(self, version: int) -> Mapping[str, float]:
        return {}

    def rollout(self, step: int, prompts: int) -> Any:
        return Groups(self.engine.ask(self.now()), self.now)

    def score(self, step: int, group: Any, *, early: bool = False) -> None:
        pass

    def make_experience(self, step: int) -> Any:
        return None

    def update(self, step: int, experience: Any) -> Mapping[str, float]:
        time.sleep(self.learning)
        return {}

    def evaluate(self, done: int) -> None:
        pass

    def log(self, done: int, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> None:
        pass

    def checkpoint(self, done: int, *, evaluated: bool) -> None:
        pass


def measured(staleness: int, steps: int, seed: int, seconds: float, learning: float) -> float:
    """Return the seconds of a run of the loop."""
    driver = SleepingRoles(Engine(seed, seconds), learning)
    Loop(driver, Schedule(steps, PROMPTS, staleness)).run()
    return driver.now()


def generation(seconds: float) -> float:
    """Return how long a batch alone takes an engine, mean of many."""
    return sum(Engine(seed, seconds).ask(0.0)[-1] for seed in range(2000)) / 2000


def draw(speeds: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw a bar for each staleness, grouped by ratio."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    names = list(next(iter(speeds.values())))
    colours = ("#cbd5e1", "#2563eb", "#059669", "#ea580c")
    for index, name in enumerate(names):
        places = [position + (index - (len(names) - 1) / 2) * 0.25 for position in range(len(speeds))]
        bars = axes.bar(places, [ratio[name] for ratio in speeds.values()], 0.23, label=name, color=colours[index])
        axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
    axes.set_xticks(range(len(speeds)), [f"training takes {ratio} of generation" for ratio in speeds], fontsize=9)
    axes.set_ylabel("speed against steps in turns")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="max_staleness", frameon=False, ncols=len(names), loc="upper right", fontsize=8)
    axes.set_ylim(0, 1.25 * max(value for ratio in speeds.values() for value in ratio.values()))
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 1.0, 1.5])
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2], help="0 must be one of them")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=0.1, help="of a median answer")
    parser.add_argument("--plot", type=Path, help="draw the predicted speeds of 400 steps into this file")
    options = parser.parse_args()
    alone = generation(options.seconds)
    found: dict[str, Any] = {}
    speeds: dict[str, dict[str, float]] = {}
    for ratio in options.ratios:
        case = (options.seconds, ratio * alone)
        long_run = {k: predicted(k, 400, 1, *case) for k in options.staleness}
        speeds[f"{ratio:g}"] = {str(k): long_run[0] / long_run[k] for k in options.staleness}
        for k in options.staleness:
            expected, took = (how(k, options.steps, 0, *case) for how in (predicted, measured))
            found[f"training/generation {ratio:g}, k={k}"] = {
                "loop_against_prediction": round(took / expected, 3),
                "speed_against_turns": round(speeds[f"{ratio:g}"][str(k)], 2),
                "seconds": round(took, 2),
            }
    print(json.dumps(found | {"options": vars(options)}, indent=2, default=str))
    if options.plot is not None:
        draw(speeds, options.plot)


if __name__ == "__main__":
    main()
