"""PPO with staleness on the real engines: which weights wrote each token, exact resume, refusals."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.jobs.ppo.run import run
from tests.jobs.actors_here import policy_alone
from tests.jobs.ppo_runs import metrics_of, recorded_steps, saved_tensors, saved_weights, training_rows, untimed

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(1200)]

Settings = Callable[..., dict[str, Any]]
STEPS = 4


def learn(settings: dict[str, Any]) -> None:
    with policy_alone():
        run(PPOConfig.model_validate(settings))


@pytest.fixture(scope="module")
def overlapped(ppo_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose engines take weights while they write, with its samples in `samples.recorded`."""
    folder = tmp_path_factory.mktemp("overlapped") / "run"
    learn(
        ppo_settings(
            folder,
            steps=5,
            # One short pass, so that weights come while long answers are under way.
            prompts_per_step=16,
            minibatches=1,
            epochs=1,
            algorithm={"max_staleness": 2},
            rollout={
                "deterministic": False,
                "max_new_tokens": 64,
                "record": str(folder.parent / "samples.recorded"),
                # Two at a time: a batch takes long.
                "engine": {"max_num_seqs": 8},
            },
            evaluation={"data": None},
            checkpoint={"every_steps": 1},
        )
    )
    return folder


def test_tokens_are_of_the_weights_that_their_spans_name(overlapped: Path) -> None:
    """Plain Transformers finds each span's log-probabilities with the checkpoint of its version."""
    from transformers import AutoModelForCausalLM

    weights = {version: saved_weights(overlapped, version, "policy") for version in range(1, 5)}
    model = AutoModelForCausalLM.from_pretrained(overlapped / "final", dtype="float32")
    checked = dict.fromkeys(weights, 0)
    mixed = 0
    for step, samples in enumerate(recorded_steps(overlapped.parent / "samples.recorded")):
        for sample in samples:
            spans = sample.weight_versions
            assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
            assert spans[-1].end == len(sample.response_ids)
            assert all(max(0, step - 2) <= span.version <= step for span in spans)
            mixed += len(spans) > 1
    assert mixed, "no weights came while engines wrote; the test says nothing"
    for version, tensors in weights.items():
        model.load_state_dict(tensors, strict=False)
        for samples in recorded_steps(overlapped.parent / "samples.recorded"):
            for sample in samples:
                own = [span for span in sample.weight_versions if span.version == version]
                if not own or (len(sample.weight_versions) == 1 and sample.index):
                    continue
                prompt = len(sample.prompt_ids)
                ids = torch.tensor([*sample.prompt_ids, *sample.response_ids]).long()
                with torch.no_grad():
                    logits = model(ids[None]).logits[0, prompt - 1 : -1] / 0.9
                found = logits.log_softmax(-1).gather(-1, ids[prompt:, None])[:, 0]
                for span in own:
                    expected = torch.tensor(sample.behaviour_logprobs[span.start : span.end])
                    torch.testing.assert_close(found[span.start : span.end], expected, atol=2e-4, rtol=0)
                    checked[version] += span.end - span.start
    assert sum(checked.values()) > 100


def test_metrics_tell_the_age_of_what_is_learned(overlapped: Path) -> None:
    rows = training_rows(overlapped)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0]["staleness/max"] == 0
    assert all(0 <= row["staleness/mean"] <= row["staleness/max"] <= 2 for row in rows)
    assert max(row["staleness/max"] for row in rows) > 0
    assert all(0 < row["sampling/effective_sample_size"] <= 1 for row in rows)
    assert all(row["sync/logprob_diff"] <= 1e-4 for row in rows)


@pytest.mark.parametrize("staleness", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_resumed_run_equals_one_that_was_not_interrupted(
    staleness: int, ppo_settings: Settings, tmp_path: Path
) -> None:
    def settings(folder: Path) -> dict[str, Any]:
        return ppo_settings(
            folder,
            steps=STEPS,
            algorithm={"max_staleness": staleness},
            evaluation={"data": None},
            checkpoint={"every_steps": 2},
        )

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    learn(settings(whole))
    assert [row["staleness/mean"] for row in training_rows(whole)] == [min(step, staleness) for step in range(STEPS)]
    shutil.copytree(whole, resumed)
    for later in ("final", f"checkpoints/step_{STEPS}"):
        shutil.rmtree(resumed / later)
    learn(settings(resumed))
    for role in ("policy", "critic"):
        expected, found = saved_tensors(whole, STEPS, role), saved_tensors(resumed, STEPS, role)
        assert not [name for name in expected if not torch.equal(expected[name], found[name])]
    assert [untimed(row) for row in metrics_of(resumed)] == [untimed(row) for row in metrics_of(whole)]


def test_engines_that_share_devices_do_not_write_ahead(ppo_settings: Settings, tmp_path: Path) -> None:
    settings = ppo_settings(tmp_path / "run", algorithm={"max_staleness": 1})
    settings["groups"] = {"gpu": {"gpus_per_node": 1, "cpus_per_node": 8}}
    for section in (settings["policy"], settings["rollout"]):
        section |= {"on": "gpu", "gpus_per_worker": 1}
    for section in (settings["critics"]["value"], settings["reference"], *settings["rewards"]):
        section["on"] = "gpu"
    with pytest.raises(
        BadInput, match="max_staleness: 1 lets engines write while the policy learns, but here they share"
    ):
        run(PPOConfig.model_validate(settings))
