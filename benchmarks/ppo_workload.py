"""What contenders of `benchmarks/ppo.py` and `benchmarks/grpo.py` work on: models, prompts, lengths of responses."""

import json
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_ray.models.tiny import build_tiny

PROMPT_TOKENS = 16
FIXED_RESPONSE = 64
SPREAD = 0.8
"""Standard deviation of the logarithm of a natural response's length."""
HIDDEN, LAYERS, HEADS, VOCABULARY = 256, 4, 4, 1024

Lengths = dict[str, list[int]]


@dataclass(frozen=True)
class Responses:
    """Number of responses, and lengths of natural ones."""

    prompts: int
    mean: int
    longest: int
    group: int = 1
    """Responses to each prompt."""


@dataclass(frozen=True)
class Workload:
    """A folder with `policy`, `reward` (also the critic's start), `prompts.jsonl` and `lengths.json`."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, responses: Responses) -> "Workload":
        """Write models and data, unless they are there.

        Raises:
            SystemExit: what is there is of other responses.
        """
        workload = cls(folder)
        lengths = {
            "natural": natural_lengths(responses),
            "fixed": [FIXED_RESPONSE] * responses.prompts * responses.group,
        }
        if (folder / "lengths.json").exists():
            if workload.lengths != lengths or len(workload.prompt_texts()) != responses.prompts:
                raise SystemExit(f"--models {folder}: has prompts and lengths of other responses; name another folder")
            return workload
        folder.mkdir(parents=True, exist_ok=True)
        draw = random.Random(0)
        words = sorted({"".join(draw.choice(SYLLABLES) for _ in range(draw.randint(1, 3))) for _ in range(300)})
        texts = [" ".join(draw.choices(words, k=40)) for _ in range(512)]
        build_tiny(workload.policy, texts, hidden=HIDDEN, layers=LAYERS, heads=HEADS, vocab_size=VOCABULARY)
        _teach(workload.policy, texts)
        critic = AutoModelForSequenceClassification.from_pretrained(workload.policy, num_labels=1, dtype=torch.float32)
        critic.save_pretrained(workload.reward)
        tokenizer = AutoTokenizer.from_pretrained(workload.policy)
        tokenizer.save_pretrained(workload.reward)
        prompts = _prompts(tokenizer, texts, responses.prompts)
        lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts]
        workload.prompts.write_text("".join(lines), encoding="utf-8")
        (folder / "lengths.json").write_text(json.dumps(lengths), encoding="utf-8")
        return workload

    @property
    def policy(self) -> Path:
        return self.folder / "policy"

    @property
    def reward(self) -> Path:
        return self.folder / "reward"

    @property
    def prompts(self) -> Path:
        return self.folder / "prompts.jsonl"

    @property
    def lengths(self) -> Lengths:
        """Tokens of each response, the end-of-sequence token included, prompt after prompt, by kind of length."""
        lengths: Lengths = json.loads((self.folder / "lengths.json").read_text(encoding="utf-8"))
        return lengths

    @property
    def longest(self) -> int:
        """Tokens of the longest response."""
        return max(max(lengths) for lengths in self.lengths.values())

    def prompt_texts(self) -> list[str]:
        """Return the prompts."""
        return [json.loads(line)["prompt"] for line in self.prompts.read_text(encoding="utf-8").splitlines()]

    def prompt_ids(self) -> list[list[int]]:
        """Return token ids of the prompts."""
        tokenizer = AutoTokenizer.from_pretrained(self.policy)
        return [tokenizer(prompt)["input_ids"] for prompt in self.prompt_texts()]


SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


def natural_lengths(responses: Responses) -> list[int]:
    """Return quantiles of a log-normal distribution, capped, in an order that says nothing."""
    count = responses.prompts * responses.group
    location = math.log(responses.mean) - SPREAD**2 / 2
    quantiles = [NormalDist(location, SPREAD).inv_cdf((i + 0.5) / count) for i in range(count)]
    lengths = [min(responses.longest, round(math.exp(q))) for q in quantiles]
    random.Random(0).shuffle(lengths)
    return lengths


def _prompts(tokenizer: Any, texts: list[str], count: int) -> list[str]:
    """Make different texts of exactly `PROMPT_TOKENS` tokens."""
    prompts: dict[str, None] = {}
    for text in texts:
        prompt = tokenizer.decode(tokenizer(text)["input_ids"][:PROMPT_TOKENS])
        if len(tokenizer(prompt)["input_ids"]) == PROMPT_TOKENS:
            prompts[prompt] = None
    if len(prompts) < count:
        raise ValueError(f"only {len(prompts)} prompts for {count} samples")
    return list(prompts)[:count]


def _teach(directory: Path, texts: list[str], steps: int = 60, rows: int = 16, tokens: int = 64) -> None:
    """Learn the words, so that what the policy writes is text that reads back as the same tokens."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    stream = np.array(tokenizer(" ".join(texts))["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    draw = np.random.default_rng(0)
    with _one_thread():
        for _ in range(steps):
            starts = draw.integers(0, len(stream) - tokens, rows)
            batch = torch.from_numpy(np.stack([stream[start : start + tokens] for start in starts]))
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(directory)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Take one thread: on a machine that others use too, threads that wait for each other are far slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
