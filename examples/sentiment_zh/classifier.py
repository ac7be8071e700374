"""A small Chinese sentiment classifier, trained on texts of the grammar; loads with plain Transformers.

`python -m examples.sentiment_zh.build` calls this. Any classifier whose labels begin with `positive` and `negative`
does in its place: judge.py says how.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForSequenceClassification, set_seed

from examples.reviews.grammar import Review

LABELS = ("negative", "positive")
NEUTRAL = 0.2
"""Texts whose share of good judgements lies so near to a half are left out: they have no sentiment to learn."""
BATCH, EPOCHS, LEARNING_RATE = 32, 4, 2e-3
LONGEST = 64
"""Tokens of a text."""


def train_classifier(directory: Path, tokenizer_of: Path, reviews: Sequence[Review], seed: int) -> float:
    """Train on nine tenths of the reviews, write a model directory, and return the accuracy on the others."""
    rows = [(review.text, int(review.level > 0.5)) for review in reviews if abs(review.level - 0.5) > NEUTRAL]
    random.Random(seed).shuffle(rows)
    held_out, rows = rows[: len(rows) // 10], rows[len(rows) // 10 :]
    set_seed(seed)
    # Its matrices are so small that threads would only wait for one another.
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    network = Qwen2ForSequenceClassification(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=256,
            pad_token_id=tokenizer.pad_token_id,
            id2label=dict(enumerate(LABELS)),
            label2id={label: number for number, label in enumerate(LABELS)},
        )
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    for epoch in range(EPOCHS):
        random.Random(f"{seed} {epoch}").shuffle(rows)
        for start in range(0, len(rows), BATCH):
            texts, labels = zip(*rows[start : start + BATCH], strict=True)
            loss = network(**encode(tokenizer, texts), labels=torch.tensor(labels)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return accuracy(network.eval(), tokenizer, held_out)


@torch.inference_mode()
def accuracy(network: Qwen2ForSequenceClassification, tokenizer: Any, rows: Sequence[tuple[str, int]]) -> float:
    right = 0
    for start in range(0, len(rows), BATCH):
        texts, labels = zip(*rows[start : start + BATCH], strict=True)
        found = network(**encode(tokenizer, texts)).logits.argmax(-1)
        right += int((found == torch.tensor(labels)).sum())
    return right / len(rows)


def encode(tokenizer: Any, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    batch = tokenizer(list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}
