"""Whether the models that a config names can do what they are for: read from their config files, before Ray starts."""

import importlib.util
from collections.abc import Mapping
from typing import Any

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.jobs.supervised import SupervisedConfig
from rlhf_ray.config.lora import LoraConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.data.tokenization import check_vocabulary
from rlhf_ray.models.loading import (
    COMMON_TYPES,
    check_head,
    load_tokenizer,
    outline,
    policy_config,
    renamed_weights,
    scalar_config,
    unsupported,
)
from rlhf_ray.models.logit_transform import UnknownTransform, measure_transform
from rlhf_ray.models.lora import target_names
from rlhf_ray.models.positions import check_positions
from rlhf_ray.rollout.engine_arguments import tensor_parallel_size
from rlhf_ray.scoring.kinds import kind_of

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Widths of an attention head for which vLLM's CPU attention has a kernel (`CPUAttentionBackend`)."""

LONGEST_SAMPLE = "data.max_prompt_tokens + rollout.max_new_tokens"
"""What limits prompt and response together."""

EXPERTS = ".experts."
"""In the names of a mixture's weights."""


def job_tokenizer(model: ModelConfig) -> Any:
    """Load the tokenizer of a job's `model`.

    Raises:
        BadInput: no such model, or none with a usable tokenizer; names the key.
    """
    try:
        return load_tokenizer(model)
    except BadInput as error:
        raise BadInput(f"model.{'tokenizer' if model.tokenizer else 'path'}: {error}") from error


def check_language_model(model: ModelConfig, tokenizer: Any) -> None:
    """Check that a model is a language model, with weights and with an embedding for each of the tokenizer's tokens.

    Raises:
        BadInput: names the directory and what to do.
    """
    check_vocabulary(model, policy_config(model), tokenizer)


def check_policy(model: ModelConfig, tokenizer: Any, lengths: Mapping[str, int]) -> None:
    """Check likewise a model whose log-probabilities are computed here, not by an engine alone.

    Args:
        model: which one.
        tokenizer: its own.
        lengths: most tokens of the texts that it reads, by the keys that say so.

    Raises:
        BadInput: names the directory and what to do.
    """
    check_language_model(model, tokenizer)
    network = outline(model)
    try:
        measure_transform(network)
    except UnknownTransform as error:
        raise unsupported(model.path, network.config, str(error)) from error
    check_positions(model.path, network, lengths)


def check_scalar(model: ModelConfig, tokenizer: Any, lengths: Mapping[str, int]) -> None:
    """Check likewise what a reward model begins from.

    Raises:
        BadInput: names the directory and what to do.
    """
    check_vocabulary(model, scalar_config(model), tokenizer)
    network = outline(model, scalar=True)
    check_head(model.path, network)
    check_positions(model.path, network, lengths)


def text_lengths(config: JobConfig) -> dict[str, int]:
    """Return the most tokens of the texts of a job's data sets, by the keys that say so."""
    limits = {(*key, "max_tokens"): data.text_limit() for key, data in config.data_sets().items()}
    return {".".join(map(str, key)): tokens for key, tokens in limits.items() if tokens is not None}


def check_supervised(config: SupervisedConfig) -> Any:
    """Check the model of a job that learns from rows, and its adapter; return its tokenizer.

    Raises:
        BadInput: names the key and what to do.
    """
    tokenizer = job_tokenizer(config.model)
    check = check_scalar if config.learns_scalar else check_policy
    check(config.model, tokenizer, text_lengths(config))
    check_adapter("trainer", config.model, config.trainer.lora, config.learns_scalar)
    return tokenizer


def check_engine(model: ModelConfig, rollout: RolloutConfig, max_tokens: int) -> None:
    """Check that vLLM can run a model as the config asks; its own refusal would come from the depth of a process.

    Args:
        model: a language model.
        rollout: the engines' section.
        max_tokens: longest prompt and response together.

    Raises:
        BadInput: names the key and what to do.
    """
    if importlib.util.find_spec("vllm") is None:
        raise BadInput(
            "vLLM is not installed, and the engines that write are vLLM's: pip install 'rlhf_ray[cpu]', or with a GPU "
            "'rlhf_ray[gpu]'; `rlhf doctor` checks the rest"
        )
    described = policy_config(model)
    if not described.architectures:
        raise BadInput(
            f"{model.path}/config.json: architectures: names nothing, and the engines go by it; write the network's "
            "class, such as [Qwen2ForCausalLM]"
        )
    check_heads(model.path, described, rollout)
    network = described.get_text_config()
    context = _context(network)
    if "max_model_len" not in rollout.engine and context is not None and max_tokens > context:
        raise BadInput(
            f"data.max_prompt_tokens and rollout.max_new_tokens are {max_tokens} tokens together, "
            f"but {model.path} reads at most {context} (max_position_embeddings); lower one of them"
        )


