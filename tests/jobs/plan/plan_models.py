"""Models of known size, as their config files describe them."""

import json
from pathlib import Path

from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.reading.verbs import load_job
from rlhf_ray.jobs.plan.memory import (
    ModelShape,
)

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs"
SHAPE = ModelShape(parameters=1_000_000, output_head=100_000, hidden=64, layers=4, kv_width=32)
SEVEN_B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "num_hidden_layers": 28,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
HALF_B = SEVEN_B | {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "num_hidden_layers": 24,
    "tie_word_embeddings": True,
}
SEVENTY_B = SEVEN_B | {
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_hidden_layers": 80,
}
# From the model's own page: 7.61 billion parameters, 6.53 without embeddings.
SEVEN_B_PARAMETERS = 7_615_616_512


def with_models(preset: Path, directory: Path) -> tuple[list[str], PPOConfig]:
    """A preset of PPO with models of its size, whose judges of policies of 72B have 7B."""
    sizes = {"0.5b": (HALF_B, HALF_B, 24), "7b": (SEVEN_B, SEVEN_B, 80), "70b": (SEVENTY_B, SEVEN_B, 80)}
    policy, judge, gpu_gib = next(size for name, size in sizes.items() if f"_{name}_" in preset.name)
    for name, shape in (("policy", policy), ("judge", judge)):
        (directory / name).mkdir()
        (directory / name / "config.json").write_text(json.dumps(shape))
    job = [str(preset), "--model.path", str(directory / "policy")]
    for number, reward in enumerate(load_job("ppo", job, check_files=False).rewards):
        job += [f"--rewards.{number}.path", str(directory / "judge")] if reward.kind == "model" else []
    return ["plan", "--gpu_gib", str(gpu_gib), "ppo", *job], load_job("ppo", job, check_files=False)
