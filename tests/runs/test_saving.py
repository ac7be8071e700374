"""Saves that are written while a run goes on: when they count, who waits for them, and whose error ends the run."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf_ray.checkpoint import background
from rlhf_ray.checkpoint.background import BackgroundWrite
from rlhf_ray.checkpoint.checkpoints import Checkpoint, Checkpoints
from rlhf_ray.checkpoint.parts import Damaged, Part
from rlhf_ray.checkpoint.storage import CheckpointError, join
from rlhf_ray.cluster.errors import DeadlineExceeded, RoleRaised
from rlhf_ray.config.placement import DeadlineConfig
from rlhf_ray.runs import saving
from rlhf_ray.runs.saving import Saves, restore_newest
from tests.roles.test_weight_sync import ended, first_failure


class Ranks:
    """A role of two ranks, whose files are written once they may be."""

    def __init__(self) -> None:
        self.may_write, self.asked = Event(), 0
        self.actors = SimpleNamespace(cluster=SimpleNamespace(deadlines=DeadlineConfig()))
        self._writes = [BackgroundWrite(), BackgroundWrite()]
        self._calls = ThreadPoolExecutor(2)

    def begin_save(self, directory: str) -> None:
        for rank, write in enumerate(self._writes):
            write.begin(directory, f"rank_{rank}.safetensors", {"weight": torch.full((3,), float(rank))})

    def submit_saved(self, *, wait: bool) -> list[Any]:
        self.asked += 1
        return [self._calls.submit(self._saved, write, wait) for write in self._writes]

    @staticmethod
    def _saved(write: BackgroundWrite, wait: bool) -> list[Part] | None:
        part = write.part(wait=wait)
        return None if part is None else [part]


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    found, write = Ranks(), background.write_tensors

    def allowed(*arguments: Any) -> Part:
        assert found.may_write.wait(60)
        return write(*arguments)

    monkeypatch.setattr(background, "write_tensors", allowed)
    monkeypatch.setattr(saving, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(saving, "wait_together", first_failure)
    monkeypatch.setattr(saving.ray, "wait", lambda refs, **named: ended(refs, **{**named, "timeout": 5}))
    return found


def begin(saves: Saves, ranks: Any, step: int) -> None:
    directory = saves.begin(step)
    ranks.begin_save(join(directory, "policy"))
    saves.follow(step, {"policy": ranks}, {}, {"step": step})


def newest(checkpoints: Checkpoints) -> int:
    found = checkpoints.latest()
    return 0 if found is None else found.step


def test_a_save_counts_once_all_files_are_written(ranks: Ranks, tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    saves = Saves(checkpoints)
    begin(saves, ranks, 1)
    for _ in range(2):
        saves.look()
        assert newest(checkpoints) == 0, "the run goes on, and a crash now leaves what was there before"
    ranks.may_write.set()
    while newest(checkpoints) == 0:
        saves.look()
    assert [part.path for part in checkpoints.latest().manifest.parts["policy"]] == [  # type: ignore[union-attr]
        "rank_0.safetensors",
        "rank_1.safetensors",
    ]
    asked = ranks.asked
    saves.look(), saves.finish()
    assert ranks.asked == asked, "what is committed is asked for no more"


@pytest.mark.parametrize("wait", [lambda saves: saves.finish(), lambda saves: saves.begin(2)], ids=["end", "next save"])
def test_who_needs_the_save_waits_for_it(ranks: Ranks, tmp_path: Path, wait: Callable[[Saves], Any]) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    saves = Saves(checkpoints)
    begin(saves, ranks, 1)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(wait, saves)
        with pytest.raises(TimeoutError):
            waiting.result(0.2)
        ranks.may_write.set()
        waiting.result(60)
    assert newest(checkpoints) == 1


def test_an_error_of_the_writing_ends_the_run_and_leaves_the_save_before(
    ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    saves = Saves(checkpoints)
    ranks.may_write.set()
    begin(saves, ranks, 1)
    saves.finish()

    def full(*_: Any) -> Part:
        raise CheckpointError("the storage is full")

    monkeypatch.setattr(background, "write_tensors", full)
    begin(saves, ranks, 2)
    with pytest.raises(CheckpointError, match="the storage is full"), saves.finished():
        pass
    assert newest(checkpoints) == 1
    saves.finish()  # which failed once and is waited for no more


@pytest.mark.parametrize("kind", [ValueError, DeadlineExceeded])
def test_a_run_that_fails_keeps_the_save_that_it_began_unless_a_role_is_silent(
    ranks: Ranks, tmp_path: Path, kind: type[Exception]
) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    saves = Saves(checkpoints)
    begin(saves, ranks, 1)
    ranks.may_write.set()
    arguments = ("policy rank 0 is silent", "policy", 0, "train") if kind is DeadlineExceeded else ("wrong",)
    with pytest.raises(kind), saves.finished():
        raise kind(*arguments)
    assert newest(checkpoints) == (0 if kind is DeadlineExceeded else 1)


def test_state_is_that_of_the_moment_of_the_save(ranks: Ranks, tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    saves = Saves(checkpoints)
    state: dict[str, Any] = {"ids": [1]}
    ranks.begin_save(join(saves.begin(1), "policy"))
    saves.follow(1, {"policy": ranks}, {}, state)  # type: ignore[dict-item]
    state["ids"].append(2)
    ranks.may_write.set()
    saves.finish()
    assert checkpoints.latest().state == {"ids": [1]}  # type: ignore[union-attr]


def test_only_damage_sends_a_resume_to_an_older_checkpoint(ranks: Ranks, tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=2)
    saves = Saves(checkpoints)
    ranks.may_write.set()
    for step in (1, 2):
        begin(saves, ranks, step)
    saves.finish()

    def failing(cause: Exception) -> Callable[[Checkpoint | None], int]:
        def restore(checkpoint: Checkpoint | None) -> int:
            assert checkpoint is not None
            if checkpoint.step == 2:
                raise RoleRaised(str(cause), "policy", 1, "load") from cause
            return checkpoint.step

        return restore

    with pytest.raises(RoleRaised, match="another model"):
        restore_newest(checkpoints, failing(CheckpointError("it is of another model")))
    assert restore_newest(checkpoints, failing(Damaged("does not have the hash"))) == 1
