"""Reward and cost models and the DPO family against the golden numbers: values and gradients."""

import numpy as np
import torch
from golden_cases import Case, golden
from torch import Tensor

from rlhf_ray.algorithms.aggregation import token_weights
from rlhf_ray.algorithms.losses import Metrics, NegativeLogLikelihood
from rlhf_ray.algorithms.preference_losses import (
    KTOLoss,
    PreferenceLoss,
    aot_statistic,
    aot_unpaired_statistics,
    kto_baseline,
)
from rlhf_ray.algorithms.preferences import PreferenceObjective
from rlhf_ray.algorithms.ranking import CostLoss, RankingLoss, ranking_quality, ranking_weights
from rlhf_ray.data.preferences import PairRow


@golden("rank_list")
def test_rank_lists(case: Case) -> None:
    lists = case.inputs["score_lists"]
    scores = torch.tensor([s for one in lists for s in one], dtype=torch.float64, requires_grad=True)
    groups = torch.tensor([index for index, one in enumerate(lists) for _ in one])
    ranks = torch.tensor([rank for one in lists for rank in range(len(one))])
    aggregation = "lists" if case.params["kind"] == "per_list" else "pairs"
    kind = "sigmoid" if case.params["kind"] == "sigmoid" else "log_sigmoid"
    weight = ranking_weights(groups, ranks, aggregation, dtype=torch.float64)
    loss, metrics = RankingLoss(kind)({"scores": scores}, {"weight": weight, "group": groups, "rank": ranks})
    case.check("loss", loss)
    loss.backward()
    if "grad" in case.expected:
        expected = [g for one in case.expected["grad"] for g in one]
        torch.testing.assert_close(
            scores.grad, torch.tensor(expected, dtype=torch.float64), rtol=case.rtol, atol=case.atol
        )
    quality = ranking_quality(scores.detach(), groups, ranks)
    for key in ("exact_list_accuracy", "pair_accuracy", "kendall_tau"):
        if key in case.expected:
            case.check(key, getattr(quality, key))
    if "pair_accuracy" in case.expected:
        case.check("pair_accuracy", metrics["accuracy"])


def pair_columns(pairs: int) -> dict[str, Tensor]:
    """First all better rows, then all worse ones."""
    return {
        "weight": torch.full((2 * pairs,), 1 / pairs, dtype=torch.float64),
        "group": torch.arange(pairs).repeat(2),
        "rank": torch.arange(2).repeat_interleave(pairs),
    }


@golden("reward_model")
def test_reward_model(case: Case) -> None:
    params, pairs = case.params, len(case.inputs["chosen"])
    chosen, rejected = case.flat("chosen", grad=True), case.flat("rejected", grad=True)
    columns = pair_columns(pairs)
    if "margin" in case.inputs:
        columns["margin"] = torch.cat([case.flat("margin"), torch.zeros(pairs).double()])
    centring = params.get("center_coef") or params.get("regulariser_coef") or 0.0
    loss_of = RankingLoss(
        centering_coefficient=centring, centering="squares" if "regulariser_coef" in params else "sum"
    )
    loss, metrics = loss_of({"scores": torch.cat([chosen, rejected])}, columns)
    case.check("loss", loss)
    loss.backward()
    case.check("grad_chosen", chosen.grad)
    case.check("grad_rejected", rejected.grad)
    if "accuracy" in case.expected:
        case.check("accuracy", metrics["accuracy"])
        case.check("margin_mean", metrics["margin"])


@golden("safe_rlhf_cost")
def test_cost_model(case: Case) -> None:
    unsafer, safer = case.flat("cost_unsafer", grad=True), case.flat("cost_safer", grad=True)
    columns = pair_columns(len(safer))
    columns["sign"] = torch.cat([case.flat("sign_safer"), case.flat("sign_unsafer")])
    loss_of = CostLoss(case.params["class_weight"], case.params["reg"])
    loss, metrics = loss_of({"scores": torch.cat([safer, unsafer])}, columns)
    case.check("loss", loss)
    loss.backward()
    case.check("grad_unsafer", unsafer.grad)
    case.check("grad_safer", safer.grad)
    case.check("accuracy", metrics["accuracy"])
    case.check("accuracy_sign", metrics["accuracy_sign"])


