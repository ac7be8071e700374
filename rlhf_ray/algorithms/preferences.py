"""The DPO family: losses of pairs from summed log-probabilities of their responses.

c and r are log-ratios of policy to reference, of the chosen and the rejected response; d = c - r; s is the sigmoid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

PairValues = Float[Tensor, " pairs"]

EXPONENT_LIMIT = 40.0
"""Exponents are held below this, so that the square of an exponential is still finite in float32."""
LOG_PROBABILITY_CEILING = -1e-6
"""ORPO's odds of a probability of 1 are infinite; a mean log-probability is held below this."""


@dataclass(frozen=True)
class Pairs:
    """Summed log-probabilities of the responses of preference pairs."""

    chosen: PairValues
    rejected: PairValues
    reference_chosen: PairValues
    reference_rejected: PairValues
    """Those of the reference; not looked at where the objective has none."""
    chosen_lengths: Shaped[Tensor, " pairs"]
    rejected_lengths: Shaped[Tensor, " pairs"]
    """Tokens of the responses, for length-normalised objectives."""
    chosen_statistic: PairValues | None = None
    rejected_statistic: PairValues | None = None
    """What a coupled objective learned from a first pass over the whole optimizer step."""

    def __post_init__(self) -> None:
        shapes = {name: tuple(value.shape) for name, value in vars(self).items() if value is not None}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"values of pairs must all have one shape, [pairs], not {shapes}")

    @property
    def statistics(self) -> tuple[PairValues, PairValues]:
        """The statistics of both sides.

        Raises:
            ValueError: there are none.
        """
        if self.chosen_statistic is None or self.rejected_statistic is None:
            raise ValueError("a loss that couples the pairs of a step needs statistics from a first pass over the step")
        return self.chosen_statistic, self.rejected_statistic


PairLossName = Literal[
    "sigmoid", "ipo", "hinge", "robust", "exo", "nca", "bco_pair", "bco", "sppo", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "simpo", "cpo", "orpo",
]  # fmt: skip
Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]

REFERENCE_FREE: frozenset[str] = frozenset({"simpo", "cpo", "orpo"})
PLAIN_SUMS: frozenset[str] = frozenset({"aot"})
"""Kinds that compare differences of plain sums: they know neither lengths nor divergences."""
LENGTH_NORMALISED: frozenset[str] = frozenset({"ipo", "simpo", "orpo"})
COUPLED: frozenset[str] = frozenset({"aot", "aot_unpaired", "bco"})


@dataclass(frozen=True)
class PreferenceObjective:
    """One loss of the family, with its settings. `docs/algorithms.md` gives the formulas and their papers."""

    kind: PairLossName = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    """Share e of labels taken to be wrong; used by sigmoid, cpo, simpo, aot (conservative), robust and exo."""
    reference_free: bool | None = None
    """Leave the reference out. None: as the kind does (simpo, cpo, orpo have none)."""
    length_normalised: bool | None = None
    """Divide log-probabilities by length. None: as the kind does (ipo, simpo and orpo divide)."""
    target_margin: float = 0.5
    """SimPO's gamma."""
    temperature: float = 0.05
    """DiscoPOP's tau."""
    alpha: float = 0.0
    """AlphaPO's alpha, for simpo; 0 is SimPO itself."""
    divergence: Divergence = "reverse_kl"
    """f-divergence in place of the reverse KL (Wang et al. 2024)."""
    divergence_alpha: float = 0.5
    """Of the alpha divergence."""

    def __post_init__(self) -> None:
        if self.kind not in _FORMULAS:
            raise ValueError(f"no preference loss is named {self.kind!r}; choose one of {', '.join(_FORMULAS)}")
        if not self.beta > 0:
            raise ValueError(f"beta must be above 0, or nothing is learned: {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be in [0, 0.5): {self.label_smoothing}")
        if self.kind == "exo" and self.label_smoothing == 0:
            raise ValueError("exo needs a label_smoothing above 0, such as 1e-3: its target is log(label_smoothing)")
        if self.length_normalised is not None and self.kind in PLAIN_SUMS:
            raise ValueError(f"length_normalised has no effect on {self.kind}")
        if self.divergence != "reverse_kl" and (self.kind in PLAIN_SUMS or not self.needs_reference):
            raise ValueError(
                f"divergence={self.divergence!r} has no effect on {self.kind}"
                if self.kind in PLAIN_SUMS
                else f"divergence={self.divergence!r} is one to a reference, which {self.kind} does not have here"
            )

    @property
    def needs_reference(self) -> bool:
        """Whether the reference's log-probabilities matter."""
        return not (self.kind in REFERENCE_FREE if self.reference_free is None else self.reference_free)

    @property
    def is_coupled(self) -> bool:
        """Whether the loss of a pair depends on the other pairs of the step, through statistics of a first pass."""
        return self.kind in COUPLED

    def __call__(self, pairs: Pairs) -> PairValues:
        """Return the loss of each pair.

        Raises:
            ValueError: a coupled objective lacks its statistics.
        """
        return _FORMULAS[self.kind](self, pairs, *self.log_ratios(pairs))

    def log_ratios(self, pairs: Pairs) -> tuple[PairValues, PairValues]:
        """Return c and r as the formula takes them: less the reference, by length, through the divergence."""
        chosen, rejected = pairs.chosen, pairs.rejected
        if self.needs_reference:
            chosen, rejected = chosen - pairs.reference_chosen, rejected - pairs.reference_rejected
        normalise = self.kind in LENGTH_NORMALISED if self.length_normalised is None else self.length_normalised
        if normalise:
            chosen = chosen / pairs.chosen_lengths.clamp(min=1)
            rejected = rejected / pairs.rejected_lengths.clamp(min=1)
        return self._divergence_score(chosen), self._divergence_score(rejected)

    def _divergence_score(self, ratio: PairValues) -> PairValues:
        if self.divergence == "forward_kl":
            return 1 - _exp(-ratio)
        if self.divergence == "js":
            return F.logsigmoid(ratio) + torch.log(torch.tensor(2.0, dtype=ratio.dtype, device=ratio.device))
        if self.divergence == "alpha":
            power = self.divergence_alpha - 1
            return (_exp(power * ratio) - 1) / power
        return ratio


