"""A model on held-out prompts. `generate` and `score` are given: this room starts nothing."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlhf_ray.data.records import PromptRecord, Sample
from rlhf_ray.evaluation.statistics import distinct_n, mean

AnswerPrompts = Callable[[Sequence[PromptRecord]], Sequence[Sample]]
"""Answers to prompts, in any order."""

ScoreSamples = Callable[[Sequence[Sample]], Mapping[str, Sequence[float | None]]]
"""Scores of samples by source, in the samples' order; None where a source does not apply, NaN where it failed."""


@dataclass(frozen=True, slots=True)
class HeldOutResult:
    """Metrics by their TRL names, without the prefix `eval_`, and the samples that they come from."""

    metrics: dict[str, float]
    samples: list[Sample]
    scores: list[float | None]
    """Weighted sum of each sample's sources; None where no source applies or one failed."""

    def logged(self) -> dict[str, float]:
        """Return the metrics as a training job logs them."""
        return {f"eval_{name}": value for name, value in self.metrics.items()}


def evaluate(
    prompts: Sequence[PromptRecord],
    generate: AnswerPrompts,
    score: ScoreSamples,
    weights: Mapping[str, float],
    cost_weights: Mapping[str, float] | None = None,
) -> HeldOutResult:
    """Answer and score prompts.

    Args:
        prompts: held-out prompts.
        generate: the model that answers.
        score: the reward sources.
        weights: weight of each source in the sum `reward`.
        cost_weights: of each source in the sum `cost`; without any there is no such sum.
    """
    order = {prompt.prompt_id: position for position, prompt in enumerate(prompts)}
    samples = sorted(generate(prompts), key=lambda sample: (order[sample.prompt_id], sample.index))
    by_source = score(samples)
    sums = _sums(by_source, weights)
    metrics = {"reward": mean(sums).value}
    if cost_weights:
        metrics["cost"] = mean(_sums(by_source, cost_weights)).value
    metrics |= {f"rewards/{source}/mean": mean(scores).value for source, scores in by_source.items()}
    metrics |= _texts(samples)
    return HeldOutResult(metrics, samples, sums)


def _sums(by_source: Mapping[str, Sequence[float | None]], weights: Mapping[str, float]) -> list[float | None]:
    """Sum each sample over the sources that apply, by weight; None where none does, or one failed: that is no zero."""
    weighed = [(weight, by_source[source]) for source, weight in weights.items()]
    found: list[float | None] = []
    for row in range(max((len(scores) for scores in by_source.values()), default=0)):
        parts = [weight * score for weight, scores in weighed if (score := scores[row]) is not None]
        found.append(sum(parts) if parts and all(map(math.isfinite, parts)) else None)
    return found


def _texts(samples: Sequence[Sample]) -> dict[str, float]:
    if not samples:
        return {}
    lengths = [len(sample.response_ids) for sample in samples]
    return {
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/max_length": float(max(lengths)),
        "completions/min_length": float(min(lengths)),
        "completions/clipped_ratio": sum(sample.finish_reason == "length" for sample in samples) / len(samples),
        "completions/distinct_2": distinct_n([sample.response_ids.tolist() for sample in samples]),
    }
