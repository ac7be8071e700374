"""The whole tutorial with one command: `python -m examples.sentiment_zh.demo`; a quick look: `--scale 0.02`.

Each stage is a command that stands for itself; the last one loads what they wrote with plain Transformers.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from examples.reviews.oracle import oracle
from examples.sentiment_zh.build import OUTPUT
from examples.sentiment_zh.follow import HERE, Row, rlhf, run, whole_rows


def main() -> None:
    """Run all stages and sum up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="share of texts, lists and epochs, for a quick look")
    arguments = parser.parse_args()
    seconds = {}
    for name, title, command in stages(arguments.seed, arguments.scale):
        Console().rule(title, align="left")
        began = time.monotonic()
        run(*command)
        seconds[name] = round(time.monotonic() - began, 1)
    summary = summarise(seconds)
    (OUTPUT / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    show(summary)


def stages(seed: int, scale: float) -> list[tuple[str, str, list[str]]]:
    """List name, title and command of each stage."""
    here = [sys.executable, "-m"]
    seeded = ["--seed", str(seed)]
    ppo = list(seeded)
    if scale != 1:
        steps = int(yaml.safe_load((HERE / "ppo.yaml").read_text(encoding="utf-8"))["steps"])
        ppo += ["--steps", str(max(2, round(steps * scale))), "--policy.export_every_steps", "1"]
    return [
        (
            "build",
            "Chinese reviews, a tokenizer, a sentiment classifier",
            [*here, "examples.sentiment_zh.build", *seeded, "--scale", str(scale)],
        ),
        ("sft", "Language model", rlhf("sft", "sft.yaml", *seeded)),
        ("ppo", "PPO with the classifier as reward", [*here, "examples.sentiment_zh.ppo", *ppo]),
        ("reward", "Reward model from rank lists", [*here, "examples.sentiment_zh.reward_model", *seeded]),
        ("score", "Two texts", rlhf("score", "score.yaml")),
    ]


def summarise(seconds: dict[str, float]) -> dict[str, Any]:
    """Return the figures of all stages, and whether their models load without this project."""
    samples = [row for row in whole_rows(OUTPUT / "ppo" / "samples.jsonl") if row["kind"] == "evaluation"]
    first, last = samples[0]["step"], samples[-1]["step"]
    before, after = ([row for row in samples if row["step"] == step] for step in (first, last))
    trained = [row for row in whole_rows(OUTPUT / "ppo" / "metrics.jsonl") if "objective/kl" in row]
    reward = whole_rows(OUTPUT / "reward" / "metrics.jsonl")
    two = {row["completion"]: row["reward"] for row in whole_rows(OUTPUT / "two_texts_scored.jsonl")}
    return {
        "reward_before": mean_reward(before),
        "reward_after": mean_reward(after),
        "oracle_before": mean_oracle(before),
        "oracle_after": mean_oracle(after),
        "kl": trained[-1]["objective/kl"],
        "epochs": trained[-1]["step"],
        "reward_model_accuracy": next(row["eval_accuracy"] for row in reversed(reward) if "eval_accuracy" in row),
        "two_texts": two,
        "checkpoints": sorted(path.name for path in (OUTPUT / "checkpoints").iterdir()),
        "loaded_by_transformers": loaded(),
        "seconds": seconds,
        "total_seconds": round(sum(seconds.values()), 1),
    }


def mean_reward(rows: Sequence[Row]) -> float:
    """Return the mean judgement of the classifier."""
    return statistics.fmean(row["rewards"]["sentiment"] for row in rows)


def mean_oracle(rows: Sequence[Row]) -> float:
    """Return the mean judgement of the grammar, which no training sees."""
    return statistics.fmean(oracle(row["prompt"] + row["response"]) for row in rows)


def loaded() -> list[str]:
    """List directories that plain Transformers loads and that give finite numbers; raises where one does not."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    scalars = [OUTPUT / "classifier", OUTPUT / "reward" / "final"]
    writers = [OUTPUT / "sft" / "final", OUTPUT / "ppo" / "final", *sorted((OUTPUT / "checkpoints").iterdir())]
    for path in [*scalars, *writers]:
        kind = AutoModelForSequenceClassification if path in scalars else AutoModelForCausalLM
        network = kind.from_pretrained(path).eval()
        ids = AutoTokenizer.from_pretrained(path)("质量很好", return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            found = network(input_ids=ids).logits
        if not bool(found.isfinite().all()):
            raise ValueError(f"{path}: gives numbers that are none")
    return [str(path.relative_to(OUTPUT)) for path in [*scalars, *writers]]


def show(summary: dict[str, Any]) -> None:
    """Show the figures."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("held-out prompts", "before PPO", "after")
    for name, label in (("reward", "classifier"), ("oracle", "grammar's judgement")):
        table.add_row(label, f"{summary[f'{name}_before']:.3f}", f"{summary[f'{name}_after']:.3f}")
    console.print(table)
    console.print(f"KL to the reference {summary['kl']:.2f} nats a response after {summary['epochs']} epochs")
    console.print(
        f"reward model: right for {summary['reward_model_accuracy']:.1%} of held-out pairs; two texts:", soft_wrap=True
    )
    for text, reward in summary["two_texts"].items():
        console.print(f"{reward:8.3f}  {text}", markup=False, soft_wrap=True)
    console.print(f"{len(summary['loaded_by_transformers'])} model directories loaded by plain Transformers")
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in summary["seconds"].items())
    console.print(f"{summary['total_seconds']:.0f} s: {parts}; figures: {OUTPUT / 'summary.json'}")


if __name__ == "__main__":
    main()
