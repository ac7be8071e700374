"""`rlhf dpo`: settings under which nothing, or something else, would be learned are refused with the reason."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from rlhf_ray import cli
from rlhf_ray.algorithms.preference_losses import KTOLoss
from rlhf_ray.algorithms.preferences import COUPLED, LENGTH_NORMALISED, PLAIN_SUMS, REFERENCE_FREE, PairLossName
from rlhf_ray.config import preferences
from rlhf_ray.config.jobs.dpo import DPOConfig
from rlhf_ray.config.preferences import OF_SINGLE_ANSWERS, LossType, PreferenceLossConfig

VALID = {"output": "outputs/run", "model": {"path": "model"}, "data": {"path": "prompts.jsonl"}}

CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    # name: (top-level keys, key that the line names, words in the line)
    "beta 0": ({"loss": {"beta": 0}}, "loss.beta", "0 leaves a loss that no policy can change"),
    "beta below 0": ({"loss": {"beta": -0.1}}, "loss.beta", "greater than or equal to 0"),
    "unknown loss": ({"loss": {"type": "sigmoidal"}}, "loss.type", "Perhaps you meant sigmoid?"),
    "not a name": ({"loss": {"type": 3}}, "loss.type", "valid list"),
    "unknown in a list": ({"loss": {"type": ["sigmoid", "dpo"]}}, "loss.type.1", "'dpo'"),
    "no loss": ({"loss": {"type": []}}, "loss.type", "at least 1"),
    "a loss twice": ({"loss": {"type": ["ipo", "ipo"]}}, "loss.type", "names a loss twice"),
    "a weight too few": (
        {"loss": {"type": ["sigmoid", "ipo"], "weights": [1.0]}},
        "loss.weights",
        "has 1 weights for 2 losses: sigmoid, ipo",
    ),
    "a weight too many": ({"loss": {"weights": [0.5, 0.5]}}, "loss.weights", "has 2 weights for 1 losses: sigmoid"),
    "a weight of 0": ({"loss": {"weights": [0.0]}}, "loss.weights.0", "greater than 0"),
    "pairs with single answers": (
        {"loss": {"type": ["sigmoid", "kto"]}},
        "loss.type",
        "kto takes answers one by one and cannot be added to sigmoid",
    ),
    "two losses of single answers": (
        {"loss": {"type": ["kto", "apo_zero_unpaired"]}},
        "loss.type",
        "cannot be added to apo_zero_unpaired",
    ),
    "frozen policy": ({"trainer": {"learning_rate": 0}}, "trainer.learning_rate", "freezes the policy"),
    "kto alone in a step": ({"loss": {"type": "kto"}, "batch_size": 1}, "batch_size", "at least 2 rows"),
    "exo without smoothing": ({"loss": {"type": "exo"}}, "loss.label_smoothing", "set it above 0"),
    "smoothing of a half": ({"loss": {"label_smoothing": 0.5}}, "loss.label_smoothing", "less than 0.5"),
    "smoothing without effect": (
        {"loss": {"type": "ipo", "label_smoothing": 0.1}},
        "loss.label_smoothing",
        "has no effect on ipo",
    ),
    "alpha divergence of order 1": (
        {"loss": {"divergence": "alpha", "divergence_alpha": 1}},
        "loss.divergence_alpha",
        "reverse_kl",
    ),
    "lengths where they have no effect": (
        {"loss": {"type": "aot", "length_normalised": True}},
        "loss.length_normalised",
        "no effect on aot",
    ),
    "a divergence without effect": ({"loss": {"type": "aot", "divergence": "js"}}, "loss.divergence", "no effect: aot"),
    **{
        f"a divergence to no reference: {kind}": (
            {"loss": {"type": kind, "divergence": "forward_kl"}},
            "loss.divergence",
            f"is one to a reference, which this loss leaves out: {kind}",
        )
        for kind in ("cpo", "simpo", "orpo")
    },
    "a divergence to a reference left out": (
        {"loss": {"type": "sigmoid", "reference_free": True, "divergence": "js"}},
        "loss.divergence",
        "leaves out: sigmoid",
    ),
    "labels' weights for pairs": ({"loss": {"desirable_weight": 2}}, "loss.desirable_weight", "no effect on sigmoid"),
    "likelihood for labels": (
        {"loss": {"type": "kto", "nll_coefficient": 1}},
        "loss.nll_coefficient",
        "no effect on kto",
    ),
    "another loss's margin": ({"loss": {"simpo_margin": 1}}, "loss.simpo_margin", "is for simpo"),
    "TRL's key": ({"loss": {"loss_type": "ipo"}}, "loss.loss_type", "type"),
    "key of the loss at the top": ({"beta": 0.2}, "beta", "Perhaps you meant loss.beta?"),
    "more ranks than rows": (
        {"batch_size": 1, "trainer": {"workers": 2}},
        "batch_size",
        "1 rows do not reach 2 ranks",
    ),
    "no data": ({"data": {"path": "none.jsonl"}}, "data.path", "none.jsonl"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_settings(case: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, key, words = CASES[case]
    path = workplace / "config.yaml"
    path.write_text(yaml.safe_dump(VALID | changes, sort_keys=False))
    assert cli.main(["dpo", str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.match(r"rlhf: config\.yaml:\d+: ", line.replace(str(workplace) + "/", ""))
    assert f": {key}" in line
    assert words in line, line
    assert not (workplace / "outputs").exists()


def problems(**loss: Any) -> list[str]:
    return [problem.message for problem in DPOConfig.model_validate(VALID | {"loss": loss}).problems()]


@pytest.mark.parametrize("kind", get_args(LossType))
def test_every_loss_is_allowed_alone_by_its_name(kind: str) -> None:
    assert problems(type=kind, label_smoothing=1e-3 if kind == "exo" else 0) == []


def test_names_of_trl_are_understood() -> None:
    loss = PreferenceLossConfig(type=["exo_pair", "nca_pair", "sppo_hard", "sigmoid"])
    assert loss.type == ["exo", "nca", "sppo", "sigmoid"]


def test_several_losses_may_be_added_up() -> None:
    assert problems(type=["sigmoid", "bco_pair"], weights=[0.8, 0.2], nll_coefficient=1.0) == []


def test_a_resolved_config_is_as_good_as_what_was_written() -> None:
    """The run folder's config.yaml has every key, and none of them counts as said without effect."""
    for kind in ("sigmoid", "kto", "simpo"):
        config = DPOConfig.model_validate(VALID | {"loss": {"type": kind}})
        assert list(DPOConfig.model_validate(config.model_dump(mode="json")).problems()) == []


def test_the_names_are_those_of_the_losses() -> None:
    single = set(get_args(KTOLoss.__dataclass_fields__["kind"].type))
    assert set(get_args(LossType)) == set(get_args(PairLossName)) | single
    assert single - set(get_args(PairLossName)) == OF_SINGLE_ANSWERS
    assert set(get_args(LossType)) >= COUPLED | REFERENCE_FREE | LENGTH_NORMALISED
    assert (preferences.WITHOUT_REFERENCE, preferences.PLAIN_SUMS) == (REFERENCE_FREE, PLAIN_SUMS)