def token_columns(lengths: Tensor) -> dict[str, Tensor]:
    rows = torch.arange(len(lengths)).repeat_interleave(lengths)
    return {"rows": rows, "written": torch.ones(len(rows), dtype=torch.bool)}


def spread(sums: Tensor, lengths: Tensor) -> Tensor:
    """Summed log-probabilities as equal shares of tokens: a token's gradient is then that of the sum."""
    return (sums / lengths).repeat_interleave(lengths)


OBJECTIVES = {
    "cdpo": {"kind": "sigmoid"},
    "ipo_sum": {"kind": "ipo", "length_normalised": False},
    "exo_pair": {"kind": "exo"},
    "nca_pair": {"kind": "nca"},
    "sppo_hard": {"kind": "sppo"},
    "sigmoid_norm": {"kind": "sigmoid", "length_normalised": True},
}
DIVERGENCES = {"forward_kl": "forward_kl", "js_divergence": "js", "alpha_divergence": "alpha"}


def objective_of(params: dict) -> PreferenceObjective:
    settings = {"kind": params["loss_type"], **OBJECTIVES.get(params["loss_type"], {})}
    for name, key in (("label_smoothing", "label_smoothing"), ("tau", "temperature"), ("alpha", "divergence_alpha")):
        if name in params:
            settings[key] = params[name]
    if "f_divergence" in params:
        settings["divergence"] = DIVERGENCES[params["f_divergence"]]
    return PreferenceObjective(beta=params["beta"], **settings)


