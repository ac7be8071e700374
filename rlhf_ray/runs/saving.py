"""Checkpoints whose files the ranks write while the run goes on."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, TypeVar

import ray

from rlhf_ray.checkpoint.checkpoints import Checkpoint, Checkpoints
from rlhf_ray.checkpoint.parts import Damaged, Part
from rlhf_ray.cluster.errors import DeadlineExceeded, RoleRaised
from rlhf_ray.cluster.outcome import Caller, wait_together
from rlhf_ray.config.errors import RlhfError
from rlhf_ray.roles.trainer import TrainerGroup

LOOK_SECONDS = 1.0
"""Between two questions to ranks that still write; each is answered between a rank's other calls."""

logger = logging.getLogger(__name__)

State = TypeVar("State")


@dataclass
class _Pending:
    """A checkpoint that is being written."""

    step: int
    groups: Mapping[str, TrainerGroup]
    parts: dict[str, list[Part]]
    """Of roles that are written already."""
    state: dict[str, Any]
    asked: list[tuple[ray.ObjectRef, Caller]] = field(default_factory=list)
    next_look: float = 0.0

    def ask(self, *, wait: bool) -> None:
        """Ask all ranks for what they have written."""
        self.asked = [
            (ref, Caller(name, rank))
            for name, group in self.groups.items()
            for rank, ref in enumerate(group.submit_saved(wait=wait))
        ]

    def wait(self) -> None:
        """Wait until all ranks are done."""
        self.ask(wait=True)
        self.answers()

    def answers(self) -> bool:
        """Take the answers; tell whether all ranks are done.

        Raises:
            RoleRaised: one could not write. RoleDied: one is gone. DeadlineExceeded: one does not answer.
        """
        seconds = next(iter(self.groups.values())).actors.cluster.deadlines.call_seconds
        found = wait_together(self.asked, phase="writing a checkpoint", seconds=seconds)
        if any(parts is None for parts in found):
            self.asked = []
            return False
        self.parts |= {name: [] for name in self.groups}
        for (_, caller), parts in zip(self.asked, found, strict=True):
            self.parts[caller.role] += parts
        return True


class Saves:
    """Saves a run: training waits for copies in host memory alone, and files are written beside it, one save at a time.

    A save counts once its manifest is there, which is written when all ranks are done; until then the one before is the
    newest. An error of the writing is raised by the call that hears of it.

    Args:
        checkpoints: of the run.
        in_background: else training waits, for one role after the other.
    """

    def __init__(self, checkpoints: Checkpoints, in_background: bool = True) -> None:
        self._checkpoints, self._in_background = checkpoints, in_background
        self._pending: _Pending | None = None

    def begin(self, step: int) -> str:
        """Finish the save before, and make room for the next: the folder below which each role begins to write.

        Raises:
            CheckpointError: see `Checkpoints.begin`. RoleFailed, DeadlineExceeded: the save before failed.
        """
        self.finish()
        return self._checkpoints.begin(step)

    def copy(self, group: TrainerGroup, directory: str) -> None:
        """Let a role copy its part to host memory and begin to write it below `directory`.

        Raises:
            RoleFailed, DeadlineExceeded: it failed.
        """
        group.begin_save(directory)
        if not self._in_background:
            _Pending(0, {group.name: group}, {}, {}).wait()

    def follow(
        self,
        step: int,
        groups: Mapping[str, TrainerGroup],
        parts: Mapping[str, Sequence[Part]],
        state: dict[str, Any],
    ) -> None:
        """Commit a step once all ranks of some roles have written what they began.

        Args:
            step: of `begin`.
            groups: by role; `copy` of each below `<begin's folder>/<role>` has returned.
            parts: by role, what is written already.
            state: the driver's, as it is now.

        Raises:
            CheckpointError: it cannot be committed, where training waits.
        """
        self._pending = _Pending(step, groups, {role: list(listed) for role, listed in parts.items()}, deepcopy(state))
        if not self._in_background:
            self.finish()

    def look(self) -> None:
        """Commit the save that is being written if it is whole; waits for nothing.

        Raises:
            RoleFailed: it failed. CheckpointError: it cannot be committed.
        """
        pending = self._pending
        if pending is None:
            return
        if not pending.asked:
            if time.monotonic() < pending.next_look:
                return
            pending.ask(wait=False)
        refs = [ref for ref, _ in pending.asked]
        if refs and ray.wait(refs, num_returns=len(refs), timeout=0)[1]:
            return
        pending.next_look = time.monotonic() + LOOK_SECONDS
        self._take(pending)

    def finish(self) -> None:
        """Wait until nothing is being written.

        Raises:
            RoleFailed, DeadlineExceeded: what was written failed. CheckpointError: it cannot be committed.
        """
        if self._pending is not None:
            self._pending.ask(wait=True)
            self._take(self._pending)

    @contextmanager
    def finished(self) -> Iterator[None]:
        """Leave the block, also by an error, only when what is being written is whole, where that can be had."""
        try:
            yield
        except DeadlineExceeded:  # who is silent would be waited for once more
            raise
        except Exception:
            try:
                self.finish()
            except RlhfError as error:
                logger.warning("the checkpoint that was being written is lost: %s", error)
            raise
        self.finish()

    def _take(self, pending: _Pending) -> None:
        # Given up by an error: what failed once is not waited for again.
        self._pending = None
        if pending.answers():
            self._checkpoints.commit(pending.step, pending.parts, pending.state)
        else:
            self._pending = pending


def restore_newest(checkpoints: Checkpoints, restore: Callable[[Checkpoint | None], State]) -> State:
    """Go on from the newest checkpoint whose parts are what was written, as those find who read them.

    Args:
        checkpoints: of the run.
        restore: loads one, whatever was loaded before; None: begins at the start.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    while True:
        checkpoint = checkpoints.latest()
        try:
            return restore(checkpoint)
        except (Damaged, RoleRaised) as error:
            cause = error.__cause__ if isinstance(error, RoleRaised) else error
            if checkpoint is None or not isinstance(cause, Damaged):
                raise
            checkpoints.skip(checkpoint.step, str(cause))
