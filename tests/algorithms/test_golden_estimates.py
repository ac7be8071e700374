"""Statistics, KL, rewards, advantages and controllers against the golden numbers."""

import pytest
import torch
from golden_cases import Case, golden

from rlhf_ray.algorithms.advantages import (
    dr_grpo,
    gae,
    grpo,
    opo,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    rloo,
)
from rlhf_ray.algorithms.kl import AdaptiveKL, KLTerm, kl_estimate
from rlhf_ray.algorithms.lagrangian import LagrangeMultiplier, combined_advantages
from rlhf_ray.algorithms.off_policy import OffPolicyCorrection
from rlhf_ray.algorithms.rewards import clip_scores, overlong_penalty, token_rewards
from rlhf_ray.algorithms.segments import row_means, row_sums
from rlhf_ray.algorithms.statistics import explained_variance, masked_mean, masked_variance, whiten


@golden("masked_stats")
def test_masked_stats(case: Case) -> None:
    x, mask = case.flat("x"), case.mask
    biased = case.params.get("convention") == "biased_all"
    case.check("whiten", whiten(x, mask, correction=0 if biased else 1), mask)
    if "mean" in case.expected:
        case.check("mean", masked_mean(x, mask))
        case.check("mean_row", row_means(x, mask, case.rows, case.shape[0]))
        case.check("var_unbiased", masked_variance(x, mask))
        case.check("var_biased", masked_variance(x, mask, correction=0))
        case.check("whiten_keep_mean", whiten(x, mask, shift_mean=False), mask)


@golden("explained_variance")
def test_explained_variance(case: Case) -> None:
    case.check("explained_variance", explained_variance(case.flat("values"), case.flat("returns"), case.mask))


@golden("kl_estimators")
def test_kl_estimators(case: Case) -> None:
    logprobs, reference = case.flat("logp", grad=True), case.flat("ref_logp")
    clamped = case.params.get("input_clamp") is not None or "input_clamp" not in case.params
    weight = case.params.get("weight", "")
    if weight:
        weighting = "score" if "stopgrad" in weight else "ratio"
        ratio = (logprobs - case.flat("old_logp")).exp() if weighting == "ratio" else logprobs.detach().exp()
        kl = KLTerm(1.0, case.params["estimator"], weighting)(logprobs, reference, ratio)
    else:
        kl = kl_estimate(logprobs, reference, case.params["estimator"], clamp_k3=clamped)
    case.check("kl", kl)
    kl.sum().backward()
    case.check("grad", logprobs.grad)


@golden("token_rewards")
def test_token_rewards(case: Case) -> None:
    mask, params = case.mask, case.params
    kl = kl_estimate(case.flat("logp"), case.flat("ref_logp"), params["estimator"])
    scores = case.flat("score")
    if params.get("score_clip") is not None:
        scores = clip_scores(scores, params["score_clip"])
    rewards = token_rewards(scores, kl, mask, case.offsets, params["beta"])
    if "clip_total" in params:
        rewards = clip_scores(rewards, params["clip_total"])
    case.check("rewards", rewards, mask)
    assert (rewards[~mask] == 0).all()
    if "mean_kl" in case.expected:
        case.check("mean_kl", row_means(kl, mask, case.rows, case.shape[0]).mean())


@golden("adaptive_kl")
def test_adaptive_kl(case: Case) -> None:
    controller = AdaptiveKL(case.params["init_beta"], case.params["target"], case.params["horizon"])
    seen = []
    for kl, samples in zip(case.inputs["current_kl"], case.inputs["n_steps"], strict=True):
        controller = controller.update(kl, samples)
        seen.append(controller.coefficient)
    case.check("beta", torch.tensor(seen, dtype=torch.float64))