def statistics_of(kind: str, chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> dict:
    if kind == "aot":
        statistic = aot_statistic(chosen, rejected, ref_chosen, ref_rejected)
        return {"aot_statistic": torch.cat([statistic, statistic])}
    if kind == "aot_unpaired":
        return {
            "aot_unpaired_statistic": torch.cat(aot_unpaired_statistics(chosen - ref_chosen, rejected - ref_rejected))
        }
    return {}


SUMMED = [
    "sigmoid_beta0.1", "sigmoid_beta0.5", "cdpo", "ipo_sum", "hinge_beta0.1", "ipo_beta0.1", "ipo_beta0.5",
    "exo_pair_beta0.1", "nca_pair_beta0.1", "robust_beta0.1", "bco_pair_beta0.1", "sppo_hard_beta0.3",
    "apo_zero_beta0.1", "apo_down_beta0.1", "discopop_beta0.05", "sigmoid_norm_beta1.0", "aot_smoothing0.0",
    "aot_smoothing0.1", "aot_unpaired_smoothing0.0", "aot_unpaired_smoothing0.1", "f_forward_kl", "f_js_divergence",
    "f_alpha_divergence_float32",
]  # fmt: skip
BY_TOKEN = ["sft_token_mean", "sigmoid_plus_sft_sum", "sigmoid_plus_sft_mean", "ld_dpo"]


@golden("dpo_losses", *SUMMED)
def test_dpo(case: Case) -> None:
    chosen, rejected = case.flat("policy_chosen_logps", grad=True), case.flat("policy_rejected_logps", grad=True)
    reference = [case.flat("ref_chosen_logps"), case.flat("ref_rejected_logps")]
    lengths = torch.tensor(case.inputs["chosen_lengths"] + case.inputs["rejected_lengths"])
    objective = objective_of(case.params)
    columns = {
        **pair_columns(len(chosen)),
        **token_columns(lengths),
        "reference_logprobs": torch.cat(reference),
        **statistics_of(objective.kind, chosen.detach(), rejected.detach(), *reference),
    }
    outputs = {"logprobs": spread(torch.cat([chosen, rejected]), lengths)}
    loss, metrics = PreferenceLoss(((objective, 1.0),))(outputs, columns)
    check_preference(case, loss, metrics, chosen, rejected)
    if "losses" in case.expected:
        case.check("losses", each_pair(PreferenceLoss(((objective, 1.0),)), outputs, columns))


def each_pair(loss_of: PreferenceLoss, outputs: dict, columns: dict) -> Tensor:
    """Loss of each pair, by giving weight to it alone."""
    pairs = len(columns["weight"]) // 2
    losses = []
    for pair in range(pairs):
        alone = torch.zeros_like(columns["weight"])
        alone[[pair, pair + pairs]] = 1
        losses.append(loss_of(outputs, {**columns, "weight": alone})[0])
    return torch.stack(losses)


def check_preference(case: Case, loss: Tensor, metrics: Metrics, chosen: Tensor, rejected: Tensor) -> None:
    case.check("loss", loss)
    loss.backward(retain_graph=True)
    case.check("grad_chosen", chosen.grad)
    case.check("grad_rejected", rejected.grad)
    names = {
        "accuracy": "rewards/accuracies",
        "rewards_chosen_mean": "rewards/chosen",
        "rewards_rejected_mean": "rewards/rejected",
    }
    for key, name in names.items():
        if key in case.expected:
            case.check(key, metrics[name])


@golden("dpo_losses", *BY_TOKEN)
def test_dpo_with_token_terms(case: Case) -> None:
    chosen, rejected = case.flat("policy_chosen_token_logps", grad=True), case.flat("policy_rejected_token_logps", True)
    masks = torch.cat([case.flat("chosen_mask"), case.flat("rejected_mask")])
    pairs, length = case.shape
    rows = torch.arange(2 * pairs).repeat_interleave(length)
    offsets = torch.arange(0, 2 * pairs * length + 1, length)
    outputs = {"logprobs": torch.cat([chosen, rejected])}
    if case.params["loss_type"] == "sft":
        learned = masks.bool() & (rows < pairs)
        weight = token_weights("token_mean", learned, offsets, dtype=torch.float64)
        loss, _ = NegativeLogLikelihood()(outputs, {"weight": weight})
    else:
        reference = torch.cat([case.flat("ref_chosen_token_logps"), case.flat("ref_rejected_token_logps")])
        written = masks
        if "ld_alpha" in case.params:
            lengths = masks.reshape(2, pairs, length).sum(2).int().tolist()
            written = masks.clone()
            written[masks.bool()] = desensitised(lengths, case.params["ld_alpha"])
        columns = {
            **pair_columns(pairs),
            "rows": rows,
            "written": written,
            "reference_logprobs": torch.zeros(2 * pairs).double().index_add(0, rows, reference * written),
        }
        if "sft_weight" in case.params:
            mode = "sequence_mean_token_sum" if "sum" in case.params["sft"] else "sequence_mean_token_mean"
            columns["nll_weight"] = token_weights(mode, masks.bool() & (rows < pairs), offsets, dtype=torch.float64)
        objectives = ((PreferenceObjective(beta=case.params["beta"]), 1.0),)
        loss, _ = PreferenceLoss(objectives, case.params.get("sft_weight", 0.0))(outputs, columns)
    case.check("loss", loss)
    loss.backward()
    case.check("grad_chosen_tokens", chosen.grad)
    case.check("grad_rejected_tokens", rejected.grad if rejected.grad is not None else torch.zeros_like(rejected))


def desensitised(lengths: list[list[int]], alpha: float) -> Tensor:
    """What each token counts by `PairRow.answers`, for all chosen and then all rejected answers of these lengths."""
    ids = [[np.zeros(length, np.int32) for length in side] for side in lengths]
    pairs = [PairRow(0, ids[0][0], chosen, rejected).answers(alpha) for chosen, rejected in zip(*ids, strict=True)]
    return torch.from_numpy(np.concatenate([answer.shares for side in zip(*pairs, strict=True) for answer in side]))


REFERENCE_FREE = {"sigmoid": "cpo", "simpo": "simpo", "hinge": "hinge", "ipo": "ipo"}


@golden("cpo_simpo")
def test_reference_free(case: Case) -> None:
    params = case.params
    chosen, rejected = case.flat("chosen_logps", grad=True), case.flat("rejected_logps", grad=True)
    averaged = params["inputs_are"] != "sums"
    objective = PreferenceObjective(
        kind=REFERENCE_FREE[params["loss_type"]],
        beta=params["beta"],
        label_smoothing=params["label_smoothing"],
        target_margin=params["simpo_gamma"],
        alpha=params["alpha"],
        reference_free=True,
    )
    loss_of = PreferenceLoss(((objective, 1.0),))
    # Where inputs are averages over a length, any length serves as long as the sum is the average times it.
    lengths = torch.tensor([3, 1, 4, 2, 5, 2, 6, 1, 3, 4])
    sums = torch.cat([chosen, rejected]) * (lengths if averaged else 1)
    columns = {**pair_columns(len(chosen)), **token_columns(lengths)}
    outputs = {"logprobs": spread(sums, lengths)}
    loss, _ = loss_of(outputs, columns)
    case.check("losses", each_pair(loss_of, outputs, columns))
    case.check("loss", loss + params["cpo_alpha"] * case.inputs["chosen_nll"])
    loss.backward()
    case.check("grad_chosen", chosen.grad)
    case.check("grad_rejected", rejected.grad)


@golden("orpo")
def test_orpo(case: Case) -> None:
    chosen, rejected = case.flat("chosen_avg_logps", grad=True), case.flat("rejected_avg_logps", grad=True)
    lengths = torch.tensor([3, 1, 4, 2, 5, 2, 6, 1, 3, 4])
    columns = {**pair_columns(len(chosen)), **token_columns(lengths)}
    own_nll = "nll" in case.params
    if own_nll:
        offsets = torch.cat([torch.zeros(1).long(), lengths.cumsum(0)])
        columns["nll_weight"] = token_weights(
            "sequence_mean_token_mean", columns["rows"] < len(chosen), offsets, dtype=torch.float64
        )
    objective = PreferenceObjective("orpo", case.params["beta"])
    loss_of = PreferenceLoss(((objective, 1.0),), nll_coefficient=1.0 if own_nll else 0.0)
    outputs = {"logprobs": spread(torch.cat([chosen, rejected]) * lengths, lengths)}
    loss, _ = loss_of(outputs, columns)
    case.check("loss", loss if own_nll else loss + case.inputs["chosen_nll"])
    if "odds_losses" in case.expected:
        case.check("odds_losses", -each_pair(loss_of, outputs, columns))
    loss.backward()
    case.check("grad_chosen", chosen.grad)
    case.check("grad_rejected", rejected.grad)


@golden("kto")
def test_kto(case: Case) -> None:
    params, logprobs = case.params, case.flat("policy_logps", grad=True)
    lengths = torch.arange(1, len(logprobs) + 1)
    baseline = kto_baseline(case.flat("policy_kl_logps"), case.flat("ref_kl_logps"))
    if params["loss_type"] == "kto":
        case.check("kl", baseline)
    columns = {
        **token_columns(lengths),
        "weight": torch.full((len(logprobs),), 1 / len(logprobs), dtype=torch.float64),
        "desirable": torch.tensor(case.inputs["label"]).bool(),
        "reference_logprobs": case.flat("ref_logps"),
        "kto_statistic": baseline.expand(len(logprobs)),
    }
    loss_of = KTOLoss(params["beta"], params["desirable_weight"], params["undesirable_weight"], params["loss_type"])
    outputs = {"logprobs": spread(logprobs, lengths)}
    loss, _ = loss_of(outputs, columns)
    case.check("loss", loss)
    loss.backward(retain_graph=True)
    case.check("grad", logprobs.grad)
    alone = [
        loss_of(outputs, {**columns, "weight": torch.eye(len(logprobs), dtype=torch.float64)[i]})[0]
        for i in range(len(logprobs))
    ]
    case.check("losses", torch.stack(alone))
