"""Checks across fields, made after the schema's own and before anything starts. They look at no file."""

import math
from collections.abc import Iterator
from typing import Any

from rlhf_ray.config.base import Section
from rlhf_ray.config.checks.adapters import adapter_problems
from rlhf_ray.config.checks.algorithm import ANOTHER_SAMPLED, algorithm_problems
from rlhf_ray.config.checks.costs import cost_problems
from rlhf_ray.config.checks.deepspeed import deepspeed_problems
from rlhf_ray.config.checks.evaluate import evaluate_problems
from rlhf_ray.config.checks.parts import groups_of, placements_of
from rlhf_ray.config.checks.preferences import preference_problems
from rlhf_ray.config.checks.rewards import reward_problems
from rlhf_ray.config.errors import perhaps
from rlhf_ray.config.jobs.dpo import DPOConfig
from rlhf_ray.config.jobs.evaluate import EvaluateConfig
from rlhf_ray.config.jobs.feedback import FeedbackConfig
from rlhf_ray.config.jobs.inference import GenerateConfig, InferenceConfig
from rlhf_ray.config.jobs.labelling import FeedbackPageConfig
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.jobs.supervised import SupervisedConfig
from rlhf_ray.config.passthrough import (
    OWNED_ENGINE_ARGUMENTS,
    REFUSED_SAMPLING,
    engine_argument_names,
    holds_secret,
)
from rlhf_ray.config.placement import PlacementConfig
from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.config.training import TrainerConfig
from rlhf_ray.redaction.texts import HIDDEN


def feedback_problems(config: Section) -> Iterator[Problem]:
    """Yield what is wrong between the fields of a feedback config."""
    if not isinstance(config, FeedbackConfig):
        return
    lowest, highest = config.reward_range
    if not (math.isfinite(lowest) and math.isfinite(highest) and lowest < highest):
        yield Problem(("reward_range",), f"is [lowest, highest], not [{lowest:g}, {highest:g}]")
    algorithm = config.algorithm
    if algorithm.whiten_advantages:
        text = "would take the mean of a single answer away, and with it the score; leave it out"
        yield Problem(("algorithm", "whiten_advantages"), text)
    if algorithm.reward_normalisation == "whiten":
        text = "takes away from a person's scores what they have in common; set scale or none"
        yield Problem(("algorithm", "reward_normalisation"), text)
    if algorithm.old_logprobs == "engine" and config.replay is not None:
        yield Problem(("algorithm", "old_logprobs"), ANOTHER_SAMPLED)
    if config.evaluation.data is not None:
        yield Problem(("evaluation", "data"), "nobody scores held-out answers here; leave it out")
    for name, value in (("record", config.rollout.record), ("replay", config.rollout.replay)):
        if value is not None:
            text = "feedback.jsonl in the run folder has every answer with its score; `replay` at the top reads one"
            yield Problem(("rollout", name), text)


def check(config: Section) -> list[Problem]:
    """Return all that is wrong between the fields of a config that fits its schema."""
    checks = (
        _left_out,
        _groups,
        _trainers,
        _engines,
        reward_problems,
        _sampling,
        _outputs,
        _batches,
        _replay,
        _preferences,
        _comparison,
        algorithm_problems,
        adapter_problems,
        cost_problems,
        feedback_problems,
    )
    return [problem for one in checks for problem in one(config)]


def _left_out(config: Section) -> Iterator[Problem]:
    """Addresses from the `config.yaml` of a run, in which their credentials are hidden."""
    for key, text in _texts((), config.model_dump(mode="json")):
        if f"{HIDDEN}@" in text or f"={HIDDEN}" in text:
            yield Problem(key, f"{HIDDEN} stands where a run left a credential out; write the whole address again")


def _texts(key: KeyPath, value: Any) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts((*key, name), inner)


def _groups(config: Section) -> Iterator[Problem]:
    groups = groups_of(config)
    for key, role in placements_of(config).items():
        group = groups.get(role.on)
        if group is None:
            named = perhaps(role.on, groups) or f"; groups has {', '.join(groups) or 'none'}"
            yield Problem((*key, "on"), f"no group is named {role.on!r}{named}")
            continue
        yield from _fits_node(key, role, "gpus", role.gpus_per_worker, group.gpus_per_node, group.nodes)
        yield from _fits_node(key, role, "cpus", role.cpus_per_worker, group.cpus_per_node, group.nodes)


def _fits_node(
    key: KeyPath, role: PlacementConfig, device: str, wanted: float, available: float, nodes: int
) -> Iterator[Problem]:
    if wanted > available:
        yield Problem(
            (*key, f"{device}_per_worker"),
            f"{wanted:g} is more than groups.{role.on}.{device}_per_node, which is {available:g}",
        )
    elif wanted * role.workers > available * nodes + 1e-9:
        yield Problem(
            (*key, "workers"),
            f"{role.workers} workers of {wanted:g} {device.upper()} need {wanted * role.workers:g}, "
            f"but group {role.on} has {available * nodes:g} ({nodes} x {available:g})",
        )


def _trainers(config: Section) -> Iterator[Problem]:
    for key, role in placements_of(config).items():
        if not isinstance(role, TrainerConfig):
            continue
        if role.gpus_per_worker > 1:
            yield Problem((*key, "gpus_per_worker"), "a rank of a trained model uses one GPU; raise `workers` instead")
        for problem in deepspeed_problems(role.deepspeed):
            yield Problem((*key, "deepspeed", *problem.key), problem.message)
    attention = config.model.attention if isinstance(config, SupervisedConfig | PPOConfig) else "sdpa"
    trained = [role for role in placements_of(config).values() if isinstance(role, TrainerConfig)]
    if attention == "flash_attention_2" and any(role.gpus_per_worker == 0 for role in trained):
        yield Problem(("model", "attention"), "flash_attention_2 needs GPUs, but a trained role has gpus_per_worker 0")


