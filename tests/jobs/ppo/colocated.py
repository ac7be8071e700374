"""A whole PPO run on roles that do nothing but note what they are told, as if their devices were shared."""

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from rlhf_ray.cluster.placement import lay_out
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.placement import DeadlineConfig
from rlhf_ray.data.cursor import Cursor
from rlhf_ray.data.records import PromptRecord, Sample
from rlhf_ray.experience.costs import constraint_of
from rlhf_ray.jobs.ppo.roles import PPORoles, critic_role, role_placements
from rlhf_ray.jobs.ppo.start import _turns
from rlhf_ray.jobs.ppo.state import PPOState, kl_controller
from rlhf_ray.jobs.ppo.step import PPODriver
from rlhf_ray.jobs.ppo.turns import ROLLOUT, DeviceTurns
from rlhf_ray.models.logit_size import LogitSize
from rlhf_ray.roles.policy_sync import PolicySync
from rlhf_ray.roles.trainer import SharedBatch
from rlhf_ray.schedule import Loop, Schedule
from rlhf_ray.transfer.verification import Probe

TOKENS = 3
"""Of each response."""

Note = Callable[[str, str], None]
"""Takes a role and what it was told."""


class Done:
    """Work that has ended."""

    def __init__(self, found: Any) -> None:
        self._found = found

    def result(self) -> Any:
        return self._found


class Trainer:
    """A model, and its actors in one."""

    def __init__(self, name: str, note: Note) -> None:
        self.name, self.actors, self._note = name, self, note
        self.cluster = SimpleNamespace(deadlines=DeadlineConfig())

    def wake(self) -> None:
        self._note(self.name, "wakes")

    def sleep(self) -> None:
        self._note(self.name, "sleeps")

    def free_cache(self) -> None:
        self._note(self.name, "frees its cache")

    def submit_logprobs(self, shared: SharedBatch, adapter: bool = True) -> Done:
        self._note(self.name, "reads")
        return Done({"logprobs": -np.ones(int(shared.batch.response_lengths.sum()), np.float32)})

    def submit_values(self, shared: SharedBatch) -> Done:
        self._note(self.name, "reads")
        return Done(np.zeros(int(shared.batch.response_lengths.sum()), np.float32))

    def submit_train_step(self, *_: Any, **__: Any) -> Done:
        self._note(self.name, "learns")
        return Done({"loss": 0.0, "policy/approxkl_avg": 0.0})

    def begin_save(self, directory: str) -> None:
        self._note(self.name, "saves")

    def submit_saved(self, *, wait: bool) -> list[Any]:
        return []

    def average_weights(self, decay: float) -> None:
        self._note(self.name, "averages")

    def submit(self, method: str, *_: Any) -> list[str]:
        self._note(self.name, {"probe": "probes", "send_weights": "sends"}[method])
        return [method]


class Rewards:
    """All reward sources: the third token of an answer is its score."""

    def __init__(self, config: PPOConfig, note: Note) -> None:
        self._note = note
        self.names = [reward.name for reward in config.rewards]
        self.weights = {reward.name: 1.0 for reward in config.rewards if reward.measures == "reward"}
        self.costs = {reward.name: 1.0 for reward in config.rewards if reward.measures == "cost"}

    def wake(self) -> None:
        self._note("rewards", "wakes")

    def sleep(self) -> None:
        self._note("rewards", "sleeps")

    def submit(self, samples: Sequence[Sample]) -> Done:
        self._note("rewards", "reads")
        return Done({name: [float(sample.response_ids[2]) for sample in samples] for name in self.names})

    def combine(self, scores: Any) -> list[float]:
        return list(scores[next(iter(self.weights))])

    def combine_costs(self, scores: Any) -> list[float]:
        return list(scores[next(iter(self.costs))])


class Engines:
    """The rollout's actors, and the pool before them."""

    name = ROLLOUT

    def __init__(self, config: PPOConfig, note: Note) -> None:
        self._note = note
        self.cluster: Any = SimpleNamespace(
            layout=lay_out(config.groups, role_placements(config)),
        )
        self.transfer_seconds = 60.0
        self.serving = [*range(config.rollout.workers)]

    def turn(self, method: str, how: Any) -> None:
        act = f"sleeps at level {how}" if method == "sleep" else f"wakes its {' and '.join(how)}"
        self._note(ROLLOUT, act)

    def submit_one(self, engine: int, method: str, *_: Any) -> str:
        self._note(ROLLOUT, {"score": "probes", "receive": "receives"}[method])
        return method

    def restore_lost(self) -> None:
        pass

    def take_idle_seconds(self) -> float:
        return 0.0

    def run(self, batch: Any) -> "Groups":
        self._note(ROLLOUT, "answers")
        return Groups(batch)


