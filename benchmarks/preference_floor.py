"""The floor of `benchmarks/preferences.py`: bare forward and backward passes of the same tokens.

No loss of pairs, no optimizer, no other process. Rows are cut into batches as well as can be: all rows of a step at
once, each free of its pair.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.preference_workload import Lengths, PreferenceWorkload
from rlhf_ray.data.batches import assign

REFERENCE_EPOCHS = 3
"""Passes over the data among which the time of the reference is shared."""


class BarePairs:
    """A plain Transformers model and both cores."""

    def __init__(self, workload: PreferenceWorkload, job: str, threads: int, tokens_per_batch: int) -> None:
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        torch.set_num_threads(threads)
        self._is_reward = job == "reward"
        auto: Any = AutoModelForSequenceClassification if self._is_reward else AutoModelForCausalLM
        folder = workload.reward if self._is_reward else workload.policy
        self._network: Any = auto.from_pretrained(folder, dtype=torch.float32)
        self._budget = tokens_per_batch

    def seconds(self, pairs: Sequence[Lengths]) -> dict[str, float]:
        """Measure one step's passes; for DPO also the reference's share."""
        prompts = np.array([p for p, _, _ in pairs for _ in range(2)])
        lengths = prompts + np.array([answer for _, *answers in pairs for answer in answers])
        batches = assign(lengths, 1, self._budget)[0]
        started = time.perf_counter()
        if not self._is_reward:
            with torch.no_grad():
                for rows in batches:
                    self._forward(lengths[rows], prompts[rows])
        reference = (time.perf_counter() - started) / REFERENCE_EPOCHS
        started = time.perf_counter()
        for rows in batches:
            self._forward(lengths[rows], prompts[rows]).sum().backward()
        passes = time.perf_counter() - started
        self._network.zero_grad()
        return {"step": passes + reference, "passes": passes, "reference": reference}

    def _forward(self, lengths: np.ndarray, prompts: np.ndarray) -> Tensor:
        longest = int(lengths.max())
        ids = torch.arange(len(lengths) * longest).reshape(len(lengths), longest) % 500
        hidden = self._network.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        if self._is_reward:
            last = torch.from_numpy(np.arange(len(lengths)) * longest + lengths - 1)
            scores: Tensor = self._network.score(hidden[last])
            return scores
        places = [
            row * longest + np.arange(prompt - 1, length - 1)
            for row, (length, prompt) in enumerate(zip(lengths, prompts, strict=True))
        ]
        before = torch.from_numpy(np.concatenate(places))
        logits = self._network.lm_head(hidden[before])
        return -nn.functional.cross_entropy(logits, ids.flatten()[before + 1], reduction="none")
