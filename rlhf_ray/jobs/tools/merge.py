"""`rlhf merge`: an adapter and its model as one Hugging Face directory, with scalar head, tokenizer and template."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.tools import MergeConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.models.loading import load_policy, load_scalar, load_tokenizer, policy_config, scalar_config
from rlhf_ray.training.export import save_network, write_directory

SETTINGS_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
MOST_NAMED = 3
"""Tensors that an error names before it only counts the rest."""


def run(config: MergeConfig) -> None:
    """Merge in float32 and write; the directory appears when it is whole.

    Raises:
        BadInput: there is no adapter, or none that is kept in weights, or it belongs to another model.
        CheckpointError: the storage is full, or refuses to be written.
    """
    adapter, output = Path(config.adapter).expanduser(), Path(config.output).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(f"output: {config.output} exists already; name a new directory")
    settings, tensors = read_adapter(adapter)
    base = config.base or settings.base_model_name_or_path
    if not base:
        raise BadInput(f"{config.adapter}: does not say which model it belongs to; name it with --base")
    scalar = settings.task_type == "SEQ_CLS"
    model = ModelConfig(path=base, dtype="float32", trust_remote_code=config.trust_remote_code)
    try:
        described = scalar_config(model) if scalar else policy_config(model)
        network = load_scalar(model, seed=0) if scalar else load_policy(model)
    except BadInput as error:
        raise BadInput(f"{error} (the model of this adapter; --base names it if it has moved)") from error
    merged = merge(network, settings, tensors, config.adapter)
    merged.to(getattr(torch, config.dtype) if config.dtype else described.dtype or torch.float32)
    has_tokenizer = (adapter / "tokenizer_config.json").is_file()
    words = model.model_copy(update={"tokenizer": config.adapter if has_tokenizer else None})

    def save(folder: Path) -> None:
        tokenizer = load_tokenizer(words)
        save_network(merged, tokenizer, folder)
        tokenizer.save_pretrained(folder)
        # What is said of the adapted model beside it, such as how a reward model's scores lie.
        for file in adapter.glob("*.json"):
            if file.name != SETTINGS_FILE and not (folder / file.name).exists():
                shutil.copy(file, folder)

    write_directory(str(output), save)
    print(f"{config.output}: {base} with {config.adapter}")


def read_adapter(directory: Path) -> tuple[Any, dict[str, Tensor]]:
    """Read PEFT's settings of an adapter, and its tensors by name.

    Raises:
        BadInput: it is none, or its files are damaged or of an unsafe kind.
    """
    from peft import PeftConfig

    if not directory.is_dir():
        raise BadInput(f"adapter: no such directory: {directory}")
    if not (directory / SETTINGS_FILE).is_file():
        whole = "; it is a whole model already" if (directory / "config.json").is_file() else ""
        raise BadInput(f"adapter: {directory} is no adapter: it has no {SETTINGS_FILE}{whole}")
    try:
        settings = PeftConfig.from_pretrained(str(directory))
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{directory / SETTINGS_FILE}: cannot be read: {error}") from error
    if settings.peft_type != "LORA":
        raise BadInput(f"adapter: {directory} is of type {settings.peft_type}; only LORA is merged here")
    if not (directory / WEIGHTS_FILE).is_file():
        raise BadInput(f"adapter: {directory} holds no {WEIGHTS_FILE}; save it anew by save_pretrained of PEFT")
    try:
        return settings, load_file(directory / WEIGHTS_FILE)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{directory / WEIGHTS_FILE}: is damaged, or was not copied to its end ({error})") from error


def merge(network: nn.Module, settings: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Add an adapter to the weights of its network, which is returned.

    Args:
        network: a Hugging Face network; it is changed.
        settings: PEFT's, of the adapter.
        tensors: of the adapter's file.
        name: of the adapter, for messages.

    Raises:
        BadInput: the adapter belongs to another network.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    foreign = f"adapter: {name} does not belong to {settings.base_model_name_or_path or 'this model'}"
    hint = "name its own model with --base"
    try:
        _fit_embeddings(network, settings, tensors)
        adapted = get_peft_model(network, settings)
        expected = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
        # Embeddings come along whole where an adapter is on them, or where tokens were added.
        known = expected | get_peft_model_state_dict(adapted, save_embedding_layers=True).keys()
        missing = sorted((expected - tensors.keys()) | (tensors.keys() - known))
        if missing:
            named = ", ".join(missing[:MOST_NAMED])
            raise BadInput(f"{foreign}: {len(missing)} tensors are on one side only ({named}); {hint}")
        set_peft_model_state_dict(adapted, {key: value.float() for key, value in tensors.items()})
    except (ValueError, RuntimeError) as error:
        raise BadInput(f"{foreign}: {str(error).splitlines()[-1].strip()}; {hint}") from error
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise BadInput(f"adapter: {name}: {key} holds values that are not finite")
    return adapted.merge_and_unload()


def _fit_embeddings(network: Any, settings: Any, tensors: Mapping[str, Tensor]) -> None:
    """Give a network as many embeddings as its adapter has, and an output layer of its own where they part.

    A tied output layer parts from the embedding where one of the two has an adapter, or is saved whole.
    """
    embedding, output = network.get_input_embeddings(), network.get_output_embeddings()
    names = [name for name, module in network.named_modules() if module is embedding or module is output]
    brought = [key for key in tensors if any(f".{name}." in key for name in names)]
    whole = [tensors[key] for key in brought if key.endswith(".weight") and ".lora_" not in key]
    rows = {len(tensor) for tensor in whole} - {len(embedding.weight)}
    if len(rows) == 1:
        network.resize_token_embeddings(rows.pop(), mean_resizing=False)
        embedding, output = network.get_input_embeddings(), network.get_output_embeddings()
    saved = {name.rpartition(".")[2] for name in names} & set(settings.modules_to_save or ())
    changed = bool(saved) or any(".lora_" in key for key in brought)
    if changed and output is not None and output.weight is embedding.weight and not settings.ensure_weight_tying:
        output.weight = nn.Parameter(output.weight.detach().clone())
        network.config.tie_word_embeddings = network.config.get_text_config().tie_word_embeddings = False
