"""How rewards become updates: estimators of advantages, policy losses, KL, corrections, shaping of rewards."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from rlhf_ray.config.base import Section
from rlhf_ray.config.numbers import (
    LARGEST,
    AnyFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    Tokens,
    WrittenAsList,
)

Advantages = Literal[
    "gae", "grpo", "dr_grpo", "rloo", "opo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax"
]
PolicyLossName = Literal["clip", "clip_sequence", "gspo", "cispo", "sapo"]
OffPolicy = Literal["none", "truncated", "icepop", "sequence_truncated", "sequence_mask", "geometric_mask"]
Aggregation = Literal[
    "token_mean", "token_sum", "sequence_mean_token_mean", "sequence_mean_token_sum", "sequence_mean_token_sum_norm"
]

COMPARES_GROUPS: frozenset[Advantages] = frozenset({"grpo", "dr_grpo", "rloo", "opo", "reinforce_plus_plus_baseline"})
"""Estimators that compare the responses to one prompt."""
WHITENS: frozenset[Advantages] = frozenset({"gae", "reinforce_plus_plus", "reinforce_plus_plus_baseline"})
"""Estimators whose papers whiten over the batch."""
ONE_ADVANTAGE_A_ROW: frozenset[Advantages] = frozenset({"grpo", "dr_grpo", "rloo", "opo", "remax"})
"""Estimators that give all tokens of a response the same advantage."""


@dataclass(frozen=True)
class PolicyLossSettings:
    """Settings of a policy loss, and their defaults, from the papers."""

    clip_range: float = 0.2
    clip_range_high: float | None = None
    clips: bool = True
    """Whether the two above have an effect."""
    unbounded_below: bool = False
    """Whether `clip_range` may be 1 or more, which switches the lower bound off."""
    dual_clip: bool = False
    one_advantage_a_row: bool = False
    """Whether all tokens of a response must have the same advantage."""


POLICY_LOSSES: dict[PolicyLossName, PolicyLossSettings] = {
    "clip": PolicyLossSettings(dual_clip=True),
    "clip_sequence": PolicyLossSettings(dual_clip=True, one_advantage_a_row=True),
    "gspo": PolicyLossSettings(3e-4, 4e-4),
    "cispo": PolicyLossSettings(1.0, 4.0, unbounded_below=True),
    "sapo": PolicyLossSettings(clips=False),
}
"""The losses and their formulas are in the table of the same name in `rlhf_ray.algorithms.policy_losses`."""

MOST_STALENESS = 64
"""Above it nothing is gained: engines wait for the policy, not for prompts."""

OFF_POLICY_BOUNDS: dict[OffPolicy, tuple[float, float]] = {
    "none": (0.0, 2.0),
    "truncated": (0.0, 2.0),
    "icepop": (0.5, 5.0),
    "sequence_truncated": (0.0, 3.0),
    "sequence_mask": (0.0, 3.0),
    "geometric_mask": (0.99, 1.01),
}


def _whitens(given: dict[str, Any]) -> bool:
    return given.get("advantages", "gae") in WHITENS


def _clip_range(given: dict[str, Any]) -> float:
    return POLICY_LOSSES[given.get("policy_loss", "clip")].clip_range


def _clip_range_high(given: dict[str, Any]) -> float | None:
    return POLICY_LOSSES[given.get("policy_loss", "clip")].clip_range_high


def _off_policy(given: dict[str, Any]) -> OffPolicy:
    return "truncated" if given.get("max_staleness") else "none"


def _bounds(given: dict[str, Any]) -> tuple[float, float]:
    return OFF_POLICY_BOUNDS[given.get("off_policy", "none")]


class KLConfig(Section):
    """KL divergence to the reference: a penalty in the reward, or a term of the policy's loss."""

    coefficient: NonNegativeFloat = 0.05
    """Weight of the penalty; the first value when it adapts. 0 starts no reference."""

    place: Literal["reward", "loss"] = "reward"
    """Where it counts: taken from the reward of each token, or added to the policy's loss as in GRPO."""

    estimator: Literal["k1", "k2", "k3"] = Field(
        default_factory=lambda given: "k3" if given.get("place") == "loss" else "k1"
    )
    """Estimator of the divergence of each token (Schulman 2020). By default k1 in the reward and k3 in the loss."""

    target: PositiveFloat | None = None
    """KL per response at which an adaptive coefficient aims (Ziegler et al. 2019). None: fixed coefficient."""

    horizon: float = Field(default=10_000, ge=1, le=LARGEST)
    """Samples over which an adaptive coefficient moves."""


class LagrangianConfig(Section):
    """Costs beside rewards: safe RLHF (Dai et al. 2024)."""

    place: Literal["advantages", "reward"] = "advantages"
    """advantages: PPO-Lagrangian, with a critic of its own for costs and lambda learned; reward: costs times a fixed
    lambda are taken from the reward (reward shaping)."""

    multiplier: NonNegativeFloat = 1.0
    """Lambda, the weight of costs against rewards; its first value where it is learned."""

    cost_limit: AnyFloat = 0.0
    """Mean cost of an episode that lambda shall enforce."""

    learning_rate: float = Field(default=0.1, ge=0, le=100)
    """Of lambda: log lambda grows by this x lambda x (mean episode cost - limit) before each update of the policy."""

    maximum: PositiveFloat | None = 5.0
    """Bound on lambda. None: none."""

    delay_steps: NonNegativeInt = 0
    """First steps in which lambda rests."""

    window: PositiveInt = 128
    """Episodes of which the mean cost is taken: those of the step, and the newest before them where it has fewer."""


