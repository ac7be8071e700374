"""Advantages of every estimator without a critic against plain loops in float64, written from the papers."""

import math
import statistics
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.config.algorithm import COMPARES_GROUPS, AlgorithmConfig
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.data.records import Sample
from rlhf_ray.experience.experience import Experience, Greedy, RoleOutputs, estimate
from tests.samples import make_sample

COEFFICIENT = 0.3
NAMES = ["grpo", "dr_grpo", "rloo", "opo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax"]


@dataclass
class Row:
    group: int
    written: list[bool]
    logprobs: np.ndarray
    reference: np.ndarray
    score: float
    greedy: float


@st.composite
def batches(draw: st.DrawFn) -> list[Row]:
    """Groups of several sizes, with tokens that others wrote and rewards that failed."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    scores = st.sampled_from([math.nan, -2.0, 0.0, 0.25, 0.25, 1.0])
    rows = []
    for group in range(draw(st.integers(1, 4))):
        greedy = draw(scores)
        for _ in range(draw(st.integers(1, 4))):
            length = draw(st.integers(1, 5))
            written = draw(st.lists(st.booleans(), min_size=length, max_size=length))
            logprobs = -random.exponential(1.0, length).astype(np.float32)
            reference = logprobs + random.normal(0, 0.5, length).astype(np.float32)
            rows.append(Row(group, written, logprobs, reference, draw(scores), greedy))
    return rows


def samples_of(rows: list[Row]) -> list[Sample]:
    seen: dict[int, int] = {}
    samples = []
    for row in rows:
        index = seen.setdefault(row.group, 0)
        seen[row.group] += 1
        samples.append(
            make_sample(
                len(row.written),
                row.group,
                index,
                written=np.array(row.written),
                behaviour_logprobs=row.logprobs - 0.25,
                rewards={"reward": row.score},
            )
        )
    return samples


def estimated(rows: list[Row], algorithm: AlgorithmConfig) -> Experience:
    samples = samples_of(rows)
    logprobs = torch.from_numpy(np.concatenate([row.logprobs for row in rows]))
    reference = torch.from_numpy(np.concatenate([row.reference for row in rows]))
    greedy = None
    if algorithm.advantages == "remax":
        greedy = Greedy(samples, torch.tensor([row.greedy for row in rows]))
    scores = torch.tensor([row.score for row in rows])
    measured = RoleOutputs(logprobs, reference, None, scores, greedy)
    return estimate(samples, TokenBatch.from_samples(samples), measured, algorithm, COEFFICIENT, longest=8)


def expected(rows: list[Row], algorithm: AlgorithmConfig) -> list[list[float]]:
    """Advantage of each token of each row; 0 where nothing is learned."""
    name, in_reward = algorithm.advantages, algorithm.kl.place == "reward"
    known = [row for row in rows if is_known(row, name)]
    kls = {id(row): [float(p) - float(q) for p, q in zip(row.logprobs, row.reference, strict=True)] for row in known}
    beta = COEFFICIENT if in_reward else 0.0

    def penalty(row: Row) -> float:
        return beta * sum(kl for kl, written in zip(kls[id(row)], row.written, strict=True) if written)

    found: dict[int, list[float]] = {}
    for row in known:
        raw = name.startswith("reinforce")
        group = [other.score - (0.0 if raw else penalty(other)) for other in known if other.group == row.group]
        score = row.score - (0.0 if raw else penalty(row))
        mean = sum(group) / len(group)
        alike = max(group) == min(group)
        if name == "remax":
            advantage = score - row.greedy
        elif name == "reinforce_plus_plus":
            advantage = score
        elif alike:
            advantage = 0.0
        elif name == "rloo":
            advantage = score - (sum(group) - score) / (len(group) - 1)
        elif name == "opo":
            lengths = [sum(other.written) for other in known if other.group == row.group]
            advantage = score - sum(map(math.prod, zip(group, lengths, strict=True))) / max(sum(lengths), 1)
        elif name == "grpo":
            advantage = (score - mean) / (statistics.stdev(group) + 1e-6)
        else:
            advantage = score - mean
        tokens = [advantage if written else 0.0 for written in row.written]
        if raw:
            tokens = returns(row, kls[id(row)], advantage, beta, algorithm.gamma)
        found[id(row)] = tokens
    if algorithm.whiten_advantages:
        whiten(known, found)
    return [found.get(id(row), [0.0] * len(row.written)) for row in rows]


def is_known(row: Row, name: str) -> bool:
    return not math.isnan(row.score) and not (name == "remax" and math.isnan(row.greedy))


def returns(row: Row, kl: list[float], score: float, beta: float, gamma: float) -> list[float]:
    """Discounted rewards from each written token on; the score comes with the last."""
    found, following = [0.0] * len(row.written), score / gamma
    for t in reversed(range(len(row.written))):
        if row.written[t]:
            found[t] = following = gamma * following - beta * kl[t]
    return found


def whiten(rows: list[Row], found: dict[int, list[float]]) -> None:
    chosen = [a for row in rows for a, w in zip(found[id(row)], row.written, strict=True) if w]
    mean = sum(chosen) / max(len(chosen), 1)
    variance = statistics.variance(chosen) if len(chosen) > 1 else 0.0
    for row in rows:
        found[id(row)] = [
            (a - mean) / math.sqrt(variance + 1e-8) if w else 0.0
            for a, w in zip(found[id(row)], row.written, strict=True)
        ]


def spread(values: list[float]) -> float:
    return max(values, default=0.0) - min(values, default=0.0)


@settings(deadline=None, max_examples=200)
@given(
    rows=batches(),
    name=st.sampled_from(NAMES),
    place=st.sampled_from(["reward", "loss"]),
    whitened=st.booleans(),
    gamma=st.sampled_from([1.0, 0.9]),
)
def test_as_the_loops_say(rows: list[Row], name: str, place: str, whitened: bool, gamma: float) -> None:
    algorithm = AlgorithmConfig.model_validate(
        {
            "advantages": name,
            "kl": {"place": place, "estimator": "k1" if place == "reward" else "k3"},
            "whiten_advantages": whitened,
            "gamma": gamma if name == "reinforce_plus_plus" else 1.0,
        }
    )
    found = estimated(rows, algorithm)
    wanted = [a for row in expected(rows, algorithm) for a in row]
    learned = [w and is_known(row, name) for row in rows for w in row.written]
    assert found.learned.tolist() == learned
    # Whitening scales a batch of all but equal advantages up, and float32's last digits with it.
    raw = [a for row in expected(rows, algorithm.model_copy(update={"whiten_advantages": False})) for a in row]
    if not whitened or spread([a for a, w in zip(raw, learned, strict=True) if w]) > 1e-3:
        np.testing.assert_allclose(found.columns["advantages"].numpy(), wanted, atol=2e-3, rtol=2e-3)
    assert bool(found.columns["advantages"].isfinite().all())
    assert found.critic_columns == {}
    assert "value/explained_variance" not in found.metrics
    assert ("reference_logprobs" in found.columns) == (place == "loss")
    assert (found.groups is not None) == (name in COMPARES_GROUPS)
    if found.groups is not None:
        assert found.groups.tolist() == [row.group for row in rows]
    if place == "loss" and any(is_known(row, name) for row in rows):
        assert found.metrics["objective/non_score_reward"] == 0
        assert found.metrics["objective/rlhf_reward"] == found.metrics["objective/scores"]


def test_gradients_of_groups_do_not_depend_on_their_order() -> None:
    """A group that stands elsewhere in the batch gets the same advantages."""
    random = np.random.default_rng(0)

    def group(number: int, scores: list[float]) -> list[Row]:
        parts = [random.normal(-1, 0.3, 3).astype(np.float32) for _ in scores]
        return [Row(number, [True] * 3, p, p - 0.1, s, 0.0) for p, s in zip(parts, scores, strict=True)]

    first, second = group(0, [1.0, 0.0, 0.5]), group(1, [0.25, 2.0])
    algorithm = AlgorithmConfig(advantages="grpo")
    one, other = (estimated(rows, algorithm).columns["advantages"] for rows in (first + second, second + first))
    torch.testing.assert_close(one[:9], other[6:])
    torch.testing.assert_close(one[9:], other[:6])


@pytest.mark.parametrize(("name", "weight"), [("truncated", math.exp(0.25)), ("icepop", math.exp(0.25))])
def test_importance_weights_go_from_the_engine_to_the_trainer(name: str, weight: float) -> None:
    row = Row(0, [True, False, True], np.array([-1.0, -2.0, -3.0], np.float32), np.zeros(3, np.float32), 1.0, 0.0)
    found = estimated([row], AlgorithmConfig.model_validate({"advantages": "reinforce_plus_plus", "off_policy": name}))
    np.testing.assert_allclose(found.columns["importance_weights"].numpy(), [weight, 0, weight], rtol=1e-6)
    assert found.metrics["sampling/effective_sample_size"] == pytest.approx(1)
    assert found.metrics["sampling/out_of_bounds"] == 0
    assert found.metrics["sampling/mismatch_kl_k1"] == pytest.approx(-0.25)
    assert found.metrics["sampling/mismatch_kl_k3"] > 0


def test_weights_beyond_the_bounds_are_cut_or_masked() -> None:
    row = Row(0, [True] * 2, np.array([-1.0, -2.0], np.float32), np.zeros(2, np.float32), 1.0, 0.0)
    found = {}
    for name in ("truncated", "icepop", "sequence_truncated", "sequence_mask", "geometric_mask"):
        setting = {"advantages": "reinforce_plus_plus", "off_policy": name, "off_policy_bounds": [0.5, 1.1]}
        experience = estimated([row], AlgorithmConfig.model_validate(setting))
        found[name] = experience.columns["importance_weights"].tolist()
        assert experience.metrics["sampling/out_of_bounds"] == 1
    cut, none = pytest.approx([1.1, 1.1]), [0.0, 0.0]
    assert found == {
        "truncated": cut,
        "icepop": none,
        "sequence_truncated": cut,
        "sequence_mask": none,
        "geometric_mask": none,
    }


def test_rewards_seen_before_count_for_the_normalisation() -> None:
    random = np.random.default_rng(1)
    rows = [
        Row(0, [True], random.normal(-1, 0.1, 1).astype(np.float32), np.zeros(1, np.float32), score, 0.0)
        for score in (0.0, 4.0)
    ]
    algorithm = AlgorithmConfig(advantages="dr_grpo", reward_normalisation="scale", kl={"place": "loss"})  # type: ignore[arg-type]
    first = estimated(rows, algorithm)
    assert first.moments.count == 2
    assert first.metrics["objective/scores"] == pytest.approx(2 / statistics.stdev([0, 4]))