Formula = Callable[[PreferenceObjective, Pairs, PairValues, PairValues], PairValues]


def _exp(exponent: PairValues) -> PairValues:
    return exponent.clamp(max=EXPONENT_LIMIT).exp()


def _smoothed(objective: PreferenceObjective, logit: PairValues) -> PairValues:
    """Return -(1 - e) log s(logit) - e log s(-logit)."""
    e = objective.label_smoothing
    loss = -(1 - e) * F.logsigmoid(logit)
    return loss - e * F.logsigmoid(-logit) if e else loss


def _sigmoid(o: PreferenceObjective, _: Pairs, c: PairValues, r: PairValues) -> PairValues:
    """Compute DPO's loss (Rafailov et al. 2023); with label smoothing cDPO's (Mitchell 2023)."""
    return _smoothed(o, o.beta * (c - r))


def _ipo(o: PreferenceObjective, _: Pairs, c: PairValues, r: PairValues) -> PairValues:
    """Compute (d - 1 / (2 beta))^2 (Azar et al. 2023)."""
    return (c - r - 1 / (2 * o.beta)).square()


def _hinge(o: PreferenceObjective, _: Pairs, c: PairValues, r: PairValues) -> PairValues:
    """Compute max(0, 1 - beta d) (SLiC, Zhao et al. 2023)."""
    return torch.relu(1 - o.beta * (c - r))


def _robust(o: PreferenceObjective, _: Pairs, c: PairValues, r: PairValues) -> PairValues:
    """Compute [-(1 - e) log s(beta d) + e log s(-beta d)] / (1 - 2e).
    It is unbiased under flipped labels (Chowdhury et al. 2024).
    """
    logit, e = o.beta * (c - r), o.label_smoothing
    return (-(1 - e) * F.logsigmoid(logit) + e * F.logsigmoid(-logit)) / (1 - 2 * e)


def _exo(o: PreferenceObjective, _: Pairs, c: PairValues, r: PairValues) -> PairValues:
    """Reverse KL of s(beta d) to the smoothed label (Ji et al. 2024)."""
    logit = o.beta * (c - r)
    e = torch.tensor(o.label_smoothing, dtype=logit.dtype, device=logit.device)
    right = logit.sigmoid() * (F.logsigmoid(logit) - torch.log1p(-e))
    return right + (-logit).sigmoid() * (F.logsigmoid(-logit) - e.log())


def _nca(o: PreferenceObjective, _: Pairs, c: PairValues, r: PairValues) -> PairValues:
    """Compute -log s(beta c) - log s(-beta c) / 2 - log s(-beta r) / 2 (Chen et al. 2024)."""
    chosen, rejected = o.beta * c, o.beta * r
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def _bco_pair(o: PreferenceObjective, _: Pairs, c: PairValues, r: PairValues) -> PairValues:
    """Compute -log s(beta c) - log s(-beta r): BCO (Jung et al. 2024) without its shift."""
    return -F.logsigmoid(o.beta * c) - F.logsigmoid(-o.beta * r)


