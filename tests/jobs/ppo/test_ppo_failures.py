"""Processes of a PPO run that die: engines come back with the newest weights, models with the newest checkpoint."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.actor import ActorHandle

from rlhf_ray.cluster.errors import RoleDied, RoleRaised
from rlhf_ray.cluster.group import ActorGroup
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.data.records import Sample
from rlhf_ray.experience.experience import Experience
from rlhf_ray.jobs.ppo import run as ppo
from rlhf_ray.jobs.ppo import start as ppo_start
from rlhf_ray.jobs.ppo.roles import PPORoles
from rlhf_ray.jobs.ppo.step import PPODriver
from rlhf_ray.roles.policy_sync import WeightSync
from rlhf_ray.rollout.interfaces import Groups
from rlhf_ray.rollout.remote import RemoteEngine
from tests.jobs.ppo_runs import metrics_of, saved_tensors, training_rows, untimed
from tests.leftovers import nothing_left

pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(1200)]

STEPS, SAVED_EVERY = 5, 2
ENGINE_DIES, POLICY_DIES = 1, 3
"""Steps, counted from 0."""
SYNC_BREAKS = 2
"""Version of the weights that an engine dies with halfway."""
REDONE = POLICY_DIES - POLICY_DIES % SAVED_EVERY
"""The first step after the checkpoint that the run goes back to."""


@dataclass
class Story:
    """What happened in the run."""

    trained: dict[int, list[Sample]] = field(default_factory=dict)
    """By step; of a step that was done twice, the second time."""
    before: list[list[Sample]] = field(default_factory=list)
    """Of the steps that were done before the policy died."""
    serving: dict[int, list[int]] = field(default_factory=dict)
    asked: dict[int, Counter[int]] = field(default_factory=dict)
    """Requests to each engine, by step."""
    deaths: list[RoleDied] = field(default_factory=list)
    """Of trained models."""
    broken_syncs: list[Exception] = field(default_factory=list)
    sync_seconds: float = 0.0
    """From the death of an engine in a sync until the driver knew of it."""
    folder: Path = Path()
    staleness: int = 0


def process_of(actor: ActorHandle) -> int:
    pid: int = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=60)
    return pid


@pytest.fixture(scope="module", params=[0, 1], ids=["in turns", "writing ahead"])
def story(
    request: pytest.FixtureRequest,
    ppo_settings: Callable[..., dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Story:
    """A run with two engines and two ranks of the policy, of which one each is killed, and an engine in a sync."""
    story = Story(folder=tmp_path_factory.mktemp("failures") / "run", staleness=request.param)
    settings = ppo_settings(
        story.folder,
        steps=STEPS,
        rollout={"workers": 2, "deterministic": False},
        policy={"workers": 2, "cpus_per_worker": 0.2},
        algorithm={"kl": {"coefficient": 0.0}, "max_staleness": story.staleness},
        evaluation={"data": None},
        checkpoint={"every_steps": SAVED_EVERY},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "PPODriver", killing_driver(story))
        kill_an_engine_in_a_sync(story, patch)
        count_requests(story, patch)
        watch_restarts(story, patch)
        ppo.run(PPOConfig.model_validate(settings))
    return story


def killing_driver(story: Story) -> type[PPODriver]:
    """A driver that kills engine 0 with requests in hand, and rank 1 of the policy before an optimizer step."""

    class Killing(PPODriver):
        def rollout(self, step: int, prompts: int) -> Groups:
            story.asked[step] = Counter()
            if step != ENGINE_DIES:
                return super().rollout(step, prompts)
            # It takes its requests, and answers none of them.
            pid = process_of(self.roles.engines.handles[0])
            os.kill(pid, signal.SIGSTOP)
            groups = super().rollout(step, prompts)
            os.kill(pid, signal.SIGKILL)
            return groups

        def update(self, step: int, experience: Experience) -> Mapping[str, float]:
            if step == POLICY_DIES and not story.deaths:
                os.kill(process_of(self.roles.policy.actors.handles[1]), signal.SIGKILL)
            metrics = super().update(step, experience)
            story.trained[step] = list(experience.samples)
            story.serving[step] = self.roles.pool.serving
            if not story.deaths:
                story.before.append(story.trained[step])
            return metrics

    return Killing


def kill_an_engine_in_a_sync(story: Story, patch: pytest.MonkeyPatch) -> None:
    """Stop engine 1 before a transfer, and kill it once the others have begun."""
    transfer, wait, replace_engines = WeightSync._transfer, WeightSync._wait, PPORoles.replace_broken_engines
    victims: list[int] = []

    def transfer_to_a_stopped_engine(sync: WeightSync, version: int) -> Any:
        if version == SYNC_BREAKS and not story.broken_syncs:
            victims.append(process_of(sync._engines.handles[1]))
            os.kill(victims[0], signal.SIGSTOP)
        return transfer(sync, version)

    def wait_and_kill(sync: WeightSync, *arguments: Any) -> Any:
        if victims and not story.broken_syncs:
            os.kill(victims[0], signal.SIGKILL)
            story.sync_seconds = -time.monotonic()
        return wait(sync, *arguments)

    def replace_broken_engines(roles: PPORoles, error: Any) -> None:
        story.sync_seconds += time.monotonic()
        story.broken_syncs.append(error)
        replace_engines(roles, error)

    patch.setattr(WeightSync, "_transfer", transfer_to_a_stopped_engine)
    patch.setattr(WeightSync, "_wait", wait_and_kill)
    patch.setattr(PPORoles, "replace_broken_engines", replace_broken_engines)


def count_requests(story: Story, patch: pytest.MonkeyPatch) -> None:
    """Count what each engine is asked in the newest step; answers that are only shown come before the first."""
    ask = RemoteEngine.generate

    def generate(engine: RemoteEngine, requests: list[Any], *, queued: bool) -> Any:
        if story.asked:
            story.asked[max(story.asked)][engine._rank] += len(requests)
        return ask(engine, requests, queued=queued)

    patch.setattr(RemoteEngine, "generate", generate)


def watch_restarts(story: Story, patch: pytest.MonkeyPatch) -> None:
    """Note the deaths of trained models, and forget the steps that are done again."""
    restart = PPORoles.restart_trainer

    def restart_trainer(roles: PPORoles, error: RoleDied, *, from_start: bool) -> None:
        story.deaths.append(error)
        assert not from_start
        for step in [step for step in story.asked if step >= REDONE]:
            del story.asked[step]
        restart(roles, error, from_start=from_start)

    patch.setattr(PPORoles, "restart_trainer", restart_trainer)


def test_every_prompt_is_trained_exactly_once(story: Story) -> None:
    assert list(story.trained) == list(range(STEPS))
    for samples in story.trained.values():
        assert Counter((s.prompt_id, s.index) for s in samples).most_common(1)[0][1] == 1
        assert Counter(Counter(s.prompt_id for s in samples).values()) == {4: 8}
    prompts = [prompt for samples in story.trained.values() for prompt in {s.prompt_id for s in samples}]
    assert len(set(prompts)) == 8 * STEPS, "a pass over the data repeats nothing"


def test_all_engines_write_and_hold_the_newest_weights(story: Story) -> None:
    for step, samples in story.trained.items():
        versions = {span.version for sample in samples for span in sample.weight_versions}
        assert versions <= set(range(max(0, step - story.staleness), step + 1))
        assert story.serving[step] == [0, 1], "a killed engine is back before its step is trained"
        if not story.staleness:  # else requests of two steps are sent at once
            assert all(story.asked[step][engine] >= 3 for engine in (0, 1)), story.asked
    for row in training_rows(story.folder):
        assert row["sync/logprob_diff"] <= 1e-4
        if not story.staleness:  # else trainer and engine have different weights
            assert row["sampling/sampling_logp_difference/max"] <= 1e-4


def test_only_what_the_killed_engine_had_is_sent_again(story: Story) -> None:
    again = [{sample.prompt_id for sample in samples if sample.attempt} for samples in story.before]
    if story.staleness:  # the engine had requests of two steps, and the one that died in the sync had some too
        assert again[0] | again[ENGINE_DIES]
        return
    assert again[0] == again[2] == set()
    assert 0 < len(again[ENGINE_DIES]) < 8


def test_an_engine_that_dies_in_a_sync_is_named_and_holds_nobody_up(story: Story) -> None:
    [error] = story.broken_syncs
    assert isinstance(error, RoleDied)
    assert (error.role, error.rank) == ("rollout", 1)
    assert error.phase == f"transfer of weights of version {SYNC_BREAKS}"
    assert story.sync_seconds < 100, "well before the deadline of a transfer, which the other engine waits for"


def test_a_dead_rank_of_the_policy_is_named_and_the_run_goes_on_from_its_checkpoint(story: Story) -> None:
    [death] = story.deaths
    assert (death.role, death.rank, death.phase) == ("policy", 1, "optimizer step")
    assert str(death).startswith("policy rank 1 died in optimizer step: ")
    assert len(story.before) == POLICY_DIES
    redone = [{sample.prompt_id for sample in samples} for samples in (story.before[REDONE], story.trained[REDONE])]
    assert redone[0] == redone[1]
    assert [row["step"] for row in training_rows(story.folder)] == list(range(1, STEPS + 1))
    assert (story.folder / "final" / "config.json").is_file()


def test_an_engine_that_refuses_weights_ends_the_run_and_the_policy_is_not_killed_for_it(
    ppo_settings: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """The policy waits in a broadcast that nobody takes, until the engine's end of the connection closes."""
    ended: list[str] = []

    class Refused(WeightSync):
        def prepare(self) -> None:
            super().prepare()
            manifest = ray.get(self._manifest)
            self._manifest = ray.put(replace(manifest, tensors=manifest.tensors[1:]))

    def killed(group: ActorGroup, rank: int) -> None:
        ended.append(f"{group.name} {rank}")
        kill(group, rank)

    kill = ActorGroup._kill
    settings = ppo_settings(tmp_path / "run", evaluation={"data": None})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo_start, "WeightSync", Refused)
        patch.setattr(ActorGroup, "_kill", killed)
        refused = pytest.raises(RoleRaised, match="the announced tensors are not those of transfer group")
        with nothing_left(), refused:
            ppo.run(PPOConfig.model_validate(settings))
    assert ended[0] == "rollout 0"
    assert ended.count("policy 0") == 1, "only when the run leaves the cluster"


