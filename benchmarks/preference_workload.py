"""What all contenders of `benchmarks/preferences.py` work on: a model, and pairs whose lengths are fixed or natural."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.ppo_workload import HEADS, HIDDEN, LAYERS, SPREAD, SYLLABLES, VOCABULARY
from rlhf_ray.models.tiny import build_tiny

MEAN_TOKENS, LONGEST_TOKENS = 96, 512
"""Of a natural text, prompt and end-of-sequence token included."""
SHORTEST_TOKENS = 8
FIXED_PROMPT, FIXED_ANSWER = 44, 130
KINDS = ("fixed", "natural")

Lengths = tuple[int, int, int]
"""Tokens of a pair's prompt, and of its chosen and its rejected answer with their end-of-sequence tokens."""


@dataclass(frozen=True)
class PreferenceWorkload:
    """A folder with `policy`, `reward` (the same network with a scalar head) and pairs in `fixed` and `natural`."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, pairs: int) -> "PreferenceWorkload":
        """Write model and data."""
        workload = cls(folder)
        folder.mkdir(parents=True)
        draw = random.Random(0)
        words = sorted({"".join(draw.choice(SYLLABLES) for _ in range(draw.randint(1, 2))) for _ in range(300)})
        texts = [" " + " ".join(draw.choices(words, k=40)) for _ in range(512)]
        build_tiny(workload.policy, texts, hidden=HIDDEN, layers=LAYERS, heads=HEADS, vocab_size=VOCABULARY)
        network = AutoModelForSequenceClassification.from_pretrained(workload.policy, num_labels=1, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(workload.policy)
        network.save_pretrained(workload.reward)
        tokenizer.save_pretrained(workload.reward)
        tokens = [word for word in words if len(tokenizer(" " + word)["input_ids"]) == 1]
        fixed = [(FIXED_PROMPT, FIXED_ANSWER, FIXED_ANSWER)] * pairs
        for kind, lengths in zip(KINDS, (fixed, natural_lengths(pairs)), strict=True):
            lines = [json.dumps(_pair(sizes, tokens, draw)) + "\n" for sizes in lengths]
            workload.data(kind).write_text("".join(lines), encoding="utf-8")
        return workload

    @property
    def policy(self) -> Path:
        return self.folder / "policy"

    @property
    def reward(self) -> Path:
        return self.folder / "reward"

    def data(self, kind: str) -> Path:
        return self.folder / f"{kind}.jsonl"

    def pairs(self, kind: str) -> list[dict[str, str]]:
        """Make rows with `prompt`, `chosen`, `rejected`."""
        return [json.loads(line) for line in self.data(kind).read_text(encoding="utf-8").splitlines()]

    def lengths(self, kind: str) -> list[Lengths]:
        """Count tokens after tokenizing."""
        tokenizer = AutoTokenizer.from_pretrained(self.policy)

        def count(text: str) -> int:
            return len(tokenizer(text)["input_ids"])

        rows = self.pairs(kind)
        return [(count(row["prompt"]), count(row["chosen"]) + 1, count(row["rejected"]) + 1) for row in rows]


def natural_lengths(pairs: int) -> list[Lengths]:
    """Draw two texts of log-normal length a pair; their prompt is a third of the shorter one, at most 44."""
    draw = np.random.default_rng(0)
    location = np.log(MEAN_TOKENS) - SPREAD**2 / 2
    drawn = np.exp(draw.normal(location, SPREAD, (pairs, 2))).round()
    texts = drawn.clip(SHORTEST_TOKENS, LONGEST_TOKENS).astype(int)
    prompts = np.minimum(texts.min(1) // 3, FIXED_PROMPT)
    return [(int(p), int(c - p), int(r - p)) for p, (c, r) in zip(prompts, texts, strict=True)]


def _pair(lengths: Lengths, words: list[str], draw: random.Random) -> dict[str, Any]:
    # Each word is one token, with the space before it; the end-of-sequence token comes with tokenizing.
    prompt, chosen, rejected = (
        "".join(" " + word for word in draw.choices(words, k=count))
        for count in (lengths[0], lengths[1] - 1, lengths[2] - 1)
    )
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
