"""All that the tutorial starts from, made from nothing: `python -m examples.sentiment_zh.build`.

Chinese reviews, rank lists and prompts, a tokenizer with an untrained language model, and a sentiment classifier.
"""

import argparse
import json
from pathlib import Path

from examples.reviews import grammar
from examples.reviews.build import build as build_data
from examples.sentiment_zh.classifier import train_classifier
from rlhf_ray.models.tiny import build_tiny

OUTPUT = Path("outputs/sentiment_zh")
REVIEWS, RANK_LISTS, CLASSIFIER_TEXTS = 4000, 1600, 4000
CLASSIFIER_SEED_OFFSET = 77_777
"""Added to the seed, so that the classifier learns from texts that the language model never saw."""
TWO_TEXTS = (
    "新买的耳机非常好用，质量没得挑，已经回购两次，强烈推荐。",
    "这台手机真的很卡顿，退了！又买一台还是一碰就坏。",
)
"""A pleased and a displeased one, in words that a model of this grammar has met."""


def build(output: Path, seed: int = 0, scale: float = 1.0) -> float:
    """Write everything below `output`; returns the classifier's accuracy on texts kept aside."""

    def share(full: int) -> int:
        return max(40, round(full * scale))

    files = build_data(
        output / "data",
        seed=seed,
        reviews=share(REVIEWS),
        rankings=share(RANK_LISTS),
        pairs=2,
        held_out=min(200, share(RANK_LISTS)),
        languages=("zh",),
    )
    rows = [json.loads(line) for line in files["sft"].read_text(encoding="utf-8").splitlines()]
    texts = [row["prompt"] + row["completion"] for row in rows]
    build_tiny(output / "base", texts, hidden=128, layers=4, heads=4, vocab_size=2048, tie=True, seed=seed)
    two = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TWO_TEXTS)
    (output / "data" / "two_texts.jsonl").write_text(two, encoding="utf-8")
    reviews = grammar.texts(share(CLASSIFIER_TEXTS), seed + CLASSIFIER_SEED_OFFSET, ("zh",))
    return train_classifier(output / "classifier", output / "base", reviews, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the texts, for a quick look")
    arguments = parser.parse_args()
    found = build(OUTPUT, arguments.seed, arguments.scale)
    print(f"{OUTPUT}: data, base, classifier (right for {found:.1%} of texts kept aside)")


if __name__ == "__main__":
    main()
