"""The policy's loss by config: its settings arrive, and micro-batches, ranks and the order of rows change nothing."""

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.policy_losses import POLICY_LOSSES, CISPOLoss, ClippedPolicyLoss, GSPOLoss, SAPOLoss
from rlhf_ray.config.algorithm import POLICY_LOSSES as SETTINGS
from rlhf_ray.config.algorithm import Aggregation, AlgorithmConfig, PolicyLossName
from rlhf_ray.data.batches import TokenBatch, assign
from rlhf_ray.experience.experience import Experience
from rlhf_ray.experience.minibatches import draw_epochs
from rlhf_ray.experience.objectives import off_policy_correction, policy_loss

LONGEST = 9

LOSSES: dict[str, dict[str, Any]] = {
    "clip": {"policy_loss": "clip", "clip_range_high": 0.28, "dual_clip": 3.0},
    "clip_sequence": {"policy_loss": "clip_sequence", "advantages": "rloo"},
    "gspo": {"policy_loss": "gspo", "advantages": "grpo", "clip_range": 0.05, "clip_range_high": 0.06},
    "cispo": {"policy_loss": "cispo", "entropy_coefficient": 0.01},
    "sapo": {"policy_loss": "sapo", "kl": {"place": "loss"}},
    "kl": {"policy_loss": "clip", "kl": {"place": "loss", "estimator": "k2"}, "off_policy": "truncated"},
}


def test_settings_arrive() -> None:
    def made(**changes: Any) -> Any:
        return policy_loss(AlgorithmConfig.model_validate(changes), 0.3)

    assert made() == ClippedPolicyLoss(clip_low=0.2, clip_high=0.2)
    assert made(clip_range_high=0.28, dual_clip=3) == ClippedPolicyLoss(clip_low=0.2, clip_high=0.28, dual_clip=3)
    assert made(policy_loss="clip_sequence").level == "sequence"
    assert made(policy_loss="gspo") == GSPOLoss(clip_low=3e-4, clip_high=4e-4)
    assert made(policy_loss="gspo", clip_range=0.1, clip_range_high=None) == GSPOLoss(clip_low=0.1, clip_high=0.1)
    assert made(policy_loss="cispo") == CISPOLoss(clip_low=1.0, clip_high=4.0)
    assert made(policy_loss="sapo", entropy_coefficient=0.1) == SAPOLoss(entropy_coefficient=0.1)
    term = made(kl={"place": "loss", "estimator": "k2"}).kl
    assert (term.coefficient, term.estimator) == (0.3, "k2"), "the coefficient is the present one"
    assert policy_loss(AlgorithmConfig.model_validate({"kl": {"place": "loss"}}), 0.0).kl is None
    assert off_policy_correction(AlgorithmConfig()) is None


def test_one_table_holds_every_loss_that_configs_name() -> None:
    page = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text(encoding="utf-8")
    assert set(get_args(PolicyLossName)) == POLICY_LOSSES.keys() == SETTINGS.keys()
    for name, (loss, formula) in POLICY_LOSSES.items():
        algorithm = AlgorithmConfig.model_validate({"policy_loss": name})
        assert policy_loss(algorithm, 0.0) == loss, "a config's defaults are those of the loss"
        settings, own = SETTINGS[algorithm.policy_loss], {field.name for field in fields(loss)}
        assert (settings.clips, settings.dual_clip) == ("clip_low" in own, "dual_clip" in own)
        assert f"| `{name}` | {formula} |" in page


