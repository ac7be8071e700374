"""The reward of `benchmarks/grpo.py`, for both contenders: cheap, and of text alone."""

from typing import Any


def share_of_vowels(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Of each completion's characters, how many are vowels."""
    return [sum(text.count(vowel) for vowel in "aeiou") / max(1, len(text)) for text in completions]
