"""Whether a model's config.json contradicts itself, or the weights beside it."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from rlhf_ray.config.errors import BadInput

CONFIG_FILE = "config.json"
EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
"""Names of the table that has a row for each token."""
SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    "vocab_size",
)
LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)\.")

Shapes = Mapping[str, tuple[int, ...]]


def check_coherence(path: str, config: Any, shapes: Shapes | None) -> None:
    """Check that the sizes and the architecture that a model's config.json says go together.

    Args:
        path: directory or hub name of the model.
        config: what Transformers read of it.
        shapes: names and shapes of the weights; None where they are not here.

    Raises:
        BadInput: names the file, the key and what to do.
    """
    said = _said(path)
    text = config.get_text_config()
    for key, problem in chain(_sizes(text, said), _architecture(config), _weights(text, shapes or {})):
        # Each type has names of its own in its file, as GPT-2 says n_head.
        for general, own in text.attribute_map.items():
            if general not in said:
                key, problem = (re.sub(rf"\b{general}\b", own, said_of) for said_of in (key, problem))
        raise BadInput(f"{Path(path) / CONFIG_FILE}: {key}: {problem}")


def _said(path: str) -> dict[str, Any]:
    """Return what a local file says, without what Transformers adds; the text model's part where it has one."""
    try:
        said = json.loads((Path(path) / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(said, dict):
        return {}
    text = said.get("text_config")
    return said | text if isinstance(text, dict) else said


def _sizes(text: Any, said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what does not go together in the sizes of a network."""
    for key in SIZES:
        size = _size(text, key)
        if isinstance(size, int) and size < 1:
            yield key, f"is {size}, and a network has at least 1; take the file of the model's own release"
    width, heads = _size(text, "hidden_size"), _size(text, "num_attention_heads")
    if not isinstance(width, int) or not isinstance(heads, int):
        return
    # Of models whose heads have a width of their own, some say it in the file, some have it by their type.
    if "head_dim" not in said and _size(text, "head_dim") in (None, width // heads) and width % heads:
        yield (
            "hidden_size",
            f"{width} is no multiple of num_attention_heads, {heads}; mend one of them, or say head_dim",
        )
    shared = _size(text, "num_key_value_heads")
    if isinstance(shared, int) and (shared > heads or heads % shared):
        yield "num_key_value_heads", f"{shared} does not divide num_attention_heads, {heads}; mend one of them"


def _size(text: Any, key: str) -> Any:
    """Return what a config says of all layers alike; None where it says nothing, or something else of each layer."""
    try:
        return getattr(text, key, None)
    except RuntimeError:  # Transformers' answer where layers differ, as those of Gemma 4 do
        return None


def _architecture(config: Any) -> Iterator[tuple[str, str]]:
    """Yield architectures by which engines go, of another model type than that by which training goes."""
    if not isinstance(config.architectures or [], list):
        yield "architectures", f"is a list, such as [{config.architectures}], not {config.architectures!r}"
    for name in config.architectures or []:
        types = _types().get(name)
        if types and config.model_type not in types:
            yield (
                "architectures",
                f"{name} is of model_type {' or '.join(sorted(types))}, but model_type is {config.model_type}; "
                "engines go by the one and training by the other: mend one of them",
            )


@cache
def _types() -> dict[str, set[str]]:
    """Return the model types of each architecture that Transformers knows."""
    from transformers.models.auto import modeling_auto

    found: dict[str, set[str]] = {}
    for table, names in vars(modeling_auto).items():
        if table.startswith("MODEL_") and table.endswith("MAPPING_NAMES"):
            for kind, classes in names.items():
                for name in (classes,) if isinstance(classes, str) else classes:
                    found.setdefault(name, set()).add(kind)
    return found


def _weights(text: Any, shapes: Shapes) -> Iterator[tuple[str, str]]:
    """Yield what the weights have more or less of than the config says."""
    tokens = _size(text, "vocab_size")
    for name, shape in shapes.items():
        if EMBEDDINGS.search(name) and isinstance(tokens, int) and shape[0] != tokens:
            yield "vocab_size", f"{tokens}, but the weights have {shape[0]} embeddings ({name}); mend the config"
        width = _size(text, "word_embed_proj_dim") or _size(text, "embedding_size") or _size(text, "hidden_size")
        if EMBEDDINGS.search(name) and len(shape) == 2 and shape[1] != width:
            yield "hidden_size", f"{width}, but the weights are {shape[1]} wide ({name}); mend the config"
    layers = _size(text, "num_hidden_layers")
    there = {int(found[1]) for found in map(LAYER.search, shapes) if found}
    if isinstance(layers, int) and there and max(there) + 1 < layers:
        yield "num_hidden_layers", f"{layers}, but the weights have {max(there) + 1} layers; mend the config"


def check_weight_shapes(path: str, network: Any, shapes: Shapes | None) -> None:
    """Check that weights have the shapes that the sizes of the config make.

    Args:
        path: directory or hub name of the model.
        network: made from the config.
        shapes: names and shapes of the weights; None where they are not here.

    Raises:
        BadInput: names the file and the first weight of another shape.
    """
    if shapes is None or getattr(network.config, "quantization_config", None):
        return
    for name, weight in network.named_parameters():
        if name in shapes and shapes[name] != tuple(weight.shape):
            raise BadInput(
                f"{Path(path) / CONFIG_FILE}: its sizes make {name} of shape {list(weight.shape)}, but the weights "
                f"have {list(shapes[name])}; mend the config"
            )
