"""What training did to the policy, on held-out prompts: `python -m examples.reviews.figures RUN ...`.

Each RUN is the folder of an `rlhf ppo` run on the reviews, or a file of answers that `rlhf generate` wrote, of which
only the grammar's judgement is known.
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from examples.reviews.membership import share_written
from examples.reviews.oracle import oracle
from rlhf_ray.config.rewards import ModelReward
from rlhf_ray.models.score_statistics import ScoreStatistics, statistics_of
from rlhf_ray.tracking.history import History, Series
from rlhf_ray.tracking.run_record import RunRecord

Row = dict[str, Any]


def figures_of(run: Path) -> dict[str, float]:
    """Return the figures of a run of PPO, before its first step and after its last.

    `reward` is the probability, by the reward model, that a response beats the median of its training texts; `oracle`
    the grammar's judgement; `written` the share of responses that the grammar could have written; `cost` the mean over
    the sources that measure one; `kl` that of a response of the last step to the reference, in nats, where the run has
    one; `seconds` those of the whole run, its start included.
    """
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    [reward] = [source for source in config["rewards"] if not is_cost(source)]
    costs = [source["name"] for source in config["rewards"] if is_cost(source)]
    scale = Scale.of(reward)
    metrics = read_jsonl(run / "metrics.jsonl")
    evaluations = [row for row in metrics if "eval_completions/distinct_2" in row]
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    found: dict[str, float] = {}
    for when, rows, row in zip(("before", "after"), answers(run), (evaluations[0], evaluations[-1]), strict=True):
        found[f"reward_{when}"] = mean_probability(rows, reward["name"], scale)
        found[f"oracle_{when}"] = mean_oracle([row["prompt"] + row["response"] for row in rows])
        found[f"written_{when}"] = share_written([(row["prompt"], row["response"]) for row in rows])
        found[f"distinct2_{when}"] = row["eval_completions/distinct_2"]
        found[f"length_{when}"] = row["eval_completions/mean_length"]
        if costs:
            measured = [row["rewards"][name] for row in rows for name in costs]
            found[f"cost_{when}"] = statistics.fmean(cost for cost in measured if cost is not None)
    steps = [row for row in metrics if "step_time" in row]
    if config["algorithm"]["kl"]["coefficient"] > 0:
        found["kl"] = steps[-1]["objective/kl"]
    return found | {"steps": steps[-1]["step"], "seconds": record["closed"] - record["started"]}


def is_cost(source: Mapping[str, Any]) -> bool:
    """Tell whether a source of a run's `rewards` measures a cost."""
    return bool(source.get("measures") == "cost")


def answers(run: Path) -> tuple[list[Row], list[Row]]:
    """Read the answers to the held-out prompts before the first step and after the last."""
    rows = [row for row in read_jsonl(run / "samples.jsonl") if row["kind"] == "evaluation"]
    first, last = rows[0]["step"], rows[-1]["step"]
    return [row for row in rows if row["step"] == first], [row for row in rows if row["step"] == last]


@dataclass(frozen=True)
class Scale:
    """Map from a source's scores to log-odds against the median of its model's training texts."""

    unit: float
    shift: float

    @classmethod
    def of(cls, reward: Mapping[str, Any]) -> "Scale":
        """Return the scale of a run's reward source, as its resolved config has it."""
        kept = ScoreStatistics.read(reward["path"])
        if statistics_of(ModelReward.model_validate(reward)):
            return cls(kept.std, kept.mean - kept.median)
        return cls(1.0, -kept.median)


def mean_probability(rows: Sequence[Mapping[str, Any]], source: str, scale: Scale) -> float:
    """Return the mean sigmoid of a reward model's log-odds against its median training text."""
    # By tanh, which does not overflow however low a score is.
    odds = (row["rewards"][source] * scale.unit + scale.shift for row in rows)
    return statistics.fmean(0.5 + 0.5 * math.tanh(one / 2) for one in odds)


def mean_oracle(texts: Sequence[str]) -> float:
    """Return the mean judgement of the grammar."""
    return statistics.fmean(map(oracle, texts))


def judged(file: Path) -> float:
    """Return the grammar's mean judgement of answers that `rlhf generate` wrote."""
    return mean_oracle([row["prompt"] + row["completion"] for row in read_jsonl(file)])


def read_jsonl(path: Path) -> list[Row]:
    """Read the rows of a file."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]


def main() -> None:
    """Read the command line and print a table, a row a run; a run that has no figures is refused with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    table = Table("run", "reward", "grammar", "written", "distinct-2", "length", "cost", "KL", "steps", "seconds")
    runs = parser.parse_args().runs
    for problem in filter(None, map(_unusable, runs)):
        parser.error(problem)
    for run in runs:
        if run.is_file():
            table.add_row(run.name, "", f"{judged(run):.3f}", *[""] * 7)
            continue
        figures = figures_of(run)
        changes = (
            f"{figures[f'{name}_before']:.{digits}f} -> {figures[f'{name}_after']:.{digits}f}"
            if f"{name}_after" in figures
            else ""
            for name, digits in (
                ("reward", 3),
                ("oracle", 3),
                ("written", 2),
                ("distinct2", 2),
                ("length", 0),
                ("cost", 3),
            )
        )
        kl = f"{figures['kl']:.1f}" if "kl" in figures else ""
        table.add_row(run.name, *changes, kl, f"{figures['steps']:g}", f"{figures['seconds']:.0f}")
    Console(width=max(Console().width, 120)).print(table)


def _unusable(run: Path) -> str | None:
    """Say why there are no figures of what was named; None where there are."""
    if run.is_file():
        return None
    record = RunRecord.read(run)
    if record is None:
        return f"{run}: no such run folder, nor a file of answers"
    if record.closed is None:
        return f"{run}: the run has not ended"
    evaluations = History.read(run).series.get("eval_completions/distinct_2", Series())
    return None if len(evaluations.steps) > 1 else f"{run}: the run was not evaluated before and after its steps"


if __name__ == "__main__":
    main()
