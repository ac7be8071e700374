"""A trained network as a Hugging Face directory, written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from rlhf_ray.checkpoint.storage import CheckpointError, filesystem, local_path, sync_folder
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.data.tokenization import Encoder
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.lora import files_settings, has_adapter, saved_name


def export(
    network: Any, model: ModelConfig, directory: str, rank: int, replaced: Mapping[str, Tensor] | None = None
) -> None:
    """Gather the weights on rank 0, which writes safetensors, config and tokenizer; all ranks must call.

    Of a network with an adapter it writes the adapter, with the scalar head if there is one, as PEFT does.
    An older export at the same place stays until the new one is whole.

    Args:
        network: Hugging Face network; its parameters may be sharded (ZeRO-3).
        model: what it was loaded from; gives the tokenizer.
        directory: path or URL.
        rank: of this process.
        replaced: weights by parameter that are written instead of the network's own.

    Raises:
        CheckpointError: the storage is full, or refuses to be written.
    """
    adapted = has_adapter(network)
    if adapted:
        files = adapter_files(network, model, rank == 0, replaced)
    else:
        weights = gather(network.state_dict(keep_vars=True).items(), rank == 0, replaced or {})

    def write(folder: Path) -> None:
        if adapted:
            for name, content in files.items():
                (folder / name).write_bytes(content)
        else:
            save_network(network, tokenizer, folder, weights)
        tokenizer.save_pretrained(folder)

    if rank == 0:
        tokenizer = load_tokenizer(model)
        write_directory(directory, write)


def save_network(network: Any, tokenizer: Any, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Save a network in safetensors with its settings, so that it stops where its tokenizer's template ends a turn.

    Args:
        network: Hugging Face network; a language model's generation_config is given all ids that end a turn.
        tokenizer: its own.
        folder: where to.
        weights: by name; the network's own unless given.
    """
    if getattr(network, "generation_config", None) is not None:
        network.generation_config.eos_token_id = Encoder(tokenizer).all_ends(network)
    network.save_pretrained(folder, state_dict=weights, safe_serialization=True)


def adapter_files(
    network: Any, model: ModelConfig, keep: bool, replaced: Mapping[str, Tensor] | None = None
) -> dict[str, bytes]:
    """Return an adapter's files as PEFT writes them, by name; none on ranks that do not keep it. All must call."""
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    weights = gather(trained, keep, replaced or {})
    if not keep:
        return {}
    tensors = {saved_name(name): weight.contiguous() for name, weight in weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        files_settings(network, model.path).save_pretrained(folder)
        settings = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
    return {"adapter_model.safetensors": save(tensors, {"format": "pt"}), **settings}


@torch.no_grad()
def gather(tensors: Iterable[tuple[str, Tensor]], keep: bool, replaced: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather tensors by name in host memory, whole; empty where they are not kept.

    Args:
        tensors: by name; parameters may be sharded (ZeRO-3), and then all ranks must call.
        keep: whether this rank wants them.
        replaced: values to take instead.
    """
    gathered: dict[str, Tensor] = {}
    seen: dict[int, str] = {}
    for name, tensor in tensors:
        if id(tensor) in seen:
            # A tied weight stays one tensor under two names, as `save_pretrained` expects.
            if keep:
                gathered[name] = gathered[seen[id(tensor)]]
            continue
        seen[id(tensor)] = name
        whole = _whole(tensor, keep)
        if whole is not None:
            gathered[name] = replaced[name].to(whole.dtype) if name in replaced else whole
    return gathered


def _whole(tensor: Tensor, keep: bool) -> Tensor | None:
    if not hasattr(tensor, "ds_id"):
        return tensor.detach().cpu() if keep else None
    import deepspeed

    with deepspeed.zero.GatheredParameters([tensor]):
        return tensor.detach().cpu().clone() if keep else None


def write_directory(directory: str, save: Callable[[Path], None]) -> None:
    """Let `save` fill a folder, which then takes its place at a path or URL.

    Raises:
        CheckpointError: the storage is full, or refuses to be written.
    """
    try:
        _write(directory, save)
    except OSError as error:
        raise CheckpointError(f"{directory}: the model could not be written: {error}") from error


def _write(directory: str, save: Callable[[Path], None]) -> None:
    local = local_path(directory)
    if local is None:
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            fs, inner = filesystem(directory)
            fs.put(f"{folder}/", f"{inner}/", recursive=True)
        return
    target = Path(local)
    # Fixed names, so that what a killed process left is found and cleared away by the next one.
    partial, aside = (target.parent / f".{target.name}.{end}" for end in ("partial", "old"))
    _clear(partial, aside, target)
    # Not by tempfile, whose folders are their owner's alone whatever the umask says; so are safetensors' files.
    partial.mkdir(parents=True)
    try:
        save(partial)
        _sync(partial)
        # A directory cannot be renamed over another one that has files, so the old one steps aside first.
        if target.exists():
            target.rename(aside)
        partial.rename(target)
        sync_folder(str(target.parent))
    finally:
        _clear(partial, aside, target)


def _clear(partial: Path, aside: Path, target: Path) -> None:
    """Remove what an unfinished export left; an old model that had stepped aside for it comes back."""
    if aside.exists() and not target.exists():
        aside.rename(target)
    for left in (partial, aside):
        if left.exists():
            shutil.rmtree(left)


def _sync(folder: Path) -> None:
    """Give all files the mode of the folder and flush them to the device: no power cut leaves a name without them."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(str(path))
        else:
            path.chmod(folder.stat().st_mode & 0o666)
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
