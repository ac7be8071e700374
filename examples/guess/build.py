"""Write the game's data and an untrained model: `python -m examples.guess.build OUT --seed 0`.

The demonstrations are games of a player who guesses blindly, any number with equal chance, whatever was said. So a
model that copies it knows how a game looks and nothing of how to win one.
"""

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from examples.guess.guess import HIGHEST, Guess
from rlhf_ray.models.tiny import build_tiny

TURNS = 4
QUESTION = {"role": "user", "content": f"guess a number from 1 to {HIGHEST}"}


def build(directory: str | Path, seed: int = 0, games: int = 3000) -> dict[str, Path]:
    """Write data and an untrained model of a hundred thousand parameters; returns the files by name."""
    directory = Path(directory)
    (directory / "data").mkdir(parents=True, exist_ok=True)
    numbers = random.Random(seed)
    played = [{"messages": blind_game(numbers)} for _ in range(games)]
    files = {
        "games": _write(directory / "data" / "games.jsonl", played),
        "secrets": _write(
            directory / "data" / "secrets.jsonl",
            [{"prompt": [QUESTION], "secret": secret} for secret in range(1, HIGHEST + 1)],
        ),
    }
    texts = [turn["content"] for game in played for turn in game["messages"]]
    # vLLM's attention on CPU takes heads of 32 and more.
    build_tiny(directory / "base", texts, hidden=64, layers=2, heads=2, vocab_size=320, seed=seed)
    return files


def blind_game(numbers: random.Random) -> list[dict[str, str]]:
    """Play a game with guesses that have nothing to do with what was said."""
    game, messages = Guess(), [QUESTION]
    game.reset(None, 0, numbers.randint(1, HIGHEST))
    for _ in range(TURNS):
        guess = {"role": "assistant", "content": str(numbers.randint(1, HIGHEST))}
        reply = game.step(guess)
        messages += [guess, {"role": "user", "content": str(reply.messages)}]
        if reply.ended:
            break
    return messages


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", default="outputs/guess", help="folder to write into")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for path in build(arguments.directory, arguments.seed).values():
        print(path)


if __name__ == "__main__":
    main()
