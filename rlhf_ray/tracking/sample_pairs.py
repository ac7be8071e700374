"""Samples for the report: the same prompts before and after training, and the last training step's own."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.redaction.texts import redact_text
from rlhf_ray.tracking.panels import LONGEST_LABEL, short_number
from rlhf_ray.tracking.records import EVALUATION, SAMPLES_FILE, SHOWN, read_records
from rlhf_ray.tracking.text import harmless, one_line

MOST_PAIRS = 12
# A report is read by people; the whole text stays in samples.jsonl.
MOST_CHARACTERS = 2000
LONGEST_FACT = 120
_SHOWN_APART = frozenset({"step", "kind", "prompt", "prompt_id", "response", "rewards"})


@dataclass(frozen=True, slots=True)
class ShownSample:
    """One response with what is known of it, fit to be shown."""

    step: int
    response: str
    facts: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class SamplePair:
    """A prompt with its first and its last response; one of them may be missing."""

    prompt: str
    before: ShownSample | None
    after: ShownSample | None


def read_sample_pairs(folder: Path) -> list[SamplePair]:
    """Pair evaluation samples by prompt; where there are none, those of the first and last training step."""
    first: dict[str, Mapping[str, Any]] = {}
    last: dict[str, Mapping[str, Any]] = {}
    training: list[Mapping[str, Any]] = []
    for row in read_records(folder / SAMPLES_FILE):
        if row.get("kind") in (EVALUATION, SHOWN):
            key = _key(row)
            first.setdefault(key, row)
            # The first of several responses to a prompt in one evaluation is the one that is compared.
            if key not in last or last[key]["step"] != row["step"]:
                last[key] = row
        elif not training or row["step"] in (training[0]["step"], training[-1]["step"]):
            training.append(row)
        else:
            training = [kept for kept in training if kept["step"] == training[0]["step"]] + [row]
    if first:
        return [_pair(first[key], last[key]) for key in list(first)[:MOST_PAIRS]]
    return [_alone(row, before=row["step"] == training[0]["step"]) for row in training[:MOST_PAIRS]]


def _key(row: Mapping[str, Any]) -> str:
    return str(row["prompt_id"]) if "prompt_id" in row else json.dumps(row.get("prompt"), sort_keys=True)


def _pair(before: Mapping[str, Any], after: Mapping[str, Any]) -> SamplePair:
    later = _shown(after) if after["step"] != before["step"] else None
    return SamplePair(prompt_text(before.get("prompt")), _shown(before), later)


def _alone(row: Mapping[str, Any], before: bool) -> SamplePair:
    prompt = prompt_text(row.get("prompt"))
    return SamplePair(prompt, _shown(row), None) if before else SamplePair(prompt, None, _shown(row))


def _shown(row: Mapping[str, Any]) -> ShownSample:
    rewards = row.get("rewards")
    facts = list(rewards.items()) if isinstance(rewards, Mapping) else []
    # A source may have the name of the weighted sum, which it is where it stands alone.
    facts += [fact for fact in row.items() if fact[0] not in _SHOWN_APART and fact not in facts]
    return ShownSample(
        row["step"],
        cut(str(row.get("response", ""))),
        [(one_line(str(name), LONGEST_LABEL), _fact(value)) for name, value in facts],
    )


def prompt_text(prompt: Any) -> str:
    """Write a prompt as text; of messages, one paragraph a turn with its role."""
    if isinstance(prompt, list):
        turns = [turn for turn in prompt if isinstance(turn, Mapping)]
        return cut("\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in turns))
    return cut(str(prompt or ""))


def cut(text: str) -> str:
    """Return harmless text without secrets, of at most MOST_CHARACTERS, saying how much is left out."""
    text = redact_text(text)
    left_out = len(text) - MOST_CHARACTERS
    shown = harmless(text[:MOST_CHARACTERS])
    return shown if left_out <= 0 else f"{shown}… [{left_out:,} more characters]"


def _fact(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return short_number(value)
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "none" if value is None else one_line(shown, LONGEST_FACT)
