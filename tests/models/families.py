"""Tiny networks of every architecture with a causal head that Transformers has, as far as a small one can be made."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

LENGTHS = (9, 5)
"""Tokens of the texts that are read; more than the windows of attention below."""
VOCABULARY = 60

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "is_decoder": True,
    # Of mixtures of experts.
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 2,
    "num_local_experts": 2,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "router_jitter_noise": 0.3,
    "input_jitter_noise": 0.3,
}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
GEMMA_4 = SIZES | {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 4,
    "global_head_dim": 16,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 4,
    "final_logit_softcapping": 3.0,
}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
"""Sizes of latent attention, whose heads have two parts."""
WITHOUT: dict[str, set[str]] = {"falcon": {"head_dim"}, "gpt_neo": {"intermediate_size"}}
"""Sizes that an architecture refuses to be told."""
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "codegen": {"rotary_dim": 4},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"logit_scale": 0.25, "sliding_window": 4},
    "dots1": {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1},
    "gemma2": {"sliding_window": 4, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "gemma3": {
        "text_config": SIZES | {"sliding_window": 4},
        "vision_config": VISION | {"image_size": 28, "patch_size": 14},
    },
    "gemma3_text": {"sliding_window": 4, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "gemma4": {"text_config": GEMMA_4, "vision_config": VISION | {"position_embedding_size": 4}, "audio_config": None},
    "gemma4_text": GEMMA_4,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gptj": {"rotary_dim": 4},
    "granite": {"logits_scaling": 8.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "granitemoe": {"logits_scaling": 8.0},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "mistral": {"sliding_window": 4},
    "mpt": {"logit_scale": 0.5},
    "nemotron_h": {"logits_scaling": 2.0},
    "opt": {"word_embed_proj_dim": 16, "ffn_dim": 48},
    "starcoder2": {"sliding_window": 4},
}
for kind in (
    *("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash"),
    *("minicpm3", "youtu"),
):
    OWN[kind] = LATENT | {"n_group": 1, "topk_group": 1, "num_key_value_heads": 4}
# Its own forward pass fails with one expert for each token.
OWN["longcat_flash"]["num_experts_per_tok"] = 2

RANDOM = ("drop", "jitter")
"""In the names of settings that make a network random in training mode."""


def tiny_config(model_type: str, share: float = 0.0, **own: Any) -> Any:
    """Return the configuration of a tiny network, which drops a `share` of whatever it can drop."""
    settings = {name: value for name, value in SIZES.items() if name not in WITHOUT.get(model_type, ())}
    config = AutoConfig.for_model(model_type, **settings | OWN.get(model_type, {}) | own)
    for section in {id(part): part for part in (config, config.get_text_config())}.values():
        for name, value in vars(section).items():
            is_share = isinstance(value, int | float) and not isinstance(value, bool)
            if share and is_share and any(word in name for word in RANDOM):
                setattr(section, name, share)
    return config


def tiny_network(model_type: str, share: float = 0.0, auto: Any = AutoModelForCausalLM, **settings: Any) -> Any:
    """Return a tiny network with random float32 weights in evaluation mode."""
    config = tiny_config(model_type, share, **settings)
    torch.manual_seed(0)
    return auto.from_config(config).float().eval()


def texts() -> list[torch.Tensor]:
    """Return token ids of some texts, none of them special."""
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(5, VOCABULARY, (length,), generator=draw) for length in LENGTHS]
