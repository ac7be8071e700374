"""Names of the phases in which roles work, and which roles are awake in each."""

from collections.abc import Mapping

GENERATE, SCORE, TRAIN, SYNC = "generate", "score", "train", "sync"
LOGPROBS = "log-probabilities"

Phases = Mapping[str, tuple[str, ...]]
"""Sections of the config whose roles are awake, by phase."""
