"""The floor of `benchmarks/ppo.py` and `grpo.py`: bare vLLM, then bare forward and backward passes of the same tokens.

No rewards, advantages, losses, optimizer steps or weight syncs; nobody waits for anybody. Batches are cut as well as
the product's, and from all samples at once, which an algorithm that draws minibatches cannot do.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.ppo_workload import PROMPT_TOKENS, Workload
from rlhf_ray.data.batches import assign


class BarePasses:
    """Plain Transformers models: no optimizer, no DeepSpeed, no other process."""

    def __init__(
        self, workload: Workload, has_critic: bool, policy_inferences: int, threads: int, tokens_per_batch: int
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        torch.set_num_threads(threads)
        self._policy: Any = AutoModelForCausalLM.from_pretrained(workload.policy, dtype=torch.float32)
        self._critic: Any = None
        if has_critic:
            self._critic = AutoModelForSequenceClassification.from_pretrained(
                workload.reward, num_labels=1, dtype=torch.float32
            )
        self._policy_inferences = policy_inferences
        self._budget = tokens_per_batch

    def seconds(self, lengths: Sequence[int], epochs: int) -> dict[str, float]:
        """Measure the inference passes of all networks, and `epochs` training passes of policy and critic."""
        rows = np.array(lengths) + PROMPT_TOKENS
        batches = [rows[batch] for batch in assign(rows, 1, self._budget)[0]]
        started = time.perf_counter()
        with torch.no_grad():
            for batch in batches:
                # The reference is of the policy's size, and the reward model of the critic's.
                for _ in range(self._policy_inferences):
                    self._logprobs(batch)
                for _ in range(2 if self._critic is not None else 0):
                    self._values(batch)
        inferred = time.perf_counter()
        for _ in range(epochs):
            for batch in batches:
                self._logprobs(batch).sum().backward()
                if self._critic is not None:
                    self._values(batch).square().sum().backward()
            self._policy.zero_grad()
            if self._critic is not None:
                self._critic.zero_grad()
        return {"inference": inferred - started, "training": time.perf_counter() - inferred}

    def _logprobs(self, lengths: np.ndarray) -> Tensor:
        ids, places = _padded(lengths)
        hidden = self._policy.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)[places]
        logits = self._policy.lm_head(hidden)
        return -nn.functional.cross_entropy(logits, ids.flatten()[places + 1], reduction="none")

    def _values(self, lengths: np.ndarray) -> Tensor:
        ids, places = _padded(lengths)
        hidden = self._critic.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)[places]
        values: Tensor = self._critic.score(hidden)
        return values


def _padded(lengths: np.ndarray) -> tuple[Tensor, Tensor]:
    """Make any ids, padded on the right, and the place before each response token in them."""
    longest = int(lengths.max())
    ids = torch.arange(len(lengths) * longest).reshape(len(lengths), longest) % 500
    places = [row * longest + np.arange(PROMPT_TOKENS - 1, length - 1) for row, length in enumerate(lengths)]
    return ids, torch.from_numpy(np.concatenate(places))
