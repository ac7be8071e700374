"""A small encoder as reward model."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def encoder_reward_model(tiny_encoder: Path, tmp_path_factory) -> Path:
    """An encoder with a head of its own, as `rlhf reward` exports it."""
    from rlhf_ray.config.model import ModelConfig
    from rlhf_ray.models.loading import load_scalar, load_tokenizer

    model = ModelConfig(path=str(tiny_encoder), dtype="float32")
    directory = tmp_path_factory.mktemp("models") / "encoder_reward"
    load_scalar(model, seed=1).save_pretrained(directory)
    load_tokenizer(model).save_pretrained(directory)
    return directory
