"""Memory of each role of a job, from its models' config files."""

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_ray.config.checks.files import names_local_path
from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.model import HeldModel, ModelConfig
from rlhf_ray.config.placement import PlacementConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.config.training import ReferenceConfig, TrainerConfig
from rlhf_ray.jobs.plan.memory import (
    ModelShape,
    WorkerMemory,
    engine_memory,
    forward_memory,
    sending,
    trainer_memory,
    worker_process,
)
from rlhf_ray.runs.layouts import job_layouts

CONFIG_FILE = "config.json"

HUB_SECONDS = 8.0
"""For the hub to give a model's config file, which is small: a plan shall come at once."""


def role_footprints(config: JobConfig, gpu_bytes: float) -> tuple[dict[str, WorkerMemory], list[str]]:
    """Return bytes of one worker of each role, and a warning for each model whose size is not known."""
    placements, shapes, layouts = config.placements(), _Shapes(), [part.layout for part in job_layouts(config)]
    footprints: dict[str, WorkerMemory] = {}
    for key, models in config.held_models().items():
        sizes = [(shape, held) for held in models if (shape := shapes.of(held.model)) is not None]
        if key not in placements or (models and not sizes):
            continue
        name, role = ".".join(map(str, key)), placements[key]
        if not sizes:
            footprints[name] = WorkerMemory(process=worker_process(role))
            continue
        shape, held = max(sizes, key=lambda pair: pair[0].parameters)
        neighbours = max((layout.neighbours(name) for layout in layouts if name in layout.slots), default=0)
        memory = _holding(role, held, shape, gpu_bytes, neighbours)
        rollout = placements.get(("rollout",))
        if name == "policy" and isinstance(rollout, RolloutConfig) and rollout.gpus_per_worker:
            memory = sending(memory, shape, rollout, held.model.dtype)
        footprints[name] = memory
    if config.saves_in_turn():
        _save_in_turn(footprints, placements)
    return footprints, shapes.unknown


def _save_in_turn(
    footprints: dict[str, WorkerMemory], placements: Mapping[tuple[str | int, ...], PlacementConfig]
) -> None:
    """Leave the copy for a checkpoint to the role whose copies are largest, as there is one at a time."""
    workers = {".".join(map(str, key)): role.workers for key, role in placements.items()}
    largest = max(footprints, key=lambda name: footprints[name].copied * workers[name], default="")
    for name, memory in footprints.items():
        if name != largest:
            footprints[name] = replace(memory, copied=0.0)


def _holding(
    role: PlacementConfig, held: HeldModel, shape: ModelShape, gpu_bytes: float, neighbours: int
) -> WorkerMemory:
    dtype = held.model.dtype
    match role:
        case RolloutConfig():
            return engine_memory(shape, dtype, role, gpu_bytes, neighbours)
        case TrainerConfig():
            return trainer_memory(shape, role, dtype, held.tokens, held.scalar)
    sharded = isinstance(role, ReferenceConfig) and role.zero_stage == 3
    one = forward_memory(shape, dtype, held.tokens, held.scalar, role, sharded)
    return replace(one, weights=one.weights * held.copies, asleep=one.asleep * held.copies)


class _Shapes:
    """Shapes of models, each read once."""

    def __init__(self) -> None:
        self.unknown: list[str] = []
        self._hub = _Hub()
        self._known: dict[str, ModelShape | None] = {}

    def of(self, model: ModelConfig) -> ModelShape | None:
        path = model.path
        if path not in self._known and names_local_path(path) and not (Path(path) / "config.json").is_file():
            self._known[path] = None
        if path not in self._known:
            try:
                self._known[path] = self._read(model)
            except Exception as error:  # Transformers says by any kind what it cannot read
                self._known[path] = None
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                self.unknown.append(f"memory of {path} is not known, because its config could not be read: {reason}")
        return self._known[path]

    def _read(self, model: ModelConfig) -> ModelShape:
        if names_local_path(model.path) or Path(model.path).is_dir():
            return read_shape(model)
        folder = self._hub.folder_of(model.path)
        # Code that a model brings along lies beside its config on the hub, where only its name leads.
        return read_shape(model if model.trust_remote_code else model.model_copy(update={"path": folder}))


def read_shape(model: ModelConfig) -> ModelShape:
    """Count a model's parameters from its config file, on torch's meta device: no weights are read or made.

    Raises:
        OSError: the config file is not at hand.
        ValueError: it describes no causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from rlhf_ray.models.facts import facts_of

    facts = facts_of(model.path, model.trust_remote_code)
    description: Any = facts.config.get_text_config()
    if description is facts.config:
        network = facts.language_model
    else:
        network = facts.network_of(AutoModelForCausalLM, description)
    heads: int = description.num_attention_heads
    tied: bool = description.tie_word_embeddings
    head_size = getattr(description, "head_dim", None) or description.hidden_size // heads
    kv_heads = getattr(description, "num_key_value_heads", None) or heads
    return ModelShape(
        # Tied tensors are one parameter here, as in memory.
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        output_head=0 if tied else description.vocab_size * description.hidden_size,
        hidden=description.hidden_size,
        layers=description.num_hidden_layers,
        vocabulary=description.vocab_size * description.hidden_size,
        largest=max(parameter.numel() for parameter in network.parameters()),
        kv_width=kv_heads * head_size,
        linear_widths={
            name: module.in_features + module.out_features
            for name, module in network.base_model.named_modules()
            if isinstance(module, torch.nn.Linear)
        },
    )


class _Hub:
    """The hub of models, which is asked no more once it was silent."""

    def __init__(self) -> None:
        self._silent = False

    def folder_of(self, name: str) -> str:
        """Find the folder on this machine with a model's config file, fetched unless it was before.

        Raises:
            OSError: the hub does not give it, or not in time.
        """
        from huggingface_hub import try_to_load_from_cache

        kept = try_to_load_from_cache(name, CONFIG_FILE)
        return str(Path(kept if isinstance(kept, str) else self._fetched(name)).parent)

    def _fetched(self, name: str) -> str:
        found: Future[str] = Future()

        def fetch() -> None:
            try:
                found.set_result(fetch_config(name))
            except Exception as error:
                found.set_exception(OSError(f"the hub did not give it: {str(error).strip() or type(error).__name__}"))

        if not self._silent:
            # A thread of its own, for looking up the hub's address cannot be given a deadline.
            threading.Thread(target=fetch, daemon=True).start()
            try:
                return found.result(HUB_SECONDS)
            except TimeoutError:
                self._silent = True
        raise OSError(f"the hub did not give it within {HUB_SECONDS:g} s")


def fetch_config(name: str) -> str:
    """Fetch the config file of a model of the hub; where the hub is out of reach, raise its error at once."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    # The download would try again and again, for half a minute.
    get_hf_file_metadata(hf_hub_url(name, CONFIG_FILE), timeout=HUB_SECONDS)
    return str(hf_hub_download(name, CONFIG_FILE, etag_timeout=HUB_SECONDS))