def _bco(o: PreferenceObjective, pairs: Pairs, c: PairValues, r: PairValues) -> PairValues:
    """Compute -log s(beta c - shift) - log s(shift - beta r), the shift being the mean reward seen so far."""
    shift, _ = pairs.statistics
    return -F.logsigmoid(o.beta * c - shift) - F.logsigmoid(shift - o.beta * r)


def _sppo(o: PreferenceObjective, _: Pairs, c: PairValues, r: PairValues) -> PairValues:
    """Compute (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2 (Wu et al. 2024, hard labels)."""
    target = 1 / (2 * o.beta)
    return (c - target).square() + (r + target).square()


def _aot(o: PreferenceObjective, pairs: Pairs, c: PairValues, r: PairValues) -> PairValues:
    """Compute the smoothed sigmoid loss of sorted differences (Melnyk et al. 2024).
    Each pair meets the reference of equal rank.
    """
    reference_difference, _ = pairs.statistics
    return _smoothed(o, o.beta * (pairs.chosen - pairs.rejected - reference_difference))


def _aot_unpaired(o: PreferenceObjective, pairs: Pairs, c: PairValues, r: PairValues) -> PairValues:
    """Compute the loss of sorted c against sorted r; each side meets the other's value of equal rank as a constant.

    The two terms give both gradients; the value of the second is taken out again, as it is that of the first in
    another order.
    """
    for_chosen, for_rejected = pairs.statistics
    above = _smoothed(o, o.beta * (c - for_chosen))
    below = _smoothed(o, o.beta * (for_rejected - r))
    return above + below - below.detach()


def _apo_zero(o: PreferenceObjective, _: Pairs, c: PairValues, r: PairValues) -> PairValues:
    """Compute 1 - s(beta c) + s(beta r): raise the chosen, lower the rejected (D'Oosterlinck et al. 2024)."""
    return (-o.beta * c).sigmoid() + (o.beta * r).sigmoid()


def _apo_down(o: PreferenceObjective, _: Pairs, c: PairValues, r: PairValues) -> PairValues:
    """Compute s(beta c) + 1 - s(beta d): lower both, the rejected more (D'Oosterlinck et al. 2024)."""
    return (o.beta * c).sigmoid() + (-o.beta * (c - r)).sigmoid()


def _discopop(o: PreferenceObjective, _: Pairs, c: PairValues, r: PairValues) -> PairValues:
    """Compute (1 - k)(-log s(x)) + k exp(-x), x = beta d, k = s(x / tau) (Lu et al. 2024)."""
    logit = o.beta * (c - r)
    scaled = logit / o.temperature
    # k exp(-x) as one exponential: apart, the second overflows where k is 0.
    return -(-scaled).sigmoid() * F.logsigmoid(logit) + _exp(F.logsigmoid(scaled) - logit)


def _simpo(o: PreferenceObjective, _: Pairs, c: PairValues, r: PairValues) -> PairValues:
    """Compute the smoothed sigmoid loss of beta d - gamma (Meng et al. 2024).
    AlphaPO transforms c and r (Gupta et al. 2025).
    """
    if o.alpha:
        c, r = ((1 - _exp(-o.alpha * logprob)) / o.alpha for logprob in (c, r))
    return _smoothed(o, o.beta * (c - r) - o.target_margin)


def _orpo(o: PreferenceObjective, _: Pairs, c: PairValues, r: PairValues) -> PairValues:
    """Compute -beta log s(log odds ratio) (Hong et al. 2024); its NLL term is the loss's own."""
    odds = (c - r) - (_log1mexp(c) - _log1mexp(r))
    return -o.beta * F.logsigmoid(odds)


def _log1mexp(logprob: PairValues) -> PairValues:
    """Compute log(1 - exp(logprob)) without cancellation (Mächler 2012)."""
    held = logprob.clamp(max=LOG_PROBABILITY_CEILING)
    near = held > -0.6931471805599453
    close = torch.where(near, held, -0.1)
    far = torch.where(near, -1.0, held)
    return torch.where(near, torch.log(-torch.expm1(close)), torch.log1p(-far.exp()))


_FORMULAS: dict[str, Formula] = {
    "sigmoid": _sigmoid, "ipo": _ipo, "hinge": _hinge, "robust": _robust, "exo": _exo, "nca": _nca,
    "bco_pair": _bco_pair, "bco": _bco, "sppo": _sppo, "aot": _aot, "aot_unpaired": _aot_unpaired,
    "apo_zero": _apo_zero, "apo_down": _apo_down, "discopop": _discopop, "simpo": _simpo, "cpo": _sigmoid,
    "orpo": _orpo,
}  # fmt: skip