@golden("gae")
def test_gae(case: Case) -> None:
    mask, params = case.mask, case.params
    if "logp" in case.inputs:
        kl = kl_estimate(case.flat("logp"), case.flat("ref_logp"), params["estimator"])
        rewards = token_rewards(case.flat("score"), kl, mask, case.offsets, params["beta"])
        rewards = whiten(rewards, mask, shift_mean=False)
        case.check("rewards", rewards, mask)
    else:
        rewards = case.flat("rewards")
    values, gamma = case.flat("values"), params["gamma"]
    decay = params.get("lam", params.get("lam_advantages"))
    advantages, returns = gae(rewards, values, mask, case.offsets, gamma, decay)
    if "lam_returns" in params:
        _, returns = gae(rewards, values, mask, case.offsets, gamma, params["lam_returns"])
    case.check("returns", returns, mask)
    if "advantages" in case.expected:
        case.check("advantages", advantages, mask)
    if "advantages_whitened" in case.expected:
        case.check("advantages_whitened", whiten(advantages, mask), mask)
    if "advantages_whitened_biased" in case.expected:
        case.check("advantages_whitened_biased", whiten(advantages, mask, correction=0), mask)


@golden("group_advantages")
def test_group_advantages(case: Case) -> None:
    scores, groups, params = case.flat("scores"), torch.tensor(case.inputs["group"]), case.params
    if "beta" in params:
        kl = (case.flat("old_logp") - case.flat("ref_logp")) * case.mask
        scores = scores - params["beta"] * row_sums(kl, case.rows, len(scores))
    match params["method"]:
        case "grpo":
            scale = "batch" if "batch" in str(params.get("std")) else "group"
            advantages = grpo(scores, groups, scale, params["eps"])
        case "dr_grpo":
            advantages = dr_grpo(scores, groups)
        case "rloo":
            advantages = rloo(scores, groups)
        case "opo":
            advantages = opo(scores, groups, row_sums(case.mask.long(), case.rows, len(scores)))
    case.check("advantages", advantages)


@golden("reinforce_pp")
def test_reinforce_plus_plus(case: Case) -> None:
    mask, offsets, params = case.mask, case.offsets, case.params
    correction = {"b": 1 if params["variance"].startswith("bessel") else 0, "n": None}[params["variance"][0]]
    if "method" not in params:
        kl = kl_estimate(case.flat("logp"), case.flat("ref_logp"), params["estimator"])
        rewards = token_rewards(case.flat("score"), kl, mask, offsets, params["beta"])
        torch.testing.assert_close(rewards[mask], case.flat("token_rewards")[mask])
        advantages, returns = reinforce_plus_plus(rewards, mask, offsets, params["gamma"], correction)
        case.check("returns", returns, mask)
    else:
        groups = torch.tensor(case.inputs["group"]) if "baseline" in params["method"] else None
        kl = case.flat("logp") - case.flat("ref_logp") if "logp" in case.inputs else torch.zeros(len(mask)).double()
        kl_in = "return" if "accumulated as a return" in params.get("kl", "") else "token"
        advantages = reinforce_plus_plus_baseline(
            case.flat("scores"), groups, kl, mask, offsets, params["beta"], kl_in, correction
        )
    case.check("advantages", advantages, mask)


@golden("overlong_shaping")
def test_overlong_shaping(case: Case) -> None:
    rewards, params = case.flat("rewards"), case.params
    lengths = case.flat("response_lengths")
    penalty = overlong_penalty(lengths, params["max_len"], params["buffer"], params["factor"], params["capped"])
    case.check("rewards", rewards + penalty)


CORRECTIONS = {
    "tis": {"level": "token"},
    "icepop": {"level": "token", "beyond": "mask"},
    "token_mask": {"level": "token", "beyond": "mask", "kept": "one"},
    "sequence_tis": {"level": "sequence"},
    "sequence_mask": {"level": "sequence", "beyond": "mask"},
    "outlier": {"level": "every", "beyond": "mask", "kept": "one"},
}