def _engines(config: Section) -> Iterator[Problem]:
    for key, rollout in placements_of(config).items():
        if isinstance(rollout, RolloutConfig):
            yield from _engine(key, rollout, training=isinstance(config, PPOConfig))
            if isinstance(config, FeedbackPageConfig) and (rollout.record or rollout.replay):
                name = "record" if rollout.record else "replay"
                yield Problem((*key, name), "is for training; the store of labels keeps all answers")
    if isinstance(config, PPOConfig):
        yield from _transport(config)


def _engine(key: KeyPath, rollout: RolloutConfig, training: bool) -> Iterator[Problem]:
    if rollout.gpus_per_worker > 1 and rollout.gpus_per_worker % 1:
        yield Problem(
            (*key, "gpus_per_worker"), f"is the tensor-parallel size, a whole number, not {rollout.gpus_per_worker}"
        )
    if rollout.tensor_parallel and rollout.gpus_per_worker:
        yield Problem((*key, "tensor_parallel"), "is for CPU engines; on GPU gpus_per_worker says the size")
    if rollout.gpus_per_worker == 0 and rollout.transport in {"nccl", "ipc"}:
        yield Problem(
            (*key, "transport"),
            f"{rollout.transport} needs GPU engines; CPU engines take gloo",
        )
    for name, value in rollout.engine.items():
        yield from (Problem((*key, "engine", name), text) for text in _engine_argument(name, value, training))


def _transport(config: PPOConfig) -> Iterator[Problem]:
    policy, rollout, key = config.policy, config.rollout, ("rollout", "transport")
    if rollout.transport != "gloo" and rollout.gpus_per_worker and not policy.gpus_per_worker:
        yield Problem(key, "engines on GPUs need the policy on GPUs too, but policy.gpus_per_worker is 0")
    if rollout.transport == "ipc" and policy.on != rollout.on:
        yield Problem(key, f"ipc needs policy and engines on one group, not {policy.on} and {rollout.on}")
    if rollout.transport == "gloo" and rollout.gpus_per_worker:
        yield Problem(key, "gloo moves weights to CPU engines; engines on GPUs take nccl or ipc")


def _engine_argument(name: str, value: Any, training: bool) -> Iterator[str]:
    known = engine_argument_names()
    if training and name in REFUSED_SAMPLING:
        yield REFUSED_SAMPLING[name]
    elif name in OWNED_ENGINE_ARGUMENTS:
        yield f"is set by {OWNED_ENGINE_ARGUMENTS[name]}"
    elif holds_secret(name):
        yield "credentials come from the environment, never from a config, which is copied into the run folder"
    elif known and name not in known:
        yield f"not an argument of vLLM's AsyncEngineArgs{perhaps(name, known)}"
    elif name == "gpu_memory_utilization" and not (type(value) in {int, float} and 0 < value <= 1):
        yield f"is a part of the GPU, above 0 and at most 1, not {value!r}"
    elif name == "kv_cache_memory_bytes" and not (type(value) is int and value > 0):
        yield f"is a whole number of bytes, not {value!r}"


def _sampling(config: Section) -> Iterator[Problem]:
    if not isinstance(config, GenerateConfig | EvaluateConfig):
        return
    sampling = config.sampling
    if sampling.greedy and config.samples_per_prompt > 1:
        text = f"a greedy answer is always the same, so {config.samples_per_prompt} of them make no sense"
        yield Problem(("samples_per_prompt",), text)
    if sampling.greedy and (sampling.top_k or sampling.top_p < 1):
        yield Problem(("sampling", "greedy"), "takes the most likely token; leave out top_p and top_k")
    for name, value in (("record", config.rollout.record), ("replay", config.rollout.replay)):
        if value is not None:
            yield Problem(("rollout", name), "is for training; `output` says where answers are written")


def _outputs(config: Section) -> Iterator[Problem]:
    if isinstance(config, InferenceConfig) and not config.output.endswith((".jsonl", ".parquet")):
        yield Problem(("output",), f"ends in .jsonl or .parquet, not {config.output!r}")


def _batches(config: Section) -> Iterator[Problem]:
    if isinstance(config, PPOConfig):
        samples = config.prompts_per_step * config.samples_per_prompt
        if samples // config.minibatches < config.policy.workers:
            yield Problem(
                ("minibatches",),
                f"leaves {samples // config.minibatches} samples for {config.policy.workers} ranks of the policy",
            )
    elif isinstance(config, SupervisedConfig) and config.batch_size < config.trainer.workers:
        yield Problem(("batch_size",), f"{config.batch_size} rows do not reach {config.trainer.workers} ranks")


def _replay(config: Section) -> Iterator[Problem]:
    if isinstance(config, PPOConfig) and config.rollout.replay:
        rollout = config.rollout
        if rollout.record:
            yield Problem(("rollout", "record"), "replayed samples are on file already; leave out record or replay")
        if rollout.deterministic:
            yield Problem(("rollout", "deterministic"), "has no effect under replay; leave out one of them")


def _comparison(config: Section) -> Iterator[Problem]:
    if isinstance(config, EvaluateConfig):
        yield from evaluate_problems(config)


def _preferences(config: Section) -> Iterator[Problem]:
    if isinstance(config, DPOConfig):
        yield from preference_problems(config)