class Groups:
    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __iter__(self) -> Iterator[list[Sample]]:
        for record in self._batch.prompts:
            count = self._batch.samples_per_prompt
            yield [answer(record, index) for index in range(count)]

    def poll(self) -> None:
        pass

    def close(self) -> None:
        pass


def answer(record: PromptRecord, index: int) -> Sample:
    ids = np.array([1, 2, index % 2], np.int32)
    logprobs, written = -np.ones(TOKENS, np.float32), np.ones(TOKENS, bool)
    prompt, group = (record.prompt, record.prompt_ids), record.prompt_id
    return Sample(group, group, index, 0, 0, prompt[0], "r", prompt[1], ids, written, logprobs, [], "stop")


class Sync(PolicySync):
    """A transfer of all weights that both sides say they made."""

    def _give(self, version: int, members: list[int]) -> tuple[dict[str, float], float]:
        self._policy.submit("send_weights")
        for engine in members:
            self._engines.submit_one(engine, "receive")
        return dict.fromkeys(("gather", "send", "load"), 0.0), 0.0

    def _wait(self, policy: Any, members: Any, engines: Any, phase: str) -> tuple[list[Any], list[Any]]:
        logprobs = [np.zeros(4, np.float32)]
        return [Probe(logprobs, LogitSize()) for _ in policy], [logprobs for _ in engines]


class Tracker:
    run_id = None

    def __getattr__(self, method: str) -> Any:
        return lambda *_, **__: None


def roles_of(config: PPOConfig, note: Note) -> PPORoles:
    """The roles of a run, all awake."""
    policy: Any = Trainer("policy", note)
    critics: Any = {critic_role(name): Trainer(critic_role(name), note) for name in config.critics}
    reference: Any = Trainer("reference", note) if ("reference",) in config.placements() else None
    engines: Any = Engines(config, note)
    rewards: Any = Rewards(config, note)
    trainers = {role.name: role for role in (policy, *critics.values(), reference) if role is not None}
    asleep = {name for name in (*trainers, "rewards") if shared_with(engines, name)}
    turns = _turns(config, trainers, engines, rewards, asleep)
    hand_over = None if turns.engines is None else lambda: turns.give(ROLLOUT)
    sync = Sync(policy, engines, dtype="bfloat16", tolerance=None, probes=list, hand_over=hand_over)
    off = config.adapter_off_is_reference
    return PPORoles(
        policy, critics, reference, rewards, engines, engines, engines, sync, _never, None, turns, None, off
    )


def _never(number: int) -> Any:
    raise AssertionError(f"engine {number} lives")


def shared_with(engines: Any, name: str) -> bool:
    layout = engines.cluster.layout
    return any(layout.sharing(role) for role in layout.slots if role.partition(".")[0] == name)


def run(config: PPOConfig, note: Note, steps: int = 2, evaluates: bool = False) -> DeviceTurns:
    """Make some steps, save after the last, and evaluate before the first and after each if asked to."""
    roles = roles_of(config, note)
    prompts = [PromptRecord(str(n), "p", np.arange(2, dtype=np.int32)) for n in range(config.prompts_per_step)]
    state = PPOState(
        Cursor([one.prompt_id for one in prompts], 0),
        kl_controller(config.algorithm.kl),
        None,
        constraint_of(config.algorithm),
    )
    checkpoints: Any = SimpleNamespace(begin=lambda _: "c", commit=lambda *_: None)
    records = {one.prompt_id: one for one in prompts}
    held_out = prompts[:2] if evaluates else []
    tracker: Any = Tracker()
    driver = PPODriver(config, roles, records, held_out, tracker, checkpoints, state)
    schedule = Schedule(steps, config.prompts_per_step, evaluate_every=1 if evaluates else None)
    assert Loop(driver, schedule).run() == steps
    return roles.turns
