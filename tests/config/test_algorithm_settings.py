"""Settings of policy-gradient algorithms: defaults that follow the estimator and the loss, contradictions refused."""

from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.algorithm import AlgorithmConfig, KLConfig
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.reading.loading import dump_config, load_config

GRPO: dict[str, Any] = {"algorithm.advantages": "grpo", "samples_per_prompt": 4}

CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    # name: (change of a valid config, key that the line names, words in the line)
    "unknown estimator": ({"algorithm.advantages": "grop"}, "algorithm.advantages", "Perhaps you meant grpo?"),
    "unknown loss": ({"algorithm.policy_loss": "gpso"}, "algorithm.policy_loss", "Perhaps you meant gspo?"),
    "critic of grpo": ({**GRPO, "critics": {"value": {}}}, "critics", "grpo needs no critic"),
    "gae without a critic": ({"critics": {}}, "critics", "at least one value model"),
    "group of one": ({"algorithm.advantages": "rloo"}, "samples_per_prompt", "rloo compares the responses"),
    "filter of groups of one": ({"algorithm.filter_groups": 4}, "samples_per_prompt", "filter_groups compares"),
    "group in two minibatches": (
        {**GRPO, "prompts_per_step": 4, "minibatches": 8},
        "minibatches",
        "8 does not divide prompts_per_step 4",
    ),
    "warm-up without a critic": (
        {**GRPO, "algorithm.critic_warmup_steps": 2},
        "algorithm.critic_warmup_steps",
        "no effect beside advantages grpo, which has no critic",
    ),
    "lambda without a critic": ({**GRPO, "algorithm.gae_lambda": 0.9}, "algorithm.gae_lambda", "leave it out"),
    "discount of a group estimator": ({**GRPO, "algorithm.gamma": 0.9}, "algorithm.gamma", "does not discount"),
    "sequence level with gae": (
        {"algorithm.policy_loss": "clip_sequence"},
        "algorithm.policy_loss",
        "gae gives each token its own",
    ),
    "sequence level with a penalty on each token": (
        {"algorithm.policy_loss": "clip_sequence", "algorithm.advantages": "reinforce_plus_plus"},
        "algorithm.policy_loss",
        "reinforce_plus_plus gives each token its own",
    ),
    "dual clip of gspo": (
        {**GRPO, "algorithm.policy_loss": "gspo", "algorithm.dual_clip": 3},
        "algorithm.dual_clip",
        "gspo has none",
    ),
    "dual clip below 1": ({"algorithm.dual_clip": 0.5}, "algorithm.dual_clip", "greater than 1"),
    "dual clip within the range": ({"algorithm.dual_clip": 1.1}, "algorithm.dual_clip", "within the clip range"),
    "clip of sapo": (
        {**GRPO, "algorithm.policy_loss": "sapo", "algorithm.clip_range": 0.3},
        "algorithm.clip_range",
        "sapo, which has no clip",
    ),
    "clip of everything": ({"algorithm.clip_range": 1.5}, "algorithm.clip_range", "below 1"),
    "k1 in the loss": (
        {"algorithm.kl": {"place": "loss", "estimator": "k1"}},
        "algorithm.kl.estimator",
        "use k2 or k3",
    ),
    "correction of the engine's own": (
        {"algorithm.off_policy": "icepop", "algorithm.old_logprobs": "engine"},
        "algorithm.off_policy",
        "old_logprobs engine",
    ),
    "naive PPO by half": (
        {"algorithm.max_staleness": 1, "algorithm.old_logprobs": "engine"},
        "algorithm.old_logprobs",
        "naive PPO, whose ratio counts from older weights",
    ),
    "naive PPO with a correction": (
        {"algorithm.max_staleness": 2, "algorithm.old_logprobs": "engine", "algorithm.off_policy": "icepop"},
        "algorithm.old_logprobs",
        "say off_policy none too",
    ),
    "older samples as they are": (
        {"algorithm.max_staleness": 2, "algorithm.off_policy": "none"},
        "algorithm.off_policy",
        "none leaves samples that are up to 2 versions old uncorrected",
    ),
    "bounds of naive PPO": (
        {
            "algorithm.max_staleness": 1,
            "algorithm.old_logprobs": "engine",
            "algorithm.off_policy": "none",
            "algorithm.off_policy_bounds": [0, 3],
        },
        "algorithm.off_policy_bounds",
        "off_policy none",
    ),
    "requests that end though none is under way": (
        {"rollout.in_flight": False},
        "rollout.in_flight",
        "no effect beside algorithm.max_staleness 0",
    ),
    "in flight and deterministic": (
        {"algorithm.max_staleness": 1, "rollout.deterministic": True, "rollout.in_flight": True},
        "rollout.in_flight",
        "at odds with rollout.deterministic",
    ),
    "the engine's own of another policy's answers": (
        {"rollout.replay": "prompts.jsonl", "algorithm.old_logprobs": "engine"},
        "algorithm.old_logprobs",
        "another policy sampled",
    ),
    "bounds without a correction": (
        {"algorithm.off_policy_bounds": [0.5, 3]},
        "algorithm.off_policy_bounds",
        "off_policy none",
    ),
    "bounds the wrong way round": (
        {"algorithm.off_policy": "icepop", "algorithm.off_policy_bounds": [3, 0.5]},
        "algorithm.off_policy_bounds",
        "above the upper one",
    ),
    "baseline that is taken away again": (
        {"algorithm.reward_normalisation": "whiten", "algorithm.reward_baseline": 1},
        "algorithm.reward_baseline",
        "takes the mean away",
    ),
    "overlong buffer": ({"algorithm.overlong_penalty": [512, 1]}, "algorithm.overlong_penalty", "more than"),
    "average that is not kept": ({"policy.ema_export": "instead"}, "policy.ema_export", "set policy.ema_decay"),
    "average that never moves": ({"policy.ema_decay": 1.0}, "policy.ema_decay", "less than 1"),
    "texts that are not there": ({"ptx": {"data": {"path": "texts.txt"}}}, "ptx.data.path", "no such file"),
    "texts without a weight": (
        {"ptx": {"data": {"path": "prompts.jsonl"}, "coefficient": 0}},
        "ptx.coefficient",
        "greater than 0",
    ),
    "adaptive without a start": (
        {"algorithm.kl": {"target": 6, "coefficient": 0, "place": "loss"}},
        "algorithm.kl.target",
        "coefficient is 0",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_contradictions_end_in_one_line(name: str, refuses: Any) -> None:
    refuses(*CASES[name])


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "opo", "reinforce_plus_plus_baseline", "remax"])
def test_estimators_without_a_critic_have_none(name: str, write_config: Any) -> None:
    config = load_config(PPOConfig, write_config({"algorithm.advantages": name, "samples_per_prompt": 4}))
    assert config.critics == {}
    assert not [key for key in config.placements() if key[0] == "critics"]


