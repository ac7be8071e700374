"""A reward model from rank lists, with its curves: `python -m examples.sentiment_zh.reward_model`.

What trains is `rlhf reward examples/sentiment_zh/reward.yaml`, to which options are handed.
"""

import sys
from collections.abc import Sequence

from examples.sentiment_zh.build import OUTPUT
from examples.sentiment_zh.follow import HELP, draw, rlhf, run, whole_rows

PICTURE = OUTPUT / "logs" / "Reward-Model-Zh.png"
CURVES = (("loss", "loss"), ("accuracy of pairs", "accuracy"), ("margin", "margin"))


def main(options: Sequence[str]) -> None:
    """Train, then draw."""
    run(*rlhf("reward", "reward.yaml", *options))
    if HELP.intersection(options):
        return
    draw(PICTURE, "Reward-Model-Zh", whole_rows(OUTPUT / "reward" / "metrics.jsonl"), CURVES, columns=3, unit="steps")
    print(f"reward model: {OUTPUT / 'reward' / 'final'}, curves: {PICTURE}")


if __name__ == "__main__":
    main(sys.argv[1:])