def check_heads(path: str, described: Any, rollout: RolloutConfig) -> None:
    """Check that an engine can compute and divide a model's attention heads.

    Args: path, of the model; described, its Transformers config; rollout, the engines' section.

    Raises:
        BadInput: names the key and what to do.
    """
    network = described.get_text_config()
    heads = network.num_attention_heads
    size = getattr(network, "head_dim", None) or network.hidden_size // heads
    if rollout.gpus_per_worker == 0 and size not in CPU_HEAD_SIZES:
        raise BadInput(
            f"model.path: {path}: vLLM has no CPU attention for heads of width {size} (it has "
            f"{', '.join(map(str, CPU_HEAD_SIZES))}); use another model, or put the engines on a GPU "
            "(rollout.gpus_per_worker)"
        )
    parallel = tensor_parallel_size(rollout)
    if heads % parallel:
        raise BadInput(f"rollout.tensor_parallel: {parallel} does not divide the {heads} attention heads of {path}")


def check_transfer(model: ModelConfig, rollout: RolloutConfig) -> None:
    """Check that the engines can take a policy's weights, which travel by the names that they have while it trains.

    An engine, on CPU as on GPU, refuses at the first sync what its checkpoint does not name. On CPU no mixture of
    experts can learn: vLLM packs the experts when it loads them, and after a transfer log-probabilities were off by 1.2
    and more, also of those (gpt_oss) whose names are the same. An adapter that travels alone (`reload`) is let pass.

    Raises:
        BadInput: names a weight, and models that can be used.
    """
    if rollout.adapter == "reload":
        return
    network = outline(model)
    names, renamed = [name for name, _ in network.named_parameters()], renamed_weights(model, network)
    experts = [name for name in names if EXPERTS in name]
    if not renamed and (rollout.gpus_per_worker or not experts):
        return
    if renamed:
        why = f"the engines do not take {renamed[0]}, which has another name in its checkpoint"
    else:
        why = f"vLLM packs {experts[0]} on CPU when it loads it, and new weights do not reach it"
    kind = network.config.model_type + (", a mixture of experts" if experts else "")
    raise BadInput(
        f"model.path: {model.path} ({kind}) cannot be a policy: {why}; choose a dense model such as "
        f"{', '.join(COMMON_TYPES)}"
    )


def check_adapter(key: str, model: ModelConfig, lora: LoraConfig | None, scalar: bool = False) -> None:
    """Check that a model has the layers that its adapter asks for.

    Args:
        key: of the trained role.
        model: what it starts from.
        lora: None for a role without an adapter.
        scalar: whether it is a reward model or a critic.

    Raises:
        BadInput: names the key and the layers that there are.
    """
    if lora is None:
        return
    try:
        target_names(outline(model, scalar), lora)
    except BadInput as error:
        raise BadInput(f"{key}.{error}") from error


def check_critic(
    key: str, critic: ModelConfig, policy: ModelConfig, tokenizer: Any, lengths: Mapping[str, int]
) -> None:
    """Check that a critic reads the token ids that the policy writes, and texts of their length.

    Args:
        key: where the config says, or should say, what the critic starts from.
        critic: what it starts from.
        policy: the policy.
        tokenizer: the policy's.
        lengths: most tokens of the texts that it reads, by the keys that say so.

    Raises:
        BadInput: it is no model, or has another vocabulary, or too few positions.
    """
    try:
        rows = scalar_config(critic, per_token=True).get_text_config().vocab_size
        network = outline(critic, scalar=True)
        check_head(critic.path, network)
    except BadInput as error:
        raise BadInput(f"{key}: {error}") from error
    if critic.path == policy.path:
        return
    check_positions(critic.path, network, lengths)
    try:
        own = load_tokenizer(critic.model_copy(update={"tokenizer": None}))
        other = own.get_vocab() != tokenizer.get_vocab()
    except BadInput:
        # Weights without a tokenizer; their number of embeddings is all that can be compared.
        other = False
    if other or rows < policy_config(policy).get_text_config().vocab_size:
        raise BadInput(
            f"{key}: a critic reads the policy's tokens, but {critic.path} has another vocabulary; "
            f"set {key} to policy, or to a model of the same tokenizer"
        )


def check_reward_sources(config: JobConfig) -> None:
    """Check each reward source of a job, see `check_reward_source`.

    Raises:
        BadInput: names the source's key and what to do.
    """
    for key, source in config.reward_sources().items():
        check_reward_source(".".join(map(str, key)), source)


def check_reward_source(key: str, source: RewardConfig) -> None:
    """Check what a reward source needs: a reward model is one, a function is there, a service's secret is set.

    Raises:
        BadInput: names the source's key and what to do.
    """
    kind_of(source).refuse(key, source)


def _context(network: Any) -> int | None:
    """Return how many tokens a model reads at most; None for stretched positions, which its engine judges."""
    rope = getattr(network, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type", "default")} | {
        inner.get("rope_type", "default") for inner in rope.values() if isinstance(inner, dict)
    }
    if kinds - {"default", "llama3"}:
        return None
    return getattr(network, "max_position_embeddings", None)
