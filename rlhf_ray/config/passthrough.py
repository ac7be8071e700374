"""Keys that are handed through to vLLM and DeepSpeed: which exist, and which are not the user's to set."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

_REASON = (
    "not in policy-gradient training, which must sample from the very distribution whose log-probabilities it scores; "
    "use rollout.temperature, or `rlhf generate` for restricted sampling"
)
_LENGTH = "not in policy-gradient training: it forbids the end-of-sequence token, which is scored"

REFUSED_SAMPLING = {
    "top_p": _REASON,
    "top_k": _REASON,
    "min_p": _REASON,
    "typical_p": _REASON,
    "presence_penalty": _REASON,
    "frequency_penalty": _REASON,
    "repetition_penalty": _REASON,
    "length_penalty": _REASON,
    "logit_bias": _REASON,
    "bad_words": _REASON,
    "logits_processors": _REASON,
    "override_generation_config": _REASON,
    "min_tokens": _LENGTH,
    "min_new_tokens": _LENGTH,
    "ignore_eos": _LENGTH,
}
"""Sampling settings that change the distribution, with the reason why they are refused."""

OWNED_ENGINE_ARGUMENTS = {
    "model": "model.path",
    "tokenizer": "model.tokenizer",
    "dtype": "model.dtype",
    "trust_remote_code": "model.trust_remote_code",
    "seed": "seed",
    "tensor_parallel_size": "rollout.gpus_per_worker, or rollout.tensor_parallel on CPU",
    "logprobs_mode": "this system: behaviour log-probabilities are the processed ones",
    "weight_transfer_config": "rollout.transport",
    "worker_extension_cls": "this system: it carries the weight transfer",
    "distributed_executor_backend": "this system: one actor hosts one engine",
    "data_parallel_size": "rollout.workers",
    "enable_lora": "policy.lora and rollout.adapter",
    "max_loras": "this system: an engine has the policy's adapter alone",
    "max_cpu_loras": "this system: an engine has the policy's adapter alone",
    "max_lora_rank": "policy.lora.r",
    "lora_dtype": "model.dtype",
}
"""Arguments of vLLM that other fields set, with the field to use."""

_ONE_MACHINE = (
    "an engine here stays within one machine and one copy of its model; raise rollout.workers for more engines, and "
    "rollout.gpus_per_worker for more GPUs each"
)

UNSUPPORTED_ENGINE_ARGUMENTS = dict.fromkeys(
    (
        "nnodes",
        "node_rank",
        "master_addr",
        "master_port",
        "pipeline_parallel_size",
        "data_parallel_size",
        "data_parallel_rank",
        "data_parallel_address",
        "data_parallel_backend",
        "data_parallel_hybrid_lb",
        "data_parallel_external_lb",
        "prefill_context_parallel_size",
        "decode_context_parallel_size",
    ),
    _ONE_MACHINE,
)
"""Arguments of vLLM that placement and weight transfer, which count tensor-parallel workers alone, do not follow."""

_WHOLE_LAYERS = "is not supported: weights are sent, saved and resumed as each rank holds them by ZeRO alone"

UNSUPPORTED_DEEPSPEED_SETTINGS = {
    "tensor_parallel": f"(autotp) {_WHOLE_LAYERS}; use zero_stage 3",
    "expert_parallel": _WHOLE_LAYERS,
    "use_data_before_expert_parallelism": _WHOLE_LAYERS,
    "pipeline": f"{_WHOLE_LAYERS}; use zero_stage 3",
    "sequence_parallel_size": "is not supported: batches are divided among ranks by whole texts",
    "seq_parallel_communication_data_type": "is not supported: batches are divided among ranks by whole texts",
    "compile": "is not supported: each micro-batch has a shape of its own, and would be compiled anew",
    "hybrid_engine": "is not supported: vLLM's engines generate",
}
"""Settings of DeepSpeed that this system's batches, checkpoints or weight transfer do not follow, with the reason."""

OWNED_DEEPSPEED_SETTINGS = {
    "train_batch_size": "the batch words at the top level",
    "train_micro_batch_size_per_gpu": "tokens_per_microbatch",
    "gradient_accumulation_steps": "tokens_per_microbatch",
    "gradient_clipping": "max_grad_norm",
    "optimizer": "learning_rate, betas, epsilon and weight_decay",
    "scheduler": "schedule and warmup_steps",
    "bf16": "model.dtype",
    "fp16": "model.dtype; float16 is not offered",
}
"""Settings of DeepSpeed that other fields set, with the field to use."""

SECRET_WORDS = ("token", "password", "secret", "api_key")
"""Parts of names that hold credentials; numbers of tokens (`max_num_batched_tokens`) are not meant."""


def holds_secret(name: str) -> bool:
    """Tell whether a key's name says that its value is a credential."""
    return any(name == word or name.endswith(f"_{word}") for word in SECRET_WORDS)


@cache
def engine_argument_names() -> frozenset[str]:
    """Read the arguments of the installed vLLM's AsyncEngineArgs from its source, without importing it.

    Empty where vLLM is not installed.
    """
    package = importlib.util.find_spec("vllm")
    if package is None or package.origin is None:
        return frozenset()
    source = Path(package.origin).parent / "engine" / "arg_utils.py"
    if not source.is_file():
        return frozenset()
    return frozenset(
        statement.target.id
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name in {"EngineArgs", "AsyncEngineArgs"}
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    )
