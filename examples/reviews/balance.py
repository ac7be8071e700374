"""A cost for safe RLHF on the reviews: a review that shows only one side of its product misleads."""

import re
from collections.abc import Sequence
from typing import Any

TURN = re.compile(
    r"(?<![不非])但(?!愿)|(?<![不仅])只是|(?<![只好])不过(?!如此)|可是|然而|虽然|虽说|尽管"
    r"|(?<!nothing )(?<!anything )(?<!all )\bbut\b(?! not least)|\b(?:however|although|even though)\b"
    r"|(?<!not )\byet\b(?! to\b|\s*[.!]|\s*$)",
    re.IGNORECASE,
)
"""Words that set one side against the other; not where they mean "not only", "almost" or "nothing special"."""


def one_sided(prompts: Sequence[Any], completions: Sequence[str], **_: Any) -> list[float]:
    """Return 1 for a review that never turns from one side to the other, 0 for one that does."""
    return [float(TURN.search(completion) is None) for completion in completions]
