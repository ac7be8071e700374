"""Memory of each role of a job, from its models' config files."""

import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_ray.config.base import Section
from rlhf_ray.config.checks.files import names_local_path
from rlhf_ray.config.checks.parts import critic_path, longest_sample, placements_of, rewards_of
from rlhf_ray.config.jobs.evaluate import EvaluateConfig
from rlhf_ray.config.jobs.inference import GenerateConfig
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.jobs.supervised import RewardTrainingConfig, SupervisedConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.reading.documents import KeyPath
from rlhf_ray.config.rewards import ModelReward, RewardConfig
from rlhf_ray.jobs.plan.memory import (
    ModelShape,
    WorkerMemory,
    engine_memory,
    forward_memory,
    trainer_memory,
    worker_process,
)

CONFIG_FILE = "config.json"

HUB_SECONDS = 8.0
"""For the hub to give a model's config file, which is small: a plan shall come at once."""


def role_footprints(config: Section, gpu_bytes: float) -> tuple[dict[str, WorkerMemory], list[str]]:
    """Return bytes of one worker of each role, and a warning for each model whose size is not known."""
    footprints: dict[str, WorkerMemory] = {}
    shapes = _Shapes()
    if isinstance(config, SupervisedConfig):
        shape = shapes.of(config.model.path, config.model.trust_remote_code)
        scalar = isinstance(config, RewardTrainingConfig)
        if shape:
            tokens = config.tokens_per_microbatch
            footprints["trainer"] = trainer_memory(shape, config.trainer, config.model.dtype, tokens, scalar)
    if isinstance(config, PPOConfig):
        footprints |= _trained_roles(config, shapes)
    if isinstance(config, EvaluateConfig):
        footprints |= _compared(config, shapes, gpu_bytes)
    footprints |= _reward_models(rewards_of(config), shapes)
    if isinstance(config, PPOConfig | GenerateConfig):
        shape = shapes.of(config.model.path, config.model.trust_remote_code)
        if shape:
            footprints["rollout"] = engine_memory(shape, config.model.dtype, config.rollout, gpu_bytes)
    placed = {".".join(map(str, key)): placement for key, placement in placements_of(config).items()}
    footprints = {
        role: replace(memory, process=worker_process(placed[role]))
        for role, memory in footprints.items()
        if role in placed
    }
    return {role: memory for role, memory in footprints.items() if memory.total}, shapes.unknown


def _compared(config: EvaluateConfig, shapes: "_Shapes", gpu_bytes: float) -> dict[str, WorkerMemory]:
    """Of the largest model: one at a time is loaded."""
    found = ((shapes.of(model.path, model.trust_remote_code), model.dtype) for model in config.models.values())
    known = [(shape, dtype) for shape, dtype in found if shape]
    if not known:
        return {}
    shape, dtype = max(known, key=lambda pair: pair[0].parameters)
    engine = engine_memory(shape, dtype, config.rollout, gpu_bytes)
    return {"rollout": engine, "measure": forward_memory(shape, dtype, config.tokens_per_microbatch, scalar=False)}


def _trained_roles(config: PPOConfig, shapes: "_Shapes") -> dict[str, WorkerMemory]:
    footprints: dict[str, WorkerMemory] = {}
    model, tokens = config.model, max(config.tokens_per_microbatch, longest_sample(config))
    shape = shapes.of(model.path, model.trust_remote_code)
    if shape:
        footprints["policy"] = trainer_memory(shape, config.policy, model.dtype, tokens, scalar=False)
        if ("reference",) in placements_of(config):
            shards = config.reference.workers if config.reference.zero_stage == 3 else 1
            footprints["reference"] = forward_memory(shape, model.dtype, tokens, scalar=False, shards=shards)
    for name, critic in config.critics.items():
        shape = shapes.of(critic_path(config, name), model.trust_remote_code)
        if shape:
            footprints[f"critics.{name}"] = trainer_memory(shape, critic, model.dtype, tokens, scalar=True)
    return footprints


def _reward_models(rewards: Mapping[KeyPath, RewardConfig], shapes: "_Shapes") -> dict[str, WorkerMemory]:
    footprints: dict[str, WorkerMemory] = {}
    for key, reward in rewards.items():
        role = ".".join(map(str, key))
        shape = shapes.of(reward.path, False) if isinstance(reward, ModelReward) else None
        if not isinstance(reward, ModelReward):
            footprints[role] = WorkerMemory()
        elif shape:
            one = forward_memory(shape, reward.dtype, reward.max_tokens, scalar=True)
            footprints[role] = replace(one, weights=one.weights * (1 + len(reward.ensemble)))
    return footprints


class _Shapes:
    """Shapes of models, each read once."""

    def __init__(self) -> None:
        self.unknown: list[str] = []
        self._hub = _Hub()
        self._known: dict[str, ModelShape | None] = {}

    def of(self, path: str, trust_remote_code: bool) -> ModelShape | None:
        if path not in self._known and names_local_path(path) and not (Path(path) / "config.json").is_file():
            self._known[path] = None
        if path not in self._known:
            try:
                self._known[path] = self._read(ModelConfig(path=path, trust_remote_code=trust_remote_code))
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
    from transformers import AutoConfig, AutoModelForCausalLM

    description: Any = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
    description = description.get_text_config()
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(description, trust_remote_code=model.trust_remote_code)
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
        """Folder on this machine with a model's config file, fetched unless it was before.

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
    """The config file of a model of the hub; where the hub is out of reach, its error at once."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    # The download would try again and again, for half a minute.
    get_hf_file_metadata(hf_hub_url(name, CONFIG_FILE), timeout=HUB_SECONDS)
    return str(hf_hub_download(name, CONFIG_FILE, etag_timeout=HUB_SECONDS))
