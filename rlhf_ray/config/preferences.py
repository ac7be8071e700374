"""How preferences become updates without a reward model: the losses of `rlhf dpo` and their settings."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rlhf_ray.config.base import Section
from rlhf_ray.config.numbers import AnyFloat, NonNegativeFloat, PositiveFloat, Share

LossType = Literal[
    "sigmoid", "ipo", "hinge", "robust", "exo", "nca", "bco", "bco_pair", "sppo", "aot", "aot_unpaired", "apo_zero",
    "apo_down", "discopop", "simpo", "cpo", "orpo", "kto", "apo_zero_unpaired",
]  # fmt: skip

OF_SINGLE_ANSWERS: frozenset[str] = frozenset({"kto", "apo_zero_unpaired"})
"""Losses that take answers one by one, each with a label; `bco` alone takes either."""
WITH_LIKELIHOOD: frozenset[str] = frozenset({"cpo", "orpo"})
"""Losses whose papers add the likelihood of the chosen answer."""
SMOOTHED: frozenset[str] = frozenset({"sigmoid", "cpo", "simpo", "aot", "aot_unpaired", "robust", "exo"})
"""Losses that know label smoothing."""
WITHOUT_REFERENCE: frozenset[str] = frozenset({"simpo", "cpo", "orpo"})
"""Losses that leave the reference out unless they are told otherwise."""
PLAIN_SUMS: frozenset[str] = frozenset({"aot"})
"""Losses of differences of plain sums, which know neither lengths nor divergences."""


TRLName = Literal["exo_pair", "nca_pair", "sppo_hard"]
TRL_NAMES: dict[str, LossType] = {"exo_pair": "exo", "nca_pair": "nca", "sppo_hard": "sppo"}
"""TRL's names of losses that are called otherwise here."""


def _named(value: Any) -> Any:
    """Make a list of our names, from one name or a list."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list):
        return value
    return [TRL_NAMES.get(name, name) if isinstance(name, str) else name for name in names]


_Named = LossType | TRLName | Annotated[list[LossType | TRLName], Field(min_length=1)]
_LossTypes = Annotated[list[LossType], BeforeValidator(_named, json_schema_input_type=_Named), Field(min_length=1)]


class PreferenceLossConfig(Section):
    """Loss that is minimised. docs/algorithms.md has the formulas."""

    type: Annotated[list[LossType], BeforeValidator(_named, json_schema_input_type=_Named), Field(min_length=1)] = (
        Field(default=["sigmoid"])
    )
    """One loss, or a list of them that are added up. kto and apo_zero_unpaired take answers one by one. TRL's names
    exo_pair, nca_pair and sppo_hard are understood."""

    weights: list[PositiveFloat] | None = None
    """Weight of each loss in the list. None: 1 each."""

    beta: NonNegativeFloat = 0.1
    """Pull to the reference: how much a difference of log-ratios counts."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of labels that may be wrong; used by sigmoid, cpo, simpo, aot, aot_unpaired, robust and exo."""

    nll_coefficient: NonNegativeFloat | None = None
    """Weight of the negative log-likelihood of chosen answers, by token. None: 1 with cpo or orpo, else 0."""

    length_normalised: bool | None = None
    """Divide log-probabilities by the answer's length; not with aot. None: as the loss does (ipo, simpo, orpo do)."""

    length_desensitisation: Share | None = None
    """LD-DPO: weight of tokens beyond the length of the pair's shorter answer. None: 1."""

    reference_free: bool | None = None
    """Leave the reference out. None: as the loss does (simpo, cpo and orpo have none)."""

    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    """Divergence that holds the policy to the reference (Wang et al. 2024); for losses that have one, and not aot."""

    divergence_alpha: float = Field(default=0.5, ge=-100, le=100)
    """Order of the alpha divergence."""

    simpo_margin: AnyFloat = 0.5
    """Target margin of simpo (its gamma)."""

    simpo_alpha: float = Field(default=0.0, ge=-100, le=100)
    """Alpha of AlphaPO, with simpo; 0 is SimPO itself."""

    discopop_temperature: float = Field(default=0.05, ge=1e-4, le=1e4)
    """Temperature of discopop's mixture."""

    desirable_weight: PositiveFloat = 1.0
    """Weight of answers labelled true, for losses of single answers."""

    undesirable_weight: PositiveFloat = 1.0
    """Weight of answers labelled false, for losses of single answers."""
