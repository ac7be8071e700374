"""A cost model on the real DeepSpeed: it tells which answer is worse, and whether an answer is bad at all."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_ray import cli
from rlhf_ray.config.jobs.supervised import CostModelConfig, RewardTrainingConfig
from rlhf_ray.data.bad_rows import ReadReport
from rlhf_ray.data.cost_pairs import CostPair
from rlhf_ray.data.loading import Loaded
from rlhf_ray.data.rows import RankedRow
from rlhf_ray.jobs.supervised import reward
from rlhf_ray.jobs.supervised.reward import CostTask
from rlhf_ray.tracking.names import describe
from tests.jobs.actors_here import actors_here
from tests.jobs.ppo_runs import metrics_of, write_config, write_rows

pytestmark = pytest.mark.usefixtures("ray_session")

THINGS = ["film", "book", "box", "phone", "room", "shirt", "song", "chair", "lamp", "trip"]
WORDS = {"wonderful": True, "fine": True, "poor": False, "terrible": False}
"""From the safest to the least safe."""


def pairs(things: list[str]) -> list[dict[str, Any]]:
    words = list(WORDS)
    return [
        {
            "prompt": f"The {thing}",
            "chosen": f" was {safer}.",
            "rejected": f" was {worse}.",
            "chosen_safe": WORDS[safer],
            "rejected_safe": WORDS[worse],
        }
        for thing in things
        for place, safer in enumerate(words)
        for worse in words[place + 1 :]
    ]


@pytest.fixture(scope="module")
def cost_settings(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("costs")
    return {
        "output": str(folder / "run"),
        "model": {"path": str(workspace / "base"), "dtype": "float32"},
        "data": {"path": str(write_rows(folder / "train.jsonl", pairs(THINGS[:8])))},
        "evaluation_data": {"path": str(write_rows(folder / "held_out.jsonl", pairs(THINGS[8:])))},
        "cost": {},
        "epochs": 4,
        "batch_size": 12,
        "tokens_per_microbatch": 128,
        "evaluate_every_steps": 0,
        "trainer": {"learning_rate": 3e-3},
        "checkpoint": {"every_steps": 0},
        "tracking": {"wandb": "off", "tensorboard": False},
    }


@pytest.fixture(scope="module")
def cost_model(cost_settings: dict[str, Any]) -> Path:
    """Learned from pairs about eight things."""
    with actors_here():
        reward.run(RewardTrainingConfig.model_validate(cost_settings))
    return Path(cost_settings["output"])


def test_it_knows_order_and_sign_of_what_it_has_not_read(cost_model: Path) -> None:
    rows = metrics_of(cost_model)
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert rows[-1]["eval_accuracy"] >= 10 / 12, "pairs about two things that it has not read about"
    assert rows[-1]["eval_accuracy_sign"] >= 0.8
    names = {name for row in rows for name in row} - {"step", "time"}
    assert not [name for name in sorted(names) if not describe(name).meaning]


def test_it_loads_as_any_scalar_model(cost_model: Path) -> None:
    """In plain Transformers; costs of safe answers lie below 0."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(cost_model / "final", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(cost_model / "final")
    costs = {}
    for word in ("wonderful", "terrible"):
        ids = [*tokenizer(f"The film was {word}.")["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            costs[word] = float(model(torch.tensor([ids])).logits[0, 0])
    assert costs["wonderful"] < 0 < costs["terrible"]


def test_pairs_of_a_step_weigh_the_same() -> None:
    ids = np.arange(3, dtype=np.int32)
    made = [CostPair(RankedRow((ids, ids[:2]), np.array(ranks, np.int32)), np.ones(2)) for ranks in ([0, 1], [1, 0])]
    taught = CostTask(CostModelConfig(), Loaded([], ReadReport("rows", 0.0), ""), None).batch(made)
    assert taught.row_columns["weight"].tolist() == [0.5] * 4
    assert taught.row_columns["sign"].tolist() == [1] * 4
    assert taught.groups is not None
    assert taught.groups.tolist() == [0, 0, 1, 1], "a pair is never divided"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aggregation": "lists"}, "aggregation: has no effect beside cost"),
        ({"centering_coefficient": 0.1}, "centering_coefficient: has no effect beside cost"),
        ({"cost": {"sign_coefficient": 0}}, "cost.sign_coefficient: input should be greater than 0"),
        ({"cost": {"regularisation": -1}}, "cost.regularisation: input should be greater than or equal to 0"),
    ],
)
def test_settings_that_contradict_costs_are_refused(
    changes: dict[str, Any],
    message: str,
    cost_settings: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path / "cost.yaml", cost_settings | {"output": str(tmp_path / "run")} | changes)
    assert cli.main(["reward", str(config)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
