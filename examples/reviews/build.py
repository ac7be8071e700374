"""Write the data files of the reviews story: `python -m examples.reviews.build OUT --seed 0`."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from examples.reviews import grammar

HELD_OUT_SEED_OFFSET = 1_000_003
"""Added to the seed for rows kept aside, so that they are written apart from the others."""


def build(
    directory: str | Path,
    seed: int = 0,
    reviews: int = 6000,
    rankings: int = 2000,
    pairs: int = 2000,
    held_out: int = 300,
    languages: tuple[str, ...] = ("zh", "en"),
    domains: tuple[str, ...] = grammar.DOMAINS,
) -> dict[str, Path]:
    """Write all files into `directory` and return them by name (without suffix)."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    other = seed + HELD_OUT_SEED_OFFSET
    texts = {
        "sft": grammar.texts(reviews, seed, languages, domains=domains),
        "sft_held_out": grammar.texts(held_out, other, languages, domains=domains),
    }
    lists = {
        "rankings": grammar.rank_lists(rankings, seed, languages, domains=domains),
        "rankings_held_out": grammar.rank_lists(held_out, other, languages, domains=domains),
    }
    two = {
        "pairs": grammar.pairs(pairs, seed, languages, domains=domains),
        "pairs_held_out": grammar.pairs(held_out, other, languages, domains=domains),
    }
    files: dict[str, Path] = {}
    for name, rows in texts.items():
        content = ({"prompt": row.prompt, "completion": row.completion} for row in rows)
        files[name] = _write_jsonl(directory / f"{name}.jsonl", content)
    for name, ranked in lists.items():
        files[name] = directory / f"{name}.tsv"
        files[name].write_text("".join("\t".join(row.texts) + "\n" for row in ranked), encoding="utf-8")
    for name, ranked in two.items():
        content = ({"prompt": r.prompt, "chosen": r.completions[0], "rejected": r.completions[1]} for r in ranked)
        files[name] = _write_jsonl(directory / f"{name}.jsonl", content)
    for part in ("train", "held_out"):
        content = ({"prompt": prompt} for prompt in grammar.prompts(part, languages, domains))
        files[f"prompts_{part}"] = _write_jsonl(directory / f"prompts_{part}.jsonl", content)
    return files


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", help="folder to write into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reviews", type=int, default=6000, help="texts for supervised training")
    parser.add_argument("--rankings", type=int, default=2000, help="rank lists of 2 to 9 texts")
    parser.add_argument("--pairs", type=int, default=2000, help="pairs of a better and a worse text")
    parser.add_argument("--held-out", type=int, default=300, help="rows of each kind kept aside")
    parser.add_argument("--domains", nargs="+", choices=grammar.DOMAINS, default=grammar.DOMAINS, help="what of")
    arguments = parser.parse_args()
    files = build(
        arguments.directory,
        arguments.seed,
        arguments.reviews,
        arguments.rankings,
        arguments.pairs,
        arguments.held_out,
        domains=tuple(arguments.domains),
    )
    for path in files.values():
        print(path)


if __name__ == "__main__":
    main()