@pytest.mark.parametrize(
    "dies",
    [
        pytest.param(2, id="before the first checkpoint", marks=pytest.mark.slow),
        pytest.param(5, id="after a checkpoint"),
    ],
)
def test_a_critic_and_the_only_engine_that_died_change_nothing(
    dies: int, learned: Path, ppo_settings: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """In deterministic mode, bit for bit."""
    killed: list[int] = []

    def kill(actor: ActorHandle) -> None:
        killed.append(process_of(actor))
        os.kill(killed[-1], signal.SIGKILL)

    class Killing(PPODriver):
        def rollout(self, step: int, prompts: int) -> Groups:
            groups = super().rollout(step, prompts)
            if step == dies + 1 and len(killed) == 1:
                kill(self.roles.engines.handles[0])
            return groups

        def update(self, step: int, experience: Experience) -> Mapping[str, float]:
            if step == dies and not killed:
                kill(self.roles.critics["critic"].actors.handles[0])
            return super().update(step, experience)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "PPODriver", Killing)
        ppo.run(PPOConfig.model_validate(ppo_settings(tmp_path / "run")))
    assert len(killed) == 2
    assert [untimed(row) for row in metrics_of(tmp_path / "run")] == [untimed(row) for row in metrics_of(learned)]
    for role in ("policy", "critic"):
        expected = saved_tensors(learned, 10, role)
        found = saved_tensors(tmp_path / "run", 10, role)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
