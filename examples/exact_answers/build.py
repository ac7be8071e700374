"""Write the task of exact answers: `python -m examples.exact_answers.build OUT --seed 0`.

Which of four digits is the largest? `4 9 2 7:` wants ` 9`. The demonstrations come from a careless teacher, who is
right half of the time and else names any other of the digits; the reward knows the answer. So a model that copies its
teacher is right half of the time, and what it gains beyond that it owes to the reward.
"""

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf_ray.models.tiny import build_tiny

DIGITS = 4
CARE = 0.5
"""Share of demonstrations that are right on purpose."""


def build(
    directory: str | Path, seed: int = 0, demonstrations: int = 6000, prompts: int = 2000, held_out: int = 200
) -> dict[str, Path]:
    """Write data and an untrained model of a hundred thousand parameters; returns the files by name.

    No prompt stands in two files, and each only once in its own.

    Raises:
        ValueError: more prompts are asked for than there are.
    """
    directory = Path(directory)
    (directory / "data").mkdir(parents=True, exist_ok=True)
    numbers = random.Random(seed)
    questions = numbers.sample(range(10**DIGITS), demonstrations + prompts + held_out)
    rows = [question(number) for number in questions]
    teacher = [{**row, "completion": f" {demonstrated(row['prompt'], numbers)}"} for row in rows[:demonstrations]]
    files = {
        "sft": _write(directory / "data" / "sft.jsonl", teacher[:-held_out]),
        "sft_held_out": _write(directory / "data" / "sft_held_out.jsonl", teacher[-held_out:]),
        "prompts_train": _write(directory / "data" / "prompts_train.jsonl", rows[demonstrations:-held_out]),
        "prompts_held_out": _write(directory / "data" / "prompts_held_out.jsonl", rows[-held_out:]),
    }
    texts = [row["prompt"] + row["completion"] for row in teacher]
    # vLLM's attention on CPU takes heads of 32 and more.
    build_tiny(directory / "base", texts, hidden=64, layers=2, heads=2, vocab_size=300, seed=seed)
    return files


def question(number: int) -> dict[str, Any]:
    """Make a prompt with its answer, by the digits of a number."""
    digits = f"{number:0{DIGITS}d}"
    return {"prompt": f"{' '.join(digits)}:", "answer": int(max(digits))}


def demonstrated(prompt: str, numbers: random.Random) -> str:
    """Return what the careless teacher says."""
    digits = sorted(prompt.removesuffix(":").split(), reverse=True)
    return digits[0] if numbers.random() < CARE else numbers.choice(digits[1:])


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", default="outputs/exact_answers", help="folder to write into")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for path in build(arguments.directory, arguments.seed).values():
        print(path)


if __name__ == "__main__":
    main()