class AlgorithmConfig(Section):
    """Estimator, loss and their settings; docs/algorithms.md has the formulas."""

    advantages: Advantages = "gae"
    """Estimator of advantages. All but gae need no critic and start none."""

    policy_loss: PolicyLossName = "clip"
    """clip: PPO's, each token's ratio; clip_sequence: PPO's with the ratio of the whole response; gspo; cispo; sapo."""

    loss_aggregation: Aggregation = "token_mean"
    """How the losses of tokens become one; `norm` divides by rollout.max_new_tokens, as Dr. GRPO does."""

    clip_range: PositiveFloat = Field(default_factory=_clip_range)
    """Probability ratios count only within 1 +- this range. By default 0.2; gspo 3e-4, cispo 1."""

    clip_range_high: PositiveFloat | None = Field(default_factory=_clip_range_high)
    """The range above 1. None: as below; by default so, but gspo 4e-4, cispo 4."""

    dual_clip: float | None = Field(default=None, gt=1, le=LARGEST)
    """Bound on the ratio where the advantage is negative (Ye et al. 2020)."""

    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of each written token."""

    gae_lambda: Share = 0.95
    """Decay of GAE."""

    value_clip_range: PositiveFloat | None = 0.2
    """Values may move this far from the old ones in one step's loss. None: no clipping."""

    entropy_coefficient: NonNegativeFloat = 0.0
    """Weight of the entropy bonus."""

    kl: KLConfig = Field(default_factory=KLConfig)
    """KL to the reference."""

    whiten_advantages: bool = Field(default_factory=_whitens)
    """Shift and scale advantages to mean 0 and variance 1 over the whole batch. By default for gae and reinforce_*."""

    lagrangian: LagrangianConfig | None = None
    """Keep the mean cost under a limit, where a reward source measures cost. None: there are no costs."""

    filter_groups: Annotated[int, Field(gt=0, le=1000)] | None = None
    """Drop groups whose rewards are all equal and answer further prompts in their place (DAPO), up to this many batches
    of prompts a step. Each takes the place at once; in deterministic mode, or where rewards share devices with engines,
    once all others are answered. None: keep all groups."""

    reward_baseline: AnyFloat = 0.0
    """Taken from the reward of each response."""

    reward_normalisation: Literal["none", "scale", "whiten"] = "none"
    """Divide rewards by the deviation of all rewards since the run began; whiten also takes their mean away."""

    reward_clip: PositiveFloat | None = None
    """Rewards of a response are clipped to +- this value."""

    missing_eos_penalty: NonNegativeFloat = 0.0
    """Taken from the reward of a response that did not end by itself."""

    overlong_penalty: Annotated[tuple[Tokens, PositiveFloat], WrittenAsList] | None = None
    """`[tokens, penalty]`: over the last tokens before rollout.max_new_tokens the penalty grows from 0 (DAPO)."""

    target_kl: PositiveFloat | None = None
    """Stop the epochs of a step once the mean KL of new to old policy passes this value."""

    critic_warmup_steps: NonNegativeInt = 0
    """First steps in which only the critic learns."""

    max_staleness: Annotated[int, Field(ge=0, le=MOST_STALENESS)] = 0
    """Versions by which a sample may be older than the policy that learns from it. 0: each batch is written by the
    weights that learn from it. k: engines write the next k batches while the policy learns; docs/overlap.md says which
    k pays."""

    old_logprobs: Literal["trainer", "engine"] = "trainer"
    """Whose log-probabilities are those of the policy before the update: the denominator of the ratio, and its side of
    the KL. engine: as the tokens were sampled, which saves the policy's forward pass over the batch; what engine and
    trainer differ by, which each sync measures on a fixed text, is then part of both."""

    off_policy: OffPolicy = Field(default_factory=_off_policy)
    """Importance weights from the engine's to the trainer's old log-probabilities: truncated (TIS); icepop; of whole
    responses; or of tokens, where the geometric mean over the response lies within the bounds. By default none, and
    truncated where max_staleness lets older weights write (decoupled PPO, Hilton et al. 2022)."""

    off_policy_bounds: Annotated[tuple[NonNegativeFloat, PositiveFloat], WrittenAsList] = Field(default_factory=_bounds)
    """Weights are truncated to, or masked outside, these. By default truncated [0, 2], icepop [0.5, 5],
    sequence_* [0, 3], geometric_mask [0.99, 1.01]."""

    @property
    def has_critic(self) -> bool:
        """Whether the estimator needs values."""
        return self.advantages == "gae"

    @property
    def has_cost_critic(self) -> bool:
        """Whether costs have a critic of their own, and lambda is learned."""
        return self.has_critic and self.lagrangian is not None and self.lagrangian.place == "advantages"

    @property
    def reward_kl(self) -> bool:
        """Whether KL is a penalty in the reward."""
        return self.kl.place == "reward"
