"""What a loss is here: a pure function from a micro-batch to a weighted sum and its metrics; and the plain ones.

The weight of each token (or row) is fixed over the whole optimizer step, so sums over micro-batches and ranks add up to
the loss of the step however its rows were divided.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_ray.algorithms.shapes import check_shapes

Metrics = dict[str, Tensor]


@runtime_checkable
class Loss(Protocol):
    """A loss of one trained model. Implementations are frozen dataclasses, so that they can travel to the ranks."""

    @property
    def needs_entropy(self) -> bool:
        """Whether `outputs` must hold the entropy of each token's distribution."""
        ...

    def __call__(self, outputs: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> tuple[Tensor, Metrics]:
        """Compute the loss of one micro-batch.

        Args:
            outputs: what the model computed. A policy gives `logprobs` [tokens] and, if asked, `entropy` [tokens]; a
                critic `values` [tokens]; a reward or cost model `scores` [rows].
            columns: what the driver prepared, always with `weight` ([tokens], or [rows] for losses of rows; 0 where
                nothing is learned) and `rows` [tokens], the index of each token's row in the micro-batch.

        Returns:
            The sum of weight times loss, and metrics, each the sum of weight times value. If the weights of a step sum
            to 1, adding the metrics of all micro-batches gives their means; otherwise divide by the sum of the weights.
        """
        ...


@check_shapes
def where_weighted(weight: Float[Tensor, "*n"], values: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Put 0 where the weight is 0, so that NaN or infinity there reaches neither the loss nor a gradient.

    Applied to inputs: masking a result would still multiply the gradient of what made it by zero, and 0 x NaN is NaN.
    """
    return torch.where(weight != 0, values, 0.0)


@check_shapes
def weighted_sum(weight: Float[Tensor, "*n"], values: Float[Tensor, "*n"]) -> Float[Tensor, ""]:
    """Sum weight times value."""
    return (weight * values).sum()


def weighted_metrics(weight: Float[Tensor, "*n"], values: Mapping[str, Tensor]) -> Metrics:
    """Sum weight times value of each metric, outside the graph."""
    return {name: weighted_sum(weight, value.detach().to(weight.dtype)) for name, value in values.items()}


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """Minus the log-probability of each token: SFT, continued pre-training, and PPO-ptx's pre-training term.

    With `token_mean` weights it is the usual cross-entropy. Columns: `weight`.
    """

    needs_entropy: ClassVar[bool] = False

    def __call__(self, outputs: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> tuple[Tensor, Metrics]:
        """See `Loss`. `outputs` holds `logprobs` [tokens]."""
        weight = columns["weight"]
        loss = -weighted_sum(weight, where_weighted(weight, outputs["logprobs"]))
        return loss, {"nll_loss": loss.detach()}


@dataclass(frozen=True)
class PretrainingLoss:
    """The pre-training term of PPO-ptx (Ouyang et al. 2022): gamma times the negative log-likelihood of texts.

    Columns: `weight`. The metric is without gamma.
    """

    coefficient: float
    """Gamma."""
    needs_entropy: ClassVar[bool] = False

    def __call__(self, outputs: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> tuple[Tensor, Metrics]:
        """See `Loss`. `outputs` holds `logprobs` [tokens]."""
        loss, metrics = NegativeLogLikelihood()(outputs, columns)
        return self.coefficient * loss, {"loss/ptx_avg": metrics["nll_loss"]}


@dataclass(frozen=True)
class ClippedValueLoss:
    """Half the squared error to the returns, pessimistic about moving far (Schulman et al. 2017, code of OpenAI).

    l = max((v - R)^2, (clip(v, v_old - range, v_old + range) - R)^2) / 2. Columns: `weight`, `old_values`, `returns`.
    """

    clip_range: float | None = 0.2
    """None: plain squared error."""
    needs_entropy: ClassVar[bool] = False

    def __call__(self, outputs: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> tuple[Tensor, Metrics]:
        """See `Loss`. `outputs` holds `values` [tokens]."""
        weight = columns["weight"]
        values = where_weighted(weight, outputs["values"])
        returns = where_weighted(weight, columns["returns"])
        error = (values - returns).square()
        clipped = error
        if self.clip_range is not None:
            old = where_weighted(weight, columns["old_values"])
            held = values.clamp(old - self.clip_range, old + self.clip_range)
            clipped = (held - returns).square()
        loss = weighted_sum(weight, torch.maximum(error, clipped)) / 2
        metrics = weighted_metrics(weight, {"val/clipfrac_avg": clipped > error, "val/mean": values})
        return loss, {"loss/value_avg": loss.detach(), **metrics}
