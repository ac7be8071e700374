"""Accuracy of a reward model on rows kept aside, next to TRL's RewardTrainer: same model, data and steps.

    python -m benchmarks.reward_quality --rank-lists lists.jsonl
    python -m benchmarks.reward_quality --positive good.txt --negative bad.txt

Rank lists have `prompt` and `responses`, best first; texts of two files make pairs, each text in one pair at most. The
model is a small one with random weights, made from the training texts, and the same for both; ours runs as the job
`rlhf reward`. A list gives one row here, and as many pairs as it has there, which are divided among as many steps.
Every seed draws rows kept aside, weights and order anew. Prints JSON: shares of pairs with 95 % intervals, by a
bootstrap that draws whole lists, and the difference of both, pair by pair.
"""

import argparse
import itertools
import json
import logging
import random
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from benchmarks.reward_trl import Pair, reward_trainer
from rlhf_ray.config.data import RankingDataConfig
from rlhf_ray.config.jobs.supervised import RewardTrainingConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rewards import ModelReward
from rlhf_ray.data.bad_rows import ReadReport
from rlhf_ray.data.columns import ranking_of
from rlhf_ray.data.loading import ranked_row, read_rankings
from rlhf_ray.data.rows import RankedRow
from rlhf_ray.data.tokenization import Encoder
from rlhf_ray.evaluation.statistics import bootstrap_mean
from rlhf_ray.jobs.supervised import reward
from rlhf_ray.models.loading import load_scalar, load_tokenizer
from rlhf_ray.models.tiny import build_tiny
from rlhf_ray.scoring.model import ModelScorer

BETAS = (0.9, 0.999)
Row = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """Files of one seed's rows."""

    train: Path
    held_out: Path
    numbers: list[int]
    """Which row of the data each row kept aside is."""


def rows_of(options: argparse.Namespace) -> list[Row]:
    """Make rankings: lists as they are, or pairs of a good and a bad text."""
    if options.rank_lists:
        return [json.loads(line) for line in options.rank_lists.read_text(encoding="utf-8").splitlines()]
    good, bad = (
        list(dict.fromkeys(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()))
        for path in (options.positive, options.negative)
    )
    draw = random.Random(0)
    draw.shuffle(good)
    draw.shuffle(bad)
    return [{"prompt": "", "chosen": g, "rejected": b} for g, b in zip(good, bad, strict=False)][: options.pairs]


def texts_of(row: Row) -> list[str]:
    answers = row["responses"] if "responses" in row else [row["chosen"], row["rejected"]]
    return [row["prompt"] + answer for answer in answers]


def told_apart(rows: list[Row], tokenizer: Any, max_tokens: int) -> list[int]:
    """Return numbers of the rows whose texts still differ once shortened; the job leaves the others out."""
    encoder, report = Encoder(tokenizer), ReadReport("rows", allowed_share=0)
    return [n for n, row in enumerate(rows) if ranked_row(ranking_of(row), encoder, max_tokens, report) is not None]


def split(rows: list[Row], usable: list[int], share: float, seed: int, folder: Path) -> Split:
    order = random.Random(seed).sample(usable, len(usable))
    cut = round(len(order) * share)
    files = (folder / "train.jsonl", folder / "held_out.jsonl")
    for path, numbers in zip(files, (order[cut:], order[:cut]), strict=True):
        path.write_text("".join(json.dumps(rows[number]) + "\n" for number in numbers), encoding="utf-8")
    return Split(*files, order[:cut])


def start_model(rows: list[Row], folder: Path, options: argparse.Namespace, seed: int) -> Path:
    """Make a classifier with its head, so that both begin from the same weights."""
    texts = [text for row in rows for text in texts_of(row)]
    base = build_tiny(
        folder / "base", texts, hidden=options.hidden, layers=2, heads=4, vocab_size=options.vocabulary, seed=seed
    )
    model = ModelConfig(path=str(base), dtype="float32")
    network: Any = load_scalar(model, seed)
    network.save_pretrained(folder / "start")
    load_tokenizer(model).save_pretrained(folder / "start")
    return folder / "start"


def ours(model: Path, files: Split, output: Path, options: argparse.Namespace, seed: int) -> Path:
    config = {
        "output": str(output),
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"path": str(files.train), "max_tokens": options.max_tokens},
        "seed": seed,
        "epochs": options.epochs,
        "batch_size": options.rows_per_step,
        "tokens_per_microbatch": 2048,
        "trainer": {"learning_rate": options.learning_rate, "betas": BETAS, "threads": options.threads},
        "checkpoint": {"every_steps": 0},
        "tracking": {"wandb": "off", "tensorboard": False},
    }
    # The job talks to its user; standard output is for the figures.
    with redirect_stdout(sys.stderr):
        reward.run(RewardTrainingConfig.model_validate(config))
    return output / "final"


