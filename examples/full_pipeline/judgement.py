"""The grammar's own judgement, as a reward function: no training sees it."""

from collections.abc import Sequence

from examples.reviews.oracle import oracle


def positive(prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float]:
    """Return how positive each review is, from 0 to 1."""
    return [oracle(prompt + completion) for prompt, completion in zip(prompts, completions, strict=True)]