def test_reinforce_plus_plus_takes_single_samples(write_config: Any) -> None:
    config = load_config(PPOConfig, write_config({"algorithm.advantages": "reinforce_plus_plus"}))
    assert config.critics == {}
    assert config.algorithm.whiten_advantages


def test_returns_without_penalty_are_one_advantage_a_response(write_config: Any) -> None:
    changes = {"policy_loss": "clip_sequence", "advantages": "reinforce_plus_plus", "kl": {"place": "loss"}}
    config = load_config(PPOConfig, write_config({f"algorithm.{name}": value for name, value in changes.items()}))
    assert config.algorithm.policy_loss == "clip_sequence"


def test_defaults_follow_the_estimator_and_the_loss() -> None:
    assert AlgorithmConfig().whiten_advantages
    assert not AlgorithmConfig(advantages="grpo").whiten_advantages
    assert AlgorithmConfig(advantages="grpo", whiten_advantages=True).whiten_advantages
    ranges = {
        name: (AlgorithmConfig(policy_loss=name).clip_range, AlgorithmConfig(policy_loss=name).clip_range_high)
        for name in ("clip", "gspo", "cispo")
    }
    assert ranges == {"clip": (0.2, None), "gspo": (3e-4, 4e-4), "cispo": (1.0, 4.0)}
    assert (KLConfig().estimator, KLConfig(place="loss").estimator) == ("k1", "k3")
    assert AlgorithmConfig(off_policy="icepop").off_policy_bounds == (0.5, 5.0)


def test_a_resolved_config_loads_again_without_complaint(write_config: Any, tmp_path: Path) -> None:
    """All defaults are written out there, those that nothing reads too."""
    changes = {**GRPO, "algorithm.policy_loss": "sapo", "algorithm.kl": {"place": "loss"}}
    config = load_config(PPOConfig, write_config(changes))
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(PPOConfig, again) == config
