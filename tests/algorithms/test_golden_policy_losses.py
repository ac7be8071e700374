"""Losses of policies and critics, and their aggregation, against the golden numbers: values and gradients."""

import torch
from golden_cases import Case, golden
from torch import Tensor

from rlhf_ray.algorithms.advantages import gae
from rlhf_ray.algorithms.aggregation import token_weights
from rlhf_ray.algorithms.kl import KLTerm
from rlhf_ray.algorithms.losses import ClippedValueLoss, Metrics, weighted_sum
from rlhf_ray.algorithms.policy_losses import (
    CISPOLoss,
    ClippedPolicyLoss,
    GSPOLoss,
    PolicyLoss,
    SAPOLoss,
)
from rlhf_ray.algorithms.statistics import whiten

MODES = {
    "token-mean": "token_mean",
    "token-sum": "token_sum",
    "seq-mean-token-sum": "sequence_mean_token_sum",
    "seq-mean-token-mean": "sequence_mean_token_mean",
    "token-sum-norm": "sequence_mean_token_sum_norm",
    "token-sum-norm-constant": "sequence_mean_token_sum_norm",
    "mean over rows": "sequence_mean_token_mean",
}


def weights_of(case: Case, mask: Tensor | None = None) -> Tensor:
    mode = MODES[case.params.get("aggregation", case.params.get("mode", "token-mean"))]
    counted = case.params.get("empty_rows") == "counted"
    mask = case.mask if mask is None else mask
    return token_weights(mode, mask, case.offsets, case.params.get("constant"), counted, dtype=torch.float64)


def policy_loss(case: Case, loss: PolicyLoss, **columns: Tensor) -> Metrics:
    """Compare value and gradient; return the metrics."""
    logprobs = case.flat("logp", grad=True)
    given = {"weight": weights_of(case), "rows": case.rows, **columns}
    for name, key in (("old_logprobs", "old_logp"), ("reference_logprobs", "ref_logp"), ("advantages", "advantages")):
        if name not in given and key in case.inputs:
            values = case.flat(key)
            given[name] = values if len(values) == len(logprobs) else values[case.rows]
    given.setdefault("old_logprobs", logprobs.detach())
    value, metrics = loss({"logprobs": logprobs}, given)
    case.check("loss", value)
    value.backward()
    case.check("grad", logprobs.grad)
    return metrics


def clipped_loss(case: Case, **columns: Tensor) -> None:
    low, high = case.params.get("clip_low", 0.2), case.params.get("clip_high", 0.2)
    policy_loss(case, ClippedPolicyLoss(low, high), **columns)


@golden("policy_loss_ppo")
def test_ppo(case: Case) -> None:
    if case.name == "tutorial_whole_step":
        return whole_step(case)
    settings = {key: case.params[key] for key in ("clip_low", "clip_high", "dual_clip")}
    metrics = policy_loss(case, ClippedPolicyLoss(**settings, log_ratio_limit=case.params.get("log_ratio_clamp")))
    for key, name in (
        ("clip_fraction", "policy/clipfrac_avg"),
        ("dual_clip_fraction", "policy/dual_clipfrac_avg"),
        ("approx_kl", "policy/kl_avg"),
    ):
        if key in case.expected and name in metrics:
            case.check(key, metrics[name])
    return None


def whole_step(case: Case) -> None:
    """Token rewards to losses: GAE, whitening over all elements, policy and value loss."""
    params, mask = case.params, case.mask
    old_values = case.flat("old_values")
    advantages, returns = gae(
        case.flat("token_rewards"), old_values, mask, case.offsets, params["gamma"], params["lam"]
    )
    advantages = whiten(advantages, mask)
    case.check("advantages_whitened", advantages)
    columns = {
        "weight": weights_of(case),
        "rows": case.rows,
        "old_logprobs": case.flat("old_logp"),
        "advantages": advantages,
        "old_values": old_values,
        "returns": returns,
    }
    loss, metrics = ClippedPolicyLoss(params["clip"], params["clip"])({"logprobs": case.flat("new_logp")}, columns)
    case.check("policy_loss", loss)
    case.check("approx_kl_half_square", metrics["policy/approxkl_avg"])
    case.check("policy_kl", -metrics["policy/kl_avg"])
    value_loss, _ = ClippedValueLoss(params["value_clip"])({"values": case.flat("new_values")}, columns)
    case.check("value_loss_times_coef", params["vf_coef"] * value_loss)


@golden("policy_loss_with_kl")
def test_kl_in_the_loss(case: Case) -> None:
    weighting = {"": "none", "exp(logp - sg logp)": "score", "exp(logp - old_logp)": "ratio"}
    term = KLTerm(case.params["beta"], case.params["estimator"], weighting[case.params.get("weight", "")])
    policy_loss(case, ClippedPolicyLoss(case.params["clip_low"], case.params["clip_high"], kl=term))


@golden("policy_loss_with_kl", "k3_score_function")
def test_straight_through_k3_has_the_gradient_of_the_score_function(case: Case) -> None:
    term = KLTerm(case.params["beta"], "k3+")
    policy_loss(case, ClippedPolicyLoss(case.params["clip_low"], case.params["clip_high"], kl=term))


@golden("policy_loss_gspo")
def test_gspo(case: Case) -> None:
    low, high = case.params["clip_low"], case.params["clip_high"]
    if "ratio" in case.params:
        policy_loss(case, ClippedPolicyLoss(low, high, level="sequence"))
    elif case.params["gradient"] == "either":
        policy_loss(case, GSPOLoss(low, high, gradient="token"))
        policy_loss(case, GSPOLoss(low, high, gradient="sequence"))
    else:
        gradient = "token" if case.params["gradient"] == "gspo_token" else "sequence"
        policy_loss(case, GSPOLoss(low, high, gradient=gradient))


@golden("policy_loss_cispo")
def test_cispo(case: Case) -> None:
    policy_loss(case, CISPOLoss(case.params["clip_low"], case.params["clip_high"]))


@golden("policy_loss_sapo")
def test_sapo(case: Case) -> None:
    policy_loss(case, SAPOLoss(case.params["tau_pos"], case.params["tau_neg"]))


@golden("value_loss")
def test_value_loss(case: Case) -> None:
    values = case.flat("values", grad=True)
    columns = {"weight": weights_of(case), "old_values": case.flat("old_values"), "returns": case.flat("returns")}
    loss, metrics = ClippedValueLoss(case.params["clip"])({"values": values}, columns)
    case.check("loss", loss)
    loss.backward()
    case.check("grad", values.grad)
    if "clip_fraction" in case.expected:
        case.check("clip_fraction", metrics["val/clipfrac_avg"])


@golden("loss_aggregation")
def test_aggregation(case: Case) -> None:
    losses, weights = case.flat("loss_matrix"), weights_of(case)
    if "row_splits" not in case.params:
        case.check("loss", weighted_sum(weights, losses))
        case.check("weights", weights)
        return
    parts = [weighted_sum(weights[part], losses[part]) for part in micro_batches(case)]
    case.check("partial_losses", torch.stack(parts) * case.params["dp_size"])


def micro_batches(case: Case) -> list[slice]:
    length = case.shape[1]
    return [slice(first * length, last * length) for first, last in case.params["row_splits"]]
