"""PPO with the sentiment classifier as reward, told epoch by epoch: `python -m examples.sentiment_zh.ppo`.

What trains is `rlhf ppo examples/sentiment_zh/ppo.yaml`; an epoch here is a step there. Options are handed to it:
`--model.path uer/gpt2-chinese-cluecorpussmall` takes another model.
"""

import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from examples.sentiment_zh.build import OUTPUT
from examples.sentiment_zh.follow import HELP, HERE, Row, draw, follow, rlhf, whole_rows
from examples.sentiment_zh.follow import run as say_help

PICTURE = OUTPUT / "logs" / "PPO-Sentiment-Zh.png"
CHECKPOINTS = OUTPUT / "checkpoints"
SHOWN = 5
"""Samples of each epoch."""
EXPLAINED = "value/explained_variance"
WORST_EXPLAINED = -1.0
"""A critic that has learned nothing yet may be far below, and the rest of its curve would be a flat line."""
CURVES = (
    ("mean reward", "objective/scores"),
    ("KL to the reference", "objective/kl"),
    ("response length", "completions/mean_length"),
    ("policy loss", "loss/policy_avg"),
    ("value loss", "loss/value_avg"),
    ("entropy of a response", "objective/entropy"),
    ("clipped share", "policy/clipfrac_avg"),
    ("approximate KL of the update", "policy/approxkl_avg"),
    ("explained variance of the critic", EXPLAINED),
)


def main(options: Sequence[str]) -> None:
    """Train, and say how it goes."""
    if HELP.intersection(options):
        say_help(*rlhf("ppo", "ppo.yaml", *options))
        return
    run = OUTPUT / "ppo"
    steps = int(yaml.safe_load((HERE / "ppo.yaml").read_text(encoding="utf-8"))["steps"])
    if "--steps" in options:
        steps = int(options[list(options).index("--steps") + 1])
    rows: dict[int, Row] = {}
    bar = Progress(
        TextColumn("epoch"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(highlight=False)
    )
    command = rlhf("ppo", "ppo.yaml", *options)
    with bar:
        task = bar.add_task("epoch", total=steps)
        for row in follow(command, OUTPUT / "logs" / "ppo.log", run / "metrics.jsonl"):
            if "objective/scores" not in row:
                continue
            epoch = int(row["step"])
            rows[epoch] = row
            bar.update(task, completed=epoch)
            tell(bar.console, epoch, row, run)
            keep_exports(run / "exports")
    keep_exports(run / "exports")
    shown = [with_floor(rows[epoch]) for epoch in sorted(rows)]
    draw(PICTURE, "PPO-Sentiment-Zh", shown, CURVES, columns=3, unit="epochs")
    print(f"policy: {run / 'final'}, checkpoints: {CHECKPOINTS}, curves: {PICTURE}")


def tell(console: Console, epoch: int, row: Row, run: Path) -> None:
    """Print the line of an epoch and some of its samples, drawn at random."""
    console.print(f"epoch {epoch} mean-reward: {row['objective/scores']:.4f}  KL: {row['objective/kl']:.3f}")
    samples = [
        sample for sample in whole_rows(run / "samples.jsonl") if sample["step"] == epoch and sample["kind"] == "train"
    ]
    for sample in random.Random(epoch).sample(samples, min(SHOWN, len(samples))):
        reward = sample["rewards"]["sentiment"]
        text = f"{sample['prompt']}|{sample['response']}".replace("\n", " ")
        console.print(f"    {'none' if reward is None else f'{reward:.3f}'}  {text}", markup=False, soft_wrap=True)


def with_floor(row: Row) -> Row:
    """Return a row as it is drawn."""
    return row | {EXPLAINED: max(row[EXPLAINED], WORST_EXPLAINED)} if EXPLAINED in row else row


def keep_exports(exports: Path) -> None:
    """Give the models that were exported so far their names in this tutorial's words: epoch and reward."""
    for export in sorted(exports.glob("step_*_reward_*")) if exports.is_dir() else ():
        found = re.fullmatch(r"step_(\d+)_reward_(-?\d+\.\d+)", export.name)
        if found:
            target = CHECKPOINTS / f"epoch_{found[1]}_reward_{found[2]}"
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                export.rename(target)


if __name__ == "__main__":
    main(sys.argv[1:])
