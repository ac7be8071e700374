"""Checks across the fields of `rlhf dpo`: settings under which nothing, or something else, would be learned."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rlhf_ray.config.preferences import (
    OF_SINGLE_ANSWERS,
    PLAIN_SUMS,
    SMOOTHED,
    WITHOUT_REFERENCE,
    PreferenceLossConfig,
)
from rlhf_ray.config.reading.documents import Problem

if TYPE_CHECKING:
    from rlhf_ray.config.jobs.dpo import DPOConfig

FOR_PAIRS = (
    "weights", "label_smoothing", "nll_coefficient", "length_normalised", "length_desensitisation", "reference_free",
    "divergence",
)  # fmt: skip
"""Settings that losses of single answers do not have."""
FOR_SINGLE_ANSWERS = ("desirable_weight", "undesirable_weight")
OF_ONE_LOSS = {"simpo_margin": "simpo", "simpo_alpha": "simpo", "discopop_temperature": "discopop"}


def preference_problems(config: "DPOConfig") -> Iterator[Problem]:
    """Find what is wrong between the settings of a job that learns from preferences."""
    if config.trainer.learning_rate == 0:
        yield Problem(("trainer", "learning_rate"), "0 freezes the policy, so nothing would be learned")
    if "kto" in config.loss.type and config.batch_size < 2:
        yield Problem(
            ("batch_size",), "kto compares each answer with those of other prompts, so a step needs at least 2 rows"
        )
    yield from _loss(config.loss)
    yield from _without_effect(config.loss)


def _loss(loss: PreferenceLossConfig) -> Iterator[Problem]:
    if loss.beta == 0:
        yield Problem(
            ("loss", "beta"),
            "0 leaves a loss that no policy can change (ln 2 for sigmoid); take a value above 0, such as 0.1",
        )
    if loss.weights is not None and len(loss.weights) != len(loss.type):
        yield Problem(
            ("loss", "weights"), f"has {len(loss.weights)} weights for {len(loss.type)} losses: {', '.join(loss.type)}"
        )
    if len(set(loss.type)) < len(loss.type):
        yield Problem(("loss", "type"), f"names a loss twice: {', '.join(loss.type)}")
    single = [name for name in loss.type if name in OF_SINGLE_ANSWERS]
    if single and len(loss.type) > 1:
        others = [name for name in loss.type if name != single[0]]
        yield Problem(
            ("loss", "type"),
            f"{single[0]} takes answers one by one and cannot be added to {', '.join(others)}; choose one of them, "
            "or apo_zero or bco_pair, which take pairs",
        )
    if "exo" in loss.type and loss.label_smoothing == 0:
        yield Problem(("loss", "label_smoothing"), "exo takes its logarithm: set it above 0, such as 1e-3")
    if loss.divergence == "alpha" and loss.divergence_alpha == 1:
        yield Problem(("loss", "divergence_alpha"), "order 1 is the reverse KL; set divergence: reverse_kl")


def _without_effect(loss: PreferenceLossConfig) -> Iterator[Problem]:
    """Find settings that change nothing: they were meant for something else."""
    names = ", ".join(loss.type)
    single = bool(OF_SINGLE_ANSWERS.intersection(loss.type))
    without = FOR_PAIRS if single else () if loss.type == ["bco"] else FOR_SINGLE_ANSWERS
    changed = loss.model_dump(exclude_defaults=True)
    for name in without:
        if name in changed:
            yield Problem(("loss", name), f"has no effect on {names}")
    for name, owner in OF_ONE_LOSS.items():
        if owner not in loss.type and name in changed:
            yield Problem(("loss", name), f"is for {owner}, and has no effect on {names}")
    if not single and loss.label_smoothing and not SMOOTHED.intersection(loss.type):
        yield Problem(("loss", "label_smoothing"), f"has no effect on {names}; it is for {', '.join(sorted(SMOOTHED))}")
    if not single and loss.length_normalised is not None and PLAIN_SUMS.issuperset(loss.type):
        yield Problem(("loss", "length_normalised"), f"has no effect on {names}, which compares plain sums")
    for kind in loss.type if not single and loss.divergence != "reverse_kl" else ():
        alone = kind in WITHOUT_REFERENCE if loss.reference_free is None else loss.reference_free
        if alone or kind in PLAIN_SUMS:
            reason = "is one to a reference, which this loss leaves out" if alone else "has no effect"
            yield Problem(("loss", "divergence"), f"{loss.divergence} {reason}: {kind}")
