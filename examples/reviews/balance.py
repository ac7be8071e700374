"""A cost for safe RLHF on the reviews: a review that shows only one side of its product misleads."""

import re
from collections.abc import Sequence
from typing import Any

TURN = re.compile(
    r"(?<!不)但|不过|可是|然而|只是|虽|尽管"
    r"|\b(?:but|yet|however|although|even though)\b(?<!nothing but)(?<!anything but)",
    re.IGNORECASE,
)
"""Words that set one side against the other, but not those in 不但 (not only) and "anything but"."""


def one_sided(prompts: Sequence[Any], completions: Sequence[str], **_: Any) -> list[float]:
    """1 for a review that never turns from one side to the other, 0 for one that does."""
    return [float(TURN.search(completion) is None) for completion in completions]
