"""What is known of a model before it is loaded, read once in a process: for the plan, for all checks, for the start."""

import os
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

Stamp = tuple[tuple[str, int, int], ...]
"""Name, time of change in ns and bytes of each file of a directory."""


class ModelFacts:
    """Facts of one model directory or hub name; each is read when it is first asked for.

    What is handed out is shared: it may be read, and must be copied before it is changed. Whatever Transformers raises
    for what it cannot read comes through, and is tried again at the next asking.
    """

    def __init__(self, path: str, trust_remote_code: bool) -> None:
        self.path = path
        self.trust_remote_code = trust_remote_code
        self.sound: set[str] = set()
        """What of it was looked through and found in order; whoever does so once keeps it here."""
        self.tokenizers: dict[tuple[ModelFacts, str | None], tuple[Any, bool]] = {}
        """Its tokenizer beside a model, with a chat template, and whether it is as it was saved."""

    @cached_property
    def config(self) -> Any:
        """Its configuration."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)

    @cached_property
    def language_model(self) -> Any:
        """Its network as a language model on torch's meta device: layers with their shapes, without weights."""
        from transformers import AutoModelForCausalLM

        return self.network_of(AutoModelForCausalLM, self.config)

    @cached_property
    def classifier(self) -> Any:
        """Return its network as a sequence classifier, likewise on the meta device."""
        from transformers import AutoModelForSequenceClassification

        return self.network_of(AutoModelForSequenceClassification, self.config)

    def network_of(self, auto: Any, config: Any) -> Any:
        """Make the network of a configuration, or of a part of it, on torch's meta device."""
        with torch.device("meta"):
            return auto.from_config(deepcopy(config), trust_remote_code=self.trust_remote_code)


_known: dict[tuple[str, bool], tuple[Stamp, ModelFacts]] = {}


def facts_of(path: str, trust_remote_code: bool = False) -> ModelFacts:
    """Return what is known of a model; anew where files of its directory have changed since."""
    key, stamp = (path, trust_remote_code), _stamp(path)
    if key not in _known or _known[key][0] != stamp:
        _known[key] = stamp, ModelFacts(path, trust_remote_code)
    return _known[key][1]


def _stamp(path: str) -> Stamp:
    if not Path(path).is_dir():
        return ()
    with os.scandir(path) as entries:
        found = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    return tuple(sorted((name, state.st_mtime_ns, state.st_size) for name, state in found))


SIXTEEN_BITS = 2
"""Bytes of a weight on the hub, where files are not at hand to be counted."""


def weight_bytes(path: str, trust_remote_code: bool = False) -> int:
    """Return the bytes of a model's weights, by its files or a hub name's config; 0 where they are not known."""
    files = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    if files or Path(path).is_dir():
        return files
    try:
        network = facts_of(path, trust_remote_code).language_model
    except Exception:  # whatever Transformers says: whoever loads it will tell
        return 0
    return SIXTEEN_BITS * sum(parameter.numel() for parameter in network.parameters())


def checkpoint_shapes(path: str) -> dict[str, tuple[int, ...]] | None:
    """Return names and shapes in a checkpoint directory's safetensors headers; None for a hub name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return shapes or None