def theirs(model: Path, rows: list[RankedRow], output: Path, options: argparse.Namespace, seed: int) -> Path:
    pairs = [pair for row in rows for pair in pairs_of(row)]
    steps = -(-len(rows) // options.rows_per_step)
    torch.set_num_threads(options.threads)
    trainer = reward_trainer(
        model,
        pairs,
        output,
        per_device_train_batch_size=-(-len(pairs) // steps),
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        adam_beta2=BETAS[1],
        seed=seed,
    )
    trainer.train()
    trainer.save_model(str(output / "final"))
    return output / "final"


def pairs_of(row: RankedRow) -> list[Pair]:
    """List all ordered pairs, better text first."""
    texts = [(int(rank), text.tolist()) for rank, text in zip(row.ranks, row.texts, strict=True)]
    return [(a[1], b[1]) for a, b in itertools.permutations(texts, 2) if a[0] < b[0]]


def right(model: Path, rows: list[RankedRow]) -> list[list[bool]]:
    """Tell for each ranking which of its pairs the model puts right."""
    scorer = ModelScorer(ModelReward(path=str(model), dtype="float32"), 4096)
    pairs = [pairs_of(row) for row in rows]
    flat = [np.array(text, np.int32) for row in pairs for pair in row for text in pair]
    scores = iter(scorer.score_ids(flat).reshape(-1, 2))
    return [[bool(better > worse) for better, worse in itertools.islice(scores, len(row))] for row in pairs]


def run(options: argparse.Namespace) -> dict[str, Any]:
    rows = rows_of(options)
    found: dict[str, list[float]] = {"rlhf_ray": [], "trl": []}
    groups: list[int] = []
    seconds = dict.fromkeys(found, 0.0)
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = start_model(rows, folder, options, seed)
            tokenizer = load_tokenizer(ModelConfig(path=str(model)))
            files = split(rows, told_apart(rows, tokenizer, options.max_tokens), options.held_out, seed, folder)
            train, held_out = (
                read_rankings(RankingDataConfig(path=str(path), max_tokens=options.max_tokens), tokenizer).rows
                for path in (files.train, files.held_out)
            )
            assert len(held_out) == len(files.numbers), "each row kept aside has its number"
            began = time.perf_counter()
            models = {"rlhf_ray": ours(model, files, folder / "rlhf_ray", options, seed)}
            middle = time.perf_counter()
            models["trl"] = theirs(model, train, folder / "trl", options, seed)
            seconds["rlhf_ray"] += middle - began
            seconds["trl"] += time.perf_counter() - middle
            results = {contender: right(path, held_out) for contender, path in models.items()}
            for contender, by_list in results.items():
                found[contender] += [float(one) for pairs in by_list for one in pairs]
                share = np.mean([one for pairs in by_list for one in pairs])
                print(f"seed {seed}: {contender} {share:.3f}", file=sys.stderr, flush=True)
            groups += [n for n, pairs in zip(files.numbers, results["trl"], strict=True) for _ in pairs]
    return summary(found, groups, seconds, options)


def summary(
    found: dict[str, list[float]], groups: list[int], seconds: dict[str, float], options: argparse.Namespace
) -> dict[str, Any]:
    """Return accuracies, and the difference of the two on the same pairs."""
    estimates = {name: bootstrap_mean(values, groups) for name, values in found.items()}
    apart = [mine - other for mine, other in zip(found["rlhf_ray"], found["trl"], strict=True)]
    estimates["difference"] = bootstrap_mean(apart, groups)
    return {
        **{name: {"value": e.value, "interval": [e.low, e.high]} for name, e in estimates.items()},
        "pairs": len(groups),
        "rankings": len(set(groups)),
        "seconds": seconds,
        "options": vars(options),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank-lists", type=Path, help="JSON lines with prompt and responses, best first")
    parser.add_argument("--positive", type=Path, help="good texts, one a line")
    parser.add_argument("--negative", type=Path, help="bad texts, one a line")
    parser.add_argument("--pairs", type=int, default=2000, help="pairs of good and bad texts that are made")
    parser.add_argument("--held-out", type=float, default=0.3, help="share of rows kept aside")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rows-per-step", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-tokens", type=int, default=512, help="longer texts lose their beginning, on both sides")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if not options.rank_lists and not (options.positive and options.negative):
        parser.error("give --rank-lists, or --positive and --negative")
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        print(json.dumps(run(options), indent=2, default=str))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
