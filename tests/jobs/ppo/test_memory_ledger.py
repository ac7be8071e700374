"""Bytes that each device and each machine hold at every act of whole steps, for each preset that shares GPUs.

What a role holds is what the plan counts; when it holds it is what the run tells its roles.
"""

import json
from collections import Counter
from pathlib import Path

import pytest
import ray

from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.reading.verbs import load_job
from rlhf_ray.jobs.plan.devices import device_loads, host_loads, peak
from rlhf_ray.jobs.plan.footprints import role_footprints
from rlhf_ray.jobs.plan.memory import WorkerMemory
from rlhf_ray.jobs.plan.run import GIB
from rlhf_ray.jobs.ppo.roles import role_placements
from rlhf_ray.jobs.ppo.turns import POLICY, ROLLOUT, DeviceTurns
from rlhf_ray.roles.trainer import SharedBatch
from rlhf_ray.runs.layouts import checked_layouts
from tests.jobs.plan.plan_models import CONFIGS, HALF_B, SEVEN_B, SEVENTY_B
from tests.jobs.plan.test_plan import HOST_GIB, ON_GPUS
from tests.jobs.ppo import colocated

SIZES = {"0.5b": (HALF_B, HALF_B, 24), "7b": (SEVEN_B, SEVEN_B, 80), "70b": (SEVENTY_B, SEVEN_B, 80)}
"""Of policy and judges, and of the GPU in GB."""


class TooMuch(AssertionError):
    """A device holds more than it has."""


class Ledger:
    """Bytes by role, as its workers are told to take and to leave them."""

    def __init__(self, config: PPOConfig, gpu_gib: float) -> None:
        self.gpu_bytes = gpu_gib * GIB
        found, unknown = role_footprints(config, self.gpu_bytes)
        assert not unknown
        [self.part] = checked_layouts(config)
        self.footprints = found
        names = zip(config.placements(), role_placements(config), strict=True)
        self.names = {".".join(map(str, key)): run for key, run in names}
        """Of roles in the run, by those in the plan."""
        takers = {role for role in self.part.layout.slots if self.part.layout.sharing(role)}
        self.allocated = {role: self.wanted(role) for role in found if role not in takers or role == ROLLOUT}
        self.cached: Counter[str] = Counter()
        self.pinned = {role: found[role].asleep for role in takers if role != ROLLOUT}
        self.most: Counter[tuple[str, int, int]] = Counter()

    def wanted(self, role: str) -> float:
        memory = self.footprints[role]
        return memory.state + memory.cache

    def note(self, name: str, act: str) -> None:
        """Take what a role of the run is told."""
        for role, own in self.names.items():
            if role in self.footprints and own.partition(".")[0] == name:
                self.told(role, self.footprints[role], act)
        self.check(f"{name} {act}")

    def told(self, role: str, memory: WorkerMemory, act: str) -> None:
        match act.split():
            case ["sleeps", *level]:
                self.allocated[role] = self.cached[role] = 0
                if level != ["at", "level", "2"]:
                    self.pinned[role] = memory.asleep
            case ["wakes", "its", "weights"]:
                self.allocated[role] = memory.weights
            case ["wakes", *_]:
                self.allocated[role], self.cached[role] = self.wanted(role), 0
            case ["frees", *_]:
                self.cached[role] = 0
            case ["reads"]:
                self.cache(role, memory.forward + memory.gathered)
            case ["answers"]:
                self.cache(role, memory.activations)
            case ["learns"]:
                self.cache(role, memory.activations + memory.head + memory.gathered)
            case ["sends" | "receives"]:
                self.cache(role, memory.transfer + memory.gathered)

    def cache(self, role: str, size: float) -> None:
        """torch keeps what a computation took."""
        self.cached[role] = max(self.cached[role], size)

    def check(self, event: str) -> None:
        for device, load in device_loads(self.part, self.footprints).items():
            held = sum(self.on_device(role) * count for role, count in load.items())
            self.most[device] = max(self.most[device], held)
            if device[-1] >= 0 and held > self.gpu_bytes:
                raise TooMuch(f"{event}: {held / GIB:.1f} of {self.gpu_bytes / GIB:g} GiB on {device}")

    def on_device(self, role: str) -> float:
        memory = self.footprints[role]
        held = self.allocated.get(role, 0.0) + self.cached[role]
        return memory.process + held * (1 + memory.fragmentation)


@pytest.fixture(autouse=True)
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharedBatch, "put", classmethod(lambda cls, batch: cls(batch, None)))
    monkeypatch.setattr(ray, "put", lambda value: value)


def preset(path: Path, folder: Path) -> tuple[PPOConfig, float]:
    policy, judge, gpu_gib = next(size for name, size in SIZES.items() if f"_{name}_" in path.name)
    for name, shape in (("policy", policy), ("judge", judge)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(shape))
    job = [str(path), "--model.path", str(folder / "policy"), "--prompts_per_step", "64", "--minibatches", "1"]
    for number, reward in enumerate(load_job("ppo", job, check_files=False).rewards):
        job += [f"--rewards.{number}.path", str(folder / "judge")] if reward.kind == "model" else []
    config = load_job("ppo", job, check_files=False)
    assert isinstance(config, PPOConfig)
    return config, gpu_gib


@pytest.mark.parametrize("path", ON_GPUS, ids=lambda path: path.name)
def test_every_act_of_a_run_stays_within_the_devices_and_within_the_plan(path: Path, tmp_path: Path) -> None:
    config, gpu_gib = preset(path, tmp_path)
    ledger = Ledger(config, gpu_gib)
    colocated.run(config, ledger.note, steps=2, evaluates=True)
    for device, load in device_loads(ledger.part, ledger.footprints).items():
        planned = peak(ledger.part, load, ledger.footprints).size
        assert ledger.most[device] <= planned * (1 + 1e-9)
        if any(ledger.part.layout.sharing(role) for role in load):
            assert ledger.most[device] == pytest.approx(planned), "the plan says what happens"
    planned_hosts = host_loads(ledger.part, ledger.footprints)
    assert all(sum(load.values()) <= HOST_GIB * GIB for load in planned_hosts.values())
    for role, pinned in ledger.pinned.items():
        workers = Counter((slot.group, slot.bundle) for slot in ledger.part.layout.slots[role])
        assert all(pinned * count <= planned_hosts[machine][role] for machine, count in workers.items())


def test_weights_and_cache_together_beside_the_policy_are_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they woke before; at the first sync already, for the cache has most of the GPU."""
    config, gpu_gib = preset(CONFIGS / "ppo_7b_8gpu.yaml", tmp_path)
    monkeypatch.setattr(DeviceTurns, "give_for_sync", lambda turns: turns.give(POLICY, ROLLOUT))
    with pytest.raises(TooMuch, match="policy wakes"):
        colocated.run(config, Ledger(config, gpu_gib).note)


def test_a_policy_that_keeps_what_torch_has_cached_is_counted_with_it(tmp_path: Path) -> None:
    config, gpu_gib = preset(CONFIGS / "ppo_7b_8gpu.yaml", tmp_path)
    freeing, keeping = Ledger(config, gpu_gib), Ledger(config, gpu_gib)
    for ledger, acts in ((freeing, ["learns", "frees its cache", "sends"]), (keeping, ["learns", "sends"])):
        for act in ["wakes", *acts]:
            ledger.told("policy", ledger.footprints["policy"], act)
    assert keeping.on_device("policy") - freeing.on_device("policy") > GIB
