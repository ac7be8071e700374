"""A PPO run of what others leave at its default: several sources, a reward model and a service among them; warm-up,
early stop; all trackers; and secrets wherever it may come across some.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf_ray
from rlhf_ray.config.errors import RlhfError
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.jobs.ppo.run import run
from rlhf_ray.redaction.texts import HIDDEN
from rlhf_ray.roles.trainer import TrainerGroup
from rlhf_ray.transfer.errors import SyncMismatch
from tests.jobs.actors_here import policy_alone
from tests.jobs.ppo_runs import saved_weights, training_rows, write_rows
from tests.planted_secrets import PLANTED, commands_watched, leaks_in, leaks_in_text, ray_logs
from tests.scoring.services import Asked, say, serving

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(1200)]

Settings = Callable[..., dict[str, Any]]
WARMUP = 1
WEIGHTS = {"letters": 2.0, "taste": -0.5, "service": 1.0}


@pytest.fixture(scope="module")
def taste(workspace: Path) -> Path:
    """A reward model that nobody trained, with opinions."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

    folder = workspace / "taste"
    set_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(workspace / "base", num_labels=1, dtype="float32")
    torch.nn.init.normal_(model.score.weight, std=0.1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(workspace / "base").save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Shown:
    """What of a run others may see, beside its folder."""

    output: str
    command_leaks: list[str]
    headers: list[str]
    """That the service got."""


def alike(handler: Any, asked: Asked, number: int) -> None:
    say(handler, [0.25] * len(asked.body["prompts"]))


@pytest.fixture(scope="module")
def optional(made: tuple[Path, Shown]) -> Path:
    """The folder of the run."""
    return made[0]


@pytest.fixture(scope="module")
def made(
    workspace: Path, taste: Path, ppo_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Shown]:
    """The run, whose prompts hold a secret and whose service asks for one."""
    folder = tmp_path_factory.mktemp("options") / "run"
    secret = PLANTED["PLANTED_CREDENTIALS"]
    prompts = write_rows(folder.parent / "prompts.jsonl", [{"prompt": f"{n} {secret}"} for n in range(24)])
    with ExitStack() as stack:
        service = stack.enter_context(serving(alike))
        commands = stack.enter_context(commands_watched())
        output = stack.enter_context(redirect_stdout(StringIO()))
        stack.enter_context(redirect_stderr(output))
        learn(settings_of(folder, prompts, service.url, workspace, taste, ppo_settings))
    headers = [asked.headers["X-Login"] for asked in service.asked]
    return folder, Shown(output.getvalue(), commands, headers)


def settings_of(
    folder: Path, prompts: Path, service: str, workspace: Path, taste: Path, ppo_settings: Settings
) -> dict[str, Any]:
    return ppo_settings(
        folder,
        steps=3,
        data={"path": str(prompts)},
        tracking={"wandb": "offline", "tensorboard": True},
        rewards=[
            {
                "kind": "function",
                "name": "letters",
                "function": f"{workspace}/reward.py:letters",
                "weight": WEIGHTS["letters"],
                "cpus_per_worker": 0.1,
            },
            {
                "kind": "model",
                "name": "taste",
                "path": str(taste),
                "dtype": "float32",
                "weight": WEIGHTS["taste"],
                "cpus_per_worker": 0.1,
            },
            {
                "kind": "http",
                "name": "service",
                "url": service,
                "secret_variable": "JUDGE_LOGIN",
                "secret_header": "X-Login",
                "weight": WEIGHTS["service"],
                "cpus_per_worker": 0.1,
            },
        ],
        algorithm={
            "kl": {"coefficient": 0.01},
            "critic_warmup_steps": WARMUP,
            "target_kl": 1e-9,
            "old_logprobs": "engine",
            "whiten_advantages": False,
        },
        evaluation={"data": None},
        checkpoint={"every_steps": 1},
        policy={"export_every_steps": 2},
    )


def learn(settings: dict[str, Any]) -> None:
    submit = TrainerGroup.submit_logprobs

    def refuse_policy(group: TrainerGroup, *arguments: Any, **options: Any) -> Any:
        assert group.name != "policy", "the engines' log-probabilities are the policy's"
        return submit(group, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainerGroup, "submit_logprobs", refuse_policy)
        with policy_alone():
            rlhf_ray.run(settings)


def test_no_secret_is_found_anywhere(made: tuple[Path, Shown]) -> None:
    """In no file of the run's folder, wandb's and TensorBoard's among them, no output, no log, no list of processes."""
    folder, shown = made
    assert set(shown.headers) == {PLANTED["JUDGE_LOGIN"]}, "it is sent to whom it is meant for"
    assert HIDDEN in shown.output
    assert HIDDEN in (folder / "samples.jsonl").read_text(), "the samples would have shown it"
    for part in ("wandb/*/*.wandb", "tensorboard/*", "report.html", "config.yaml", "checkpoints/*/*"):
        assert list(folder.glob(part)), part
    assert leaks_in(folder, ray_logs()) == []
    assert leaks_in_text(shown.output) == []
    assert shown.command_leaks == []


def test_only_the_critic_learns_in_its_warm_up(optional: Path, workspace: Path) -> None:
    from safetensors.torch import load_file

    base = load_file(workspace / "base" / "model.safetensors")
    policies = [saved_weights(optional, step, "policy") for step in (1, 2)]
    critics = [saved_weights(optional, step, "critic") for step in (1, 2)]
    assert all(torch.equal(policies[0][name], base[name]) for name in policies[0])
    assert any(not torch.equal(policies[1][name], base[name]) for name in base)
    assert any(not torch.equal(critics[0][name], critics[1][name]) for name in critics[0])


def test_the_policy_is_exported_on_the_way(optional: Path) -> None:
    from safetensors.torch import load_file

    [export] = (optional / "exports").iterdir()
    score = training_rows(optional)[1]["objective/scores"]
    assert export.name == f"step_2_reward_{score:.3f}"
    saved, found = saved_weights(optional, 2, "policy"), load_file(export / "model.safetensors")
    assert all(torch.equal(weights, saved[name]) for name, weights in found.items())


def test_the_policy_rests_once_it_moved_past_the_target(optional: Path) -> None:
    """Four optimizer steps a batch; the first that shows a change is the last."""
    taken = [row["policy/optimizer_steps"] for row in training_rows(optional)]
    assert taken[:WARMUP] == [0.0]
    assert all(1 <= steps < 4 for steps in taken[WARMUP:]), taken


def test_the_critic_starts_from_the_reward_model(optional: Path, taste: Path) -> None:
    """As far as one optimizer step of a learning rate of 0.01 four times over lets it be seen."""
    from safetensors.torch import load_file

    start, saved = load_file(taste / "model.safetensors"), saved_weights(optional, 1, "critic")
    assert (saved["score.weight"] - start["score.weight"]).abs().max() < 0.05
    assert start["score.weight"].abs().max() > 0.2


def test_sources_weigh_together(optional: Path) -> None:
    for row in training_rows(optional):
        total = sum(weight * row[f"rewards/{name}/mean"] for name, weight in WEIGHTS.items())
        assert row["objective/scores"] == pytest.approx(total, abs=1e-5)
        assert row["rewards/taste/std"] > 0
    samples = [json.loads(line) for line in (optional / "samples.jsonl").read_text().splitlines()]
    assert all(set(sample["rewards"]) == set(WEIGHTS) for sample in samples)


@pytest.mark.chaos
def test_a_sync_that_did_not_arrive_whole_ends_the_run(ppo_settings: Settings, tmp_path: Path) -> None:
    """No two programs agree to so many digits."""
    settings = ppo_settings(tmp_path / "run", rollout={"sync_tolerance": 1e-12})
    with pytest.raises(SyncMismatch, match=r"version 0: rollout engine 0 .* allowed are 6.25e-14 and 1e-12"):
        run(PPOConfig.model_validate(settings))
    assert not (tmp_path / "run").exists(), "it made nothing"


@pytest.mark.chaos
def test_a_run_without_any_reward_is_no_success(ppo_settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "def taste(prompts, completions, **columns):\n    return [None] * len(prompts)\n"
    )
    rewards = [{"kind": "function", "name": "taste", "function": f"{tmp_path}/reward.py:taste", "cpus_per_worker": 0.1}]
    settings = ppo_settings(tmp_path / "run", rewards=rewards, evaluation={"data": None})
    with pytest.raises(RlhfError, match=r"step 1: none of the 32 samples has a reward.* came from: taste"):
        run(PPOConfig.model_validate(settings))
    assert not (tmp_path / "run" / "final").exists()
