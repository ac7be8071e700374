"""The tokens of an episode as they come: what the policy wrote stays as it was written, nothing is encoded again."""

import numpy as np
from jaxtyping import Bool, Float32

from rlhf_ray.data.records import WeightSpan
from rlhf_ray.data.tokenization import Ids
from rlhf_ray.rollout.requests import Completion


class Transcript:
    """A response that the policy and others write in turns."""

    def __init__(self, prompt_ids: Ids) -> None:
        self.prompt_ids = prompt_ids
        self.spans: list[WeightSpan] = []
        """Of what the policy wrote, and of nothing else."""
        self.length = 0
        """Tokens of the response."""
        self.attempt = 0
        """Requests that were sent in vain."""
        self._ids: list[Ids] = []
        self._written: list[Bool[np.ndarray, " piece"]] = []
        self._logprobs: list[Float32[np.ndarray, " piece"]] = []
        self._rewards: dict[int, float] = {}
        """By place of a turn's last token."""

    @property
    def context(self) -> Ids:
        """All that the policy has read and written."""
        return np.concatenate([self.prompt_ids, *self._ids]).astype(np.int32)

    def write(self, completion: Completion) -> None:
        """Add a turn of the policy."""
        start = self.length
        self.spans += [WeightSpan(start + s.start, start + s.end, s.version) for s in completion.weight_spans]
        self.attempt += completion.attempt
        self._add(completion.token_ids, completion.logprobs, written=True)

    def hear(self, ids: Ids) -> None:
        """Add what others said."""
        self._add(ids, np.zeros(len(ids), np.float32), written=False)

    def reward(self, value: float) -> None:
        """Reward the last token, which ends a turn of the policy."""
        self._rewards[self.length - 1] = value

    def _add(self, ids: Ids, logprobs: Float32[np.ndarray, " piece"], *, written: bool) -> None:
        self._ids.append(ids)
        self._written.append(np.full(len(ids), written))
        self._logprobs.append(logprobs)
        self.length += len(ids)

    def response_ids(self) -> Ids:
        """Return the tokens of the response."""
        return self.context[len(self.prompt_ids) :]

    def written(self) -> Bool[np.ndarray, " response"]:
        """Return which of them the policy wrote."""
        return np.concatenate([*self._written, np.zeros(0, bool)])

    def logprobs(self) -> Float32[np.ndarray, " response"]:
        """Return what the engines said of them; 0 for those of others."""
        return np.concatenate([*self._logprobs, np.zeros(0, np.float32)]).astype(np.float32)

    def turn_rewards(self) -> Float32[np.ndarray, " response"]:
        """Return what was given for each turn, at its last token."""
        rewards = np.zeros(self.length, np.float32)
        for place, value in self._rewards.items():
            rewards[place] = value
        return rewards

    def total_reward(self) -> float:
        """Return the sum of what was given, 0 where no turn was taken to its end."""
        return float(sum(self._rewards.values()))
