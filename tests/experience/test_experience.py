"""Rewards, KL, advantages and returns of a batch against plain loops in float64, written from the papers."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.errors import RlhfError
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.experience.experience import Experience, RoleOutputs, estimate
from tests.samples import make_sample

KL_COEFFICIENT = 0.3
LONGEST = 8


@dataclass
class Row:
    """What the roles found for one response; one entry for each of its tokens."""

    written: list[bool]
    logprobs: np.ndarray
    reference: np.ndarray
    values: np.ndarray
    behaviour: np.ndarray
    score: float
    finish_reason: str


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    made = []
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    for _ in range(draw(st.integers(1, 5))):
        length = draw(st.integers(1, 7))
        written = draw(st.lists(st.booleans(), min_size=length, max_size=length))
        logprobs = -random.exponential(2.0, length).astype(np.float32)
        made.append(
            Row(
                written,
                logprobs,
                logprobs + random.normal(0, 0.7, length).astype(np.float32),
                random.normal(0, 1, length).astype(np.float32),
                logprobs + random.normal(0, 0.01, length).astype(np.float32),
                draw(st.sampled_from([math.nan, -3.0, -0.5, 0.0, 0.25, 2.0])),
                draw(st.sampled_from(["stop", "length"])),
            )
        )
    return made


def estimated(made: list[Row], algorithm: AlgorithmConfig, reference: bool = True) -> Experience:
    samples = [
        make_sample(
            len(row.written),
            number,
            written=np.array(row.written),
            behaviour_logprobs=row.behaviour,
            finish_reason=row.finish_reason,
            rewards={"taste": row.score, "other": None},
        )
        for number, row in enumerate(made)
    ]
    engine = algorithm.old_logprobs == "engine"
    measured = RoleOutputs(
        logprobs=flat([row.behaviour if engine else row.logprobs for row in made]),
        reference_logprobs=flat([row.reference for row in made]) if reference else None,
        values=flat([row.values for row in made]),
        scores=torch.tensor([row.score for row in made]),
    )
    return estimate(samples, TokenBatch.from_samples(samples), measured, algorithm, KL_COEFFICIENT, longest=LONGEST)


def columns_of(experience: Experience) -> dict[str, torch.Tensor]:
    return experience.columns | experience.critic_columns["critic"]


def flat(arrays: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(arrays))


def divergence(policy: float, reference: float, estimator: str) -> float:
    """Schulman, Approximating KL Divergence (2020), with r = reference / policy."""
    log_r = float(reference) - float(policy)
    return {"k1": -log_r, "k2": log_r**2 / 2, "k3": math.exp(log_r) - 1 - log_r}[estimator]


@dataclass
class Expected:
    score: float
    """After clipping and penalty."""
    kl: float
    advantages: list[float]
    returns: list[float]


def expected_row(row: Row, algorithm: AlgorithmConfig, reference: bool) -> Expected:
    """One response, token by token, backwards (Ziegler et al. 2019; Schulman et al. 2016)."""
    score = 0.0 if math.isnan(row.score) else row.score
    if algorithm.reward_clip is not None:
        score = max(-algorithm.reward_clip, min(algorithm.reward_clip, score))
    if row.finish_reason != "stop":
        score -= algorithm.missing_eos_penalty
    length = len(row.written)
    advantages, returns, kl = [0.0] * length, [0.0] * length, 0.0
    advantage = next_value = 0.0
    last = max((t for t in range(length) if row.written[t]), default=None)
    for t in reversed(range(length)):
        if not row.written[t]:
            continue
        own = row.behaviour if algorithm.old_logprobs == "engine" else row.logprobs
        token_kl = divergence(own[t], row.reference[t], algorithm.kl.estimator) if reference else 0.0
        kl += token_kl
        reward = -KL_COEFFICIENT * token_kl + (score if t == last else 0.0)
        delta = reward + algorithm.gamma * next_value - float(row.values[t])
        advantage = delta + algorithm.gamma * algorithm.gae_lambda * advantage
        next_value = float(row.values[t])
        advantages[t], returns[t] = advantage, advantage + next_value
    return Expected(score, kl, advantages, returns)


@settings(deadline=None, max_examples=150)
@given(
    made=rows(),
    estimator=st.sampled_from(["k1", "k2", "k3"]),
    gamma=st.sampled_from([1.0, 0.9]),
    gae_lambda=st.sampled_from([0.0, 0.95, 1.0]),
    reward_clip=st.sampled_from([None, 1.0]),
    penalty=st.sampled_from([0.0, 0.7]),
    whitened=st.booleans(),
    reference=st.booleans(),
    old=st.sampled_from(["trainer", "engine"]),
)
def test_as_the_loops_say(
    made: list[Row],
    estimator: str,
    gamma: float,
    gae_lambda: float,
    reward_clip: float | None,
    penalty: float,
    whitened: bool,
    reference: bool,
    old: str,
) -> None:
    settings: dict[str, Any] = {
        "kl": {"estimator": estimator},
        "gamma": gamma,
        "gae_lambda": gae_lambda,
        "reward_clip": reward_clip,
        "missing_eos_penalty": penalty,
        "whiten_advantages": whitened,
        "old_logprobs": old,
    }
    algorithm = AlgorithmConfig.model_validate(settings)
    found = estimated(made, algorithm, reference)
    expected = [expected_row(row, algorithm, reference) for row in made]

    known = [not math.isnan(row.score) for row in made]
    learned = np.array([w and k for row, k in zip(made, known, strict=True) for w in row.written])
    np.testing.assert_array_equal(found.learned.numpy(), learned)

    advantages = np.array([a for row in expected for a in row.advantages])
    if whitened:
        chosen = advantages[learned]
        variance = chosen.var(ddof=1) if len(chosen) > 1 else 0.0
        advantages = np.where(
            learned, (advantages - chosen.mean() if len(chosen) else 0) / math.sqrt(variance + 1e-8), 0
        )
    returns = np.array([r for row in expected for r in row.returns])
    columns = {name: column.numpy()[learned] for name, column in columns_of(found).items()}
    # A batch whose advantages are all but equal is scaled up by whitening, and float32's last digits with it.
    np.testing.assert_allclose(columns["advantages"], advantages[learned], atol=2e-4, rtol=1e-3)
    np.testing.assert_allclose(columns["returns"], returns[learned], atol=1e-5, rtol=1e-5)
    source = [row.behaviour if old == "engine" else row.logprobs for row in made]
    np.testing.assert_array_equal(columns["old_logprobs"], np.concatenate(source)[learned])
    np.testing.assert_array_equal(columns["old_values"], np.concatenate([row.values for row in made])[learned])

    failed = sum(not k for k in known)
    assert found.metrics["rewards/taste/failed"] == failed
    assert found.metrics["rewards/other/failed"] == 0
    assert "rewards/other/mean" not in found.metrics
    if failed < len(made):
        mean = np.nanmean([row.score for row in made])
        assert found.metrics["rewards/taste/mean"] == pytest.approx(mean), "failures are no scores"
    assert all(math.isfinite(value) for value in found.metrics.values())
    apart = "sampling/sampling_logp_difference/max" in found.metrics
    assert apart == (old == "trainer" and any(w for row in made for w in row.written)), "else there is one side only"

    kept = [row for row, k in zip(expected, known, strict=True) if k]
    if kept:
        kl = sum(row.kl for row in kept) / len(kept)
        score = sum(row.score for row in kept) / len(kept)
        assert found.mean_kl == pytest.approx(kl, abs=1e-5)
        assert found.metrics["objective/kl"] == pytest.approx(kl, abs=1e-5)
        assert found.metrics["objective/scores"] == pytest.approx(score, abs=1e-5)
        assert found.metrics["objective/non_score_reward"] == pytest.approx(-KL_COEFFICIENT * kl, abs=1e-5)
        assert found.metrics["objective/rlhf_reward"] == pytest.approx(score - KL_COEFFICIENT * kl, abs=1e-5)


def test_a_failed_reward_moves_nothing_else(made_rows: list[Row]) -> None:
    """What the other rows learn is as if the failed one had not been there."""
    algorithm = AlgorithmConfig(whiten_advantages=True)
    failed = [*made_rows[:1], Row(**(vars(made_rows[1]) | {"score": math.nan})), *made_rows[2:]]
    found, without = estimated(failed, algorithm), estimated([failed[0], *failed[2:]], algorithm)
    first, second = len(failed[0].written), len(failed[1].written)
    kept = np.r_[0:first, first + second : found.learned.numel()]
    for name, column in columns_of(without).items():
        torch.testing.assert_close(columns_of(found)[name][kept], column)
    assert not found.learned[first : first + second].any()
    finite = [bool(column.isfinite().all()) for column in columns_of(found).values()]
    assert all(finite), "zero weight does not hide a NaN"
    assert found.metrics["objective/scores"] == pytest.approx(without.metrics["objective/scores"])
    assert found.mean_kl == pytest.approx(without.mean_kl)


@settings(deadline=None, max_examples=60)
@given(
    made=rows(),
    place=st.sampled_from(["reward", "loss"]),
    estimator=st.sampled_from(["k1", "k3"]),
    advantages=st.sampled_from(["gae", "grpo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"]),
    old=st.sampled_from(["trainer", "engine"]),
    filler=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_what_stands_where_nothing_was_written_goes_nowhere(made, place, estimator, advantages, old, filler) -> None:
    chosen = {"kl": {"estimator": estimator, "place": place}, "advantages": advantages, "old_logprobs": old}
    algorithm = AlgorithmConfig.model_validate(chosen)

    def filled(value: float) -> Experience:
        arrays = ("logprobs", "reference", "values", "behaviour")
        return estimated(
            [
                Row(**(vars(row) | {name: np.where(row.written, vars(row)[name], value) for name in arrays}))
                for row in made
            ],
            algorithm,
        )

    found, expected = filled(np.float32(filler)), filled(np.float32(0))
    assert found.metrics == expected.metrics
    assert found.mean_kl == expected.mean_kl
    learned = found.learned
    for name, column in found.columns.items():
        assert torch.equal(column[learned], expected.columns[name][learned])
    assert torch.equal(found.columns["advantages"], expected.columns["advantages"])


@pytest.mark.parametrize("old", ["trainer", "engine"])
def test_a_token_without_a_log_probability_is_counted_and_not_learned(old: str) -> None:
    random = np.random.default_rng(4)
    row = Row([True] * 100, *(random.normal(-2, 0.5, 100).astype(np.float32) for _ in range(4)), 1.0, "stop")
    algorithm = AlgorithmConfig.model_validate({"old_logprobs": old})
    row.behaviour[40] = math.nan
    found = estimated([row], algorithm)
    assert found.learned.tolist() == [place != 40 for place in range(100)]
    assert found.metrics["sampling/unscored_tokens"] == 1
    assert all(math.isfinite(value) for value in found.metrics.values())
    assert found.columns["advantages"].isfinite().all()
    assert math.isfinite(found.mean_kl)
    row.behaviour[41] = -math.inf
    with pytest.raises(RlhfError, match=r"rollout: for 2 of 100 tokens the engines gave no log-probability"):
        estimated([row], algorithm)


def test_nothing_is_learned_where_every_reward_failed(made_rows: list[Row]) -> None:
    found = estimated([Row(**(vars(row) | {"score": math.nan})) for row in made_rows], AlgorithmConfig())
    assert not found.learned.any()
    assert found.mean_kl == 0.0, "the KL controller must not see a NaN"


@pytest.fixture
def made_rows() -> list[Row]:
    random = np.random.default_rng(3)
    made = []
    for length, score in ((4, 1.0), (6, -2.0), (3, 0.5)):
        parts = [random.normal(-2, 0.5, length).astype(np.float32) for _ in range(4)]
        made.append(Row([True] * length, *parts, score=score, finish_reason="stop"))
    return made
