"""The whole road on a laptop: text, language model, reward model, PPO; `python -m examples.reviews.demo --output DIR`.

Each stage is the command that a user would type. The oracle is the grammar's own judgement, which no training sees.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from examples.reviews.build import build
from examples.reviews.figures import answers, figures_of, read_jsonl
from rlhf_ray.models.tiny import build_tiny
from rlhf_ray.tracking.history import History
from rlhf_ray.tracking.over_optimisation import signs_of_over_optimisation
from rlhf_ray.tracking.text import harmless

HERE = Path(__file__).parent
REVIEWS, RANK_LISTS = 4800, 1200
DOMAINS = ("film", "food")
"""Two of five: a model of a million weights learns to write of them in a minute."""
SHOWN_SAMPLES = 6
ROWS = (
    ("reward", "chance to beat a median training text, by the reward model", 3),
    ("oracle", "the grammar's own judgement", 3),
    ("written", "share that the grammar could have written", 2),
    ("distinct2", "distinct-2", 2),
    ("length", "tokens", 0),
)
"""Figures of the last table, and their digits."""


def main() -> None:
    """Run all stages and sum up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="folder for data, models and runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="share of texts, lists and steps, for a quick look")
    arguments = parser.parse_args()
    started = time.monotonic()
    output: Path = arguments.output
    seed: int = arguments.seed
    files = prepare(output, seed, arguments.scale)
    heading("Reinforcement learning: rlhf ppo")
    further = ["--rewards.0.path", str(output / "reward" / "final")]
    if arguments.scale != 1:
        steps = yaml.safe_load((HERE / "ppo.yaml").read_text(encoding="utf-8"))["steps"]
        further += ["--steps", str(share(steps, arguments.scale))]
    stage(
        "ppo",
        output,
        seed,
        model=output / "sft" / "final",
        data=files["prompts_train"],
        held_out=files["prompts_held_out"],
        further=further,
    )

    summary = summarise(output, time.monotonic() - started)
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    show(output, summary)


def prepare(output: Path, seed: int, scale: float) -> dict[str, Path]:
    """Write the reviews, and train the language model and the reward model; returns the files of data by name."""
    heading("Reviews from a grammar, and a tokenizer and untrained model for them")
    files = build(
        output / "data",
        seed=seed,
        reviews=share(REVIEWS, scale),
        rankings=share(RANK_LISTS, scale),
        domains=DOMAINS,
    )
    texts = [row["prompt"] + row["completion"] for row in read_jsonl(files["sft"])]
    build_tiny(output / "base", texts, hidden=128, layers=4, heads=4, vocab_size=2560, tie=True, seed=seed)
    print(f"{len(texts)} reviews such as: {texts[0]}", flush=True)

    heading("Language model: rlhf sft")
    stage("sft", output, seed, model=output / "base", data=files["sft"], held_out=files["sft_held_out"])
    heading("Reward model from rank lists: rlhf reward")
    stage(
        "reward",
        output,
        seed,
        model=output / "sft" / "final",
        data=files["rankings"],
        held_out=files["rankings_held_out"],
    )
    return files


def share(full: int, scale: float) -> int:
    """Return a number of rows or steps on a smaller scale."""
    return max(2, round(full * scale))


def heading(text: str) -> None:
    """Say what comes now."""
    Console().rule(text, align="left")


def stage(
    verb: str, output: Path, seed: int, *, model: Path, data: Path, held_out: Path, further: Sequence[str] = ()
) -> None:
    """Run one command with the paths of this run; the rest is in the stage's YAML file beside this one."""
    held_out_key = "--evaluation.data.path" if verb == "ppo" else "--evaluation_data.path"
    command = [sys.executable, "-m", "rlhf_ray.cli", verb, str(HERE / f"{verb}.yaml")]
    command += ["--output", str(output / verb), "--seed", str(seed), "--model.path", str(model)]
    command += ["--data.path", str(data), held_out_key, str(held_out), *further]
    print("$ rlhf " + shlex.join(command[3:]), flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(f"rlhf {verb} failed; its message stands above")


def summarise(output: Path, seconds: float) -> dict[str, Any]:
    """Return what the run did to the policy, on held-out prompts; the seconds are those of all stages."""
    run = output / "ppo"
    trained = [row for row in read_jsonl(run / "metrics.jsonl") if "step_time" in row]
    target = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["algorithm"]["kl"]["target"]
    return {
        **figures_of(run),
        "seconds": round(seconds, 1),
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in trained),
        "sync_logprob_diff": max(row["sync/logprob_diff"] for row in trained),
        "signs_of_over_optimisation": [words for _, words in signs_of_over_optimisation(History.read(run), target)],
    }


def show(output: Path, summary: dict[str, Any]) -> None:
    """Show samples side by side, the figures, and where the pictures are."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    before, after = answers(output / "ppo")
    # Folded: Chinese has no spaces at which a line could end.
    columns = [Column(name, overflow="fold") for name in ("prompt", "before", "after")]
    table = Table(*columns, title="Held-out prompts, before and after PPO", show_lines=True)
    stride = max(1, len(before) // SHOWN_SAMPLES)
    for first, last in list(zip(before, after, strict=True))[::stride][:SHOWN_SAMPLES]:
        table.add_row(*(Text(harmless(text)) for text in (first["prompt"], first["response"], last["response"])))
    console.print(table)
    figures = Table("", "before", "after", title="On all held-out prompts")
    for name, label, digits in ROWS:
        figures.add_row(label, *(f"{summary[f'{name}_{when}']:.{digits}f}" for when in ("before", "after")))
    console.print(figures)
    for words in summary["signs_of_over_optimisation"]:
        console.print(f"warning: the policy may exploit the reward model: {words}; read the samples above")
    console.print(
        f"KL to the reference {summary['kl']:.2f} nats a response, {summary['steps']} steps, "
        f"{summary['seconds']:.0f} s, largest log-probability difference after a weight sync "
        f"{summary['sync_logprob_diff']:.1e}"
    )
    console.print(f"curves:  {output / 'ppo' / 'curves.png'}", f"report:  {output / 'ppo' / 'report.html'}", sep="\n")
    console.print(f"figures: {output / 'summary.json'}")


if __name__ == "__main__":
    main()
