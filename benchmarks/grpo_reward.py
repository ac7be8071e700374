"""The reward of `benchmarks/grpo.py`, for both contenders: cheap, and of text alone."""

from typing import Any


def share_of_vowels(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Return which share of each completion's characters are vowels."""
    return [sum(text.count(vowel) for vowel in "aeiou") / max(1, len(text)) for text in completions]
