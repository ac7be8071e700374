"""The model of all parts: random weights in the sizes of Qwen2.5-0.5B, made once."""

from pathlib import Path

HIDDEN, LAYERS, HEADS, KEY_VALUE_HEADS, INTERMEDIATE, VOCABULARY = 896, 24, 14, 2, 4864, 151_936

TEXTS = ["The quick brown fox jumps over the lazy dog.", "刚收到货，感觉质量一般，有点失望。"]


def miniature(folder: Path) -> Path:
    """Write a model of the same kind that takes no time."""
    from rlhf_ray.models.tiny import build_tiny

    return build_tiny(folder / "miniature", TEXTS, heads=1)


def half_billion(folder: Path) -> Path:
    """Return the model's directory below a folder; it is written at the first call, 2 GB."""
    from rlhf_ray.models.tiny import build_tiny

    directory = folder / "model"
    if not (directory / "tokenizer.json").is_file():
        build_tiny(
            directory,
            TEXTS,
            hidden=HIDDEN,
            layers=LAYERS,
            heads=HEADS,
            key_value_heads=KEY_VALUE_HEADS,
            intermediate=INTERMEDIATE,
            vocab_size=VOCABULARY,
            max_tokens=4096,
        )
    return directory
