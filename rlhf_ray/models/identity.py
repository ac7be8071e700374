"""What a model is, as a hash: equal hashes give equal log-probabilities to equal tokens."""

import hashlib
import json
from pathlib import Path

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.models.loading import policy_config

SHORT_HASH = 12
"""Characters of an identity that tell versions of one path apart, for people."""
DESCRIBING = frozenset({".json", ".safetensors", ".model", ".jinja", ".txt", ".tiktoken"})
"""Suffixes of files on which a model's or its tokenizer's answers depend."""


def directory_identity(path: str) -> str:
    """Hash a model directory's files, tokenizer and all; of a hub model, its name alone."""
    directory = Path(path)
    digest = hashlib.sha256(path.encode() if not directory.is_dir() else b"")
    for file in sorted(directory.iterdir()) if directory.is_dir() else ():
        if file.suffix in DESCRIBING:
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def model_identity(model: ModelConfig) -> str:
    """Hash a model's weights, its architecture, and how it is computed (type, attention kernel).

    Files of a directory are read whole; a model of the hub is known by its commit.

    Raises:
        BadInput: it is not a language model that can be loaded.
    """
    config = policy_config(model)
    digest = hashlib.sha256(json.dumps([model.dtype, model.attention]).encode())
    directory = Path(model.path)
    if directory.is_dir():
        for file in [directory / "config.json", *sorted(directory.glob("*.safetensors"))]:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    else:
        # Transformers notes the commit that a name stood for.
        digest.update(f"{model.path}@{config._commit_hash}".encode())
    return digest.hexdigest()
