"""A number from 1 to 15: whoever names another one hears whether it is higher or lower."""

from collections.abc import Mapping
from typing import Any

from rlhf_ray import Reply

HIGHEST = 15


class Guess:
    """The game for one episode. Guessing right is rewarded, whenever it happens."""

    def reset(self, prompt: Any, seed: int, secret: int) -> None:
        """Begin; `secret` is the column of that name."""
        self.secret = secret

    def step(self, turn: Mapping[str, Any]) -> Reply:
        """Take a guess."""
        text = turn["content"].strip()
        if not text.isdecimal() or not 1 <= int(text) <= HIGHEST:
            return Reply(f"a number from 1 to {HIGHEST}")
        if int(text) == self.secret:
            return Reply("right", reward=1.0, ended=True)
        return Reply("higher" if int(text) < self.secret else "lower")
