"""A sentiment classifier as reward function: the probability that a text is pleased.

CLASSIFIER may be any text classifier of Transformers, a directory or a hub name, such as
uer/roberta-base-finetuned-jd-binary-chinese; what counts is that its labels begin with `positive` and `negative`.
"""

from functools import cache
from typing import Any

import torch

CLASSIFIER = "outputs/sentiment_zh/classifier"
BATCH = 32
LONGEST = 64
"""Tokens of a text."""


def sentiment(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """Score each prompt with its completion, from 0 to 1."""
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return [pleasure(label, score) for label, score in classify(texts)]


def pleasure(label: str, score: float) -> float:
    """Return the score where the label is positive, 1 - score where negative; raises ValueError for any other."""
    if label.lower().startswith("positive"):
        return score
    if label.lower().startswith("negative"):
        return 1 - score
    raise ValueError(f"the classifier answers {label!r}; a label must begin with `positive` or `negative`")


@torch.inference_mode()
def classify(texts: list[str]) -> list[tuple[str, float]]:
    """Return the most likely label of each text, and its probability."""
    tokenizer, network = load()
    found = []
    for start in range(0, len(texts), BATCH):
        batch = tokenizer(
            texts[start : start + BATCH], padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
        )
        # Some classifiers know no token types.
        batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
        best = network(**batch).logits.float().softmax(-1).max(-1)
        found += [
            (network.config.id2label[int(number)], float(score))
            for number, score in zip(best.indices, best.values, strict=True)
        ]
    return found


@cache
def load() -> tuple[Any, Any]:
    """Load tokenizer and network."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(1)
    network = AutoModelForSequenceClassification.from_pretrained(CLASSIFIER, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(CLASSIFIER), network.eval()