@golden("is_weights")
def test_importance_weights(case: Case) -> None:
    from test_golden_policy_losses import clipped_loss

    mask, offsets, params = case.mask, case.offsets, case.params
    low, high = params.get("lo", 0.0), params["hi"]
    settings = CORRECTIONS.get(params["kind"])
    if settings is None:
        one = params["kept_rows"] == "weight 1"
        settings = {"level": "mean", "beyond": "mask", "kept": "one" if one else "token_ratio"}
        if params["statistic"].startswith("1/"):
            low, high = 1 / high, 1 / low
    correction = OffPolicyCorrection(**settings, low=low, high=high, normalise="normalise" in params)
    weights, diagnostics = correction(case.flat("old_logp"), case.flat("rollout_logp"), mask, offsets)
    case.check("weights", weights)
    assert all(value.isfinite() for value in diagnostics.values())
    if "loss" in case.expected:
        clipped_loss(case, importance_weights=weights)


@golden("ppo_lagrangian")
def test_ppo_lagrangian(case: Case) -> None:
    from test_golden_policy_losses import clipped_loss

    params = case.params
    if "mean_episode_cost" in case.inputs:
        multiplier = LagrangeMultiplier(
            params["lambda_init"],
            params["lambda_lr"],
            params["cost_limit"],
            params["lambda_max"],
            params["delay_steps"],
            params["steps_count_from"],
        )
        seen = []
        for cost in case.inputs["mean_episode_cost"]:
            multiplier = multiplier.update(cost)
            seen.append(multiplier.value)
        case.check("lambda", torch.tensor(seen, dtype=torch.float64))
    elif "lambda" in params:
        advantages = combined_advantages(case.flat("reward_advantages"), case.flat("cost_advantages"), params["lambda"])
        case.check("mixed_advantages", advantages, case.mask)
        clipped_loss(case, advantages=advantages)
    else:
        mask, kl = case.mask, case.flat("logp") - case.flat("ref_logp")
        for scores, sign, key in (("reward", 1, "rewards"), ("cost", -1, "costs")):
            rewards = token_rewards(case.flat(scores), kl, mask, case.offsets, sign * params["beta"])
            case.check(key, clip_scores(rewards, params["clip"]), mask)


@golden("entropy_logprobs")
def test_entropy_and_logprobs(case: Case) -> None:
    """The network's chunked log-probabilities, with an output projection that leaves the logits as they are."""
    chunked_logprobs = pytest.importorskip("rlhf_ray.models.logprobs").chunked_logprobs
    logits = torch.tensor(case.inputs["logits"], dtype=torch.float64)
    if "input_ids" in case.inputs:
        ids, mask = torch.tensor(case.inputs["input_ids"]), torch.tensor(case.inputs["completion_mask"])[:, 1:]
        logits, labels = logits[:, :-1], ids[:, 1:]
    else:
        labels, mask = torch.tensor(case.inputs["labels"]), torch.tensor(case.inputs["mask"])
    vocab = logits.shape[-1]
    hidden = logits.reshape(-1, vocab).clone().requires_grad_(True)
    eye, temperature = torch.eye(vocab, dtype=torch.float64), case.params.get("temperature", 1.0)
    logprobs, entropy = chunked_logprobs(hidden, eye, labels.reshape(-1), temperature, 2, True)
    flat_mask = mask.reshape(-1).double()
    if "sum" in case.expected:
        rows = torch.arange(len(mask)).repeat_interleave(mask.shape[1])
        case.check("token_logprobs", logprobs * flat_mask)
        case.check("sum", row_sums(logprobs * flat_mask, rows, len(mask)))
        case.check("mean", row_means(logprobs, flat_mask.bool(), rows, len(mask)))
        return
    case.check("logprob", logprobs, flat_mask.bool())
    case.check("entropy", entropy, flat_mask.bool())
    mean = (entropy * flat_mask).sum() / flat_mask.sum()
    case.check("entropy_mean", mean)
    case.check("grad_entropy_mean", torch.autograd.grad(mean, hidden, retain_graph=True)[0])
    case.check("grad_logprob_sum", torch.autograd.grad((logprobs * flat_mask).sum(), hidden)[0])