@st.composite
def experiences(draw: st.DrawFn) -> tuple[Experience, dict[str, np.ndarray]]:
    """Some groups with gaps and failed rewards, and what the model says of their tokens."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    lengths = np.array(draw(st.lists(st.integers(1, LONGEST), min_size=1, max_size=10)), np.int32)
    tokens = int(lengths.sum())
    batch = TokenBatch.from_sequences([np.zeros(2, np.int32)] * len(lengths), [np.zeros(n, np.int32) for n in lengths])
    learned = np.repeat(random.random(len(lengths)) < 0.8, lengths) & (random.random(tokens) < 0.8)
    old = -random.exponential(1.0, tokens)
    columns = {
        "old_logprobs": old,
        "advantages": np.repeat(random.normal(size=len(lengths)), lengths),
        "reference_logprobs": old + random.normal(0, 0.3, tokens),
        "importance_weights": random.uniform(0.5, 2, tokens),
    }
    groups = np.sort(random.integers(0, 4, len(lengths))) if draw(st.booleans()) else None
    experience = Experience(
        [],
        batch,
        torch.from_numpy(learned),
        {name: torch.from_numpy(values).float() for name, values in columns.items()},
        0.0,
        {},
        critic_columns={"critic": {"returns": torch.zeros(tokens)}},
        groups=groups,
    )
    outputs = {"logprobs": old + random.normal(0, 0.2, tokens), "entropy": random.exponential(1.0, tokens)}
    return experience, outputs


def learned_from(
    experience: Experience, columns: dict[str, np.ndarray], outputs: dict[str, np.ndarray], loss: Any, parts: list[Any]
) -> tuple[float, np.ndarray, dict[str, float]]:
    """Loss, its gradient by the log-probabilities, and metrics: sums over the parts, each given by its rows."""
    logprobs = torch.tensor(outputs["logprobs"], requires_grad=True)
    entropy = torch.tensor(outputs["entropy"])
    total, metrics = torch.zeros((), dtype=torch.float64), dict[str, float]()
    for rows in parts:
        index = experience.batch.flat_index(rows)
        lengths = experience.batch.response_lengths[rows]
        chosen = {name: torch.from_numpy(values[index]).double() for name, values in columns.items()}
        chosen["rows"] = torch.from_numpy(np.repeat(np.arange(len(rows)), lengths))
        value, found = loss({"logprobs": logprobs[index], "entropy": entropy[index]}, chosen)
        total = total + value
        for name, metric in found.items():
            metrics[name] = metrics.get(name, 0.0) + float(metric)
    total.backward()
    assert logprobs.grad is not None
    return float(total.detach()), logprobs.grad.numpy(), metrics


@settings(deadline=None, max_examples=60)
@given(
    drawn=experiences(),
    name=st.sampled_from(sorted(LOSSES)),
    aggregation=st.sampled_from(get_args(Aggregation)),
    minibatches=st.integers(1, 3),
    ranks=st.integers(1, 3),
    budget=st.integers(1, 60),
)
def test_micro_batches_and_ranks_change_nothing(
    drawn: tuple[Experience, dict[str, np.ndarray]],
    name: str,
    aggregation: Aggregation,
    minibatches: int,
    ranks: int,
    budget: int,
) -> None:
    experience, outputs = drawn
    loss = policy_loss(AlgorithmConfig.model_validate(LOSSES[name]), 0.1)
    [epoch] = draw_epochs(experience, 1, minibatches, (0, 0), aggregation, LONGEST)
    for step in epoch.steps:
        plan = assign(experience.batch.lengths[step.rows], ranks, budget)
        parts = [step.rows[rows] for microbatches in plan for rows in microbatches if len(rows)]
        whole = learned_from(experience, epoch.columns, outputs, loss, [step.rows])
        divided = learned_from(experience, epoch.columns, outputs, loss, parts)
        assert divided[0] == pytest.approx(whole[0], rel=1e-9, abs=1e-12)
        np.testing.assert_allclose(divided[1], whole[1], rtol=1e-9, atol=1e-12)
        assert divided[2] == pytest.approx(whole[2], rel=1e-9, abs=1e-12)
        ratio = whole[2].get("val/ratio", 1.0) / step.total_weight
        learned = experience.learned.numpy() & (epoch.columns["weight"] != 0)
        index = experience.batch.flat_index(step.rows)
        weights = np.where(learned, epoch.columns["weight"], 0.0)[index].astype(np.float64)
        ratios = np.exp(outputs["logprobs"] - experience.columns["old_logprobs"].double().numpy())[index]
        assert ratio == pytest.approx((weights * ratios).sum() / weights.sum(), rel=1e-5), "a mean over tokens"
