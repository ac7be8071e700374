"""Deaths within a run: at once, one after the other, again and again, before the first step and after the last."""

from collections.abc import Iterator

import pytest

from rlhf_ray.cluster.errors import RoleDied, RoleLost
from rlhf_ray.runs.recovery import RESTARTS, run_through_deaths


def death(role: str) -> RoleDied:
    return RoleDied(f"{role} rank 0 died in train", role, 0, "train")


class Run:
    """Acts of a run that die as they are told, a name for each act: "" where nobody dies."""

    def __init__(self, *dies: str, steps: tuple[int, ...] = ()) -> None:
        self._dies: Iterator[str] = iter(dies)
        self._steps = iter(steps)
        self.acts: list[str] = []

    def act(self, name: str) -> str:
        self.acts.append(name)
        if role := next(self._dies, ""):
            raise death(role)
        return name

    def made(self) -> int:
        return next(self._steps, 0)

    def run(self) -> str:
        def begin() -> str:
            return self.act("begin")

        def recover(_: str | None, dead: RoleDied) -> str:
            return self.act(f"recover {dead.role}")

        def make_steps(_: str) -> str:
            return self.act("steps")

        return run_through_deaths(begin, make_steps, recover, ["policy", "critic"], self.made)


def test_a_death_while_the_checkpoint_is_read_is_one_too() -> None:
    run = Run("policy")
    assert run.run() == "steps"
    assert run.acts == ["begin", "recover policy", "steps"]


def test_two_deaths_at_once() -> None:
    """The second shows while the first is mended."""
    run = Run("", "policy", "critic", "policy")
    assert run.run() == "steps"
    assert run.acts == ["begin", "steps", "recover policy", "recover critic", "recover policy", "steps"]


def test_the_same_role_may_die_three_times_in_a_step_and_not_four_times() -> None:
    dies = ("", *["policy", ""] * RESTARTS)
    assert Run(*dies).run() == "steps"
    with pytest.raises(RoleLost, match=r"policy rank 0 died in train; it is the 4th time without a step more"):
        Run(*dies, "policy").run()


def test_steps_in_between_forgive() -> None:
    dies = ("", *["policy", ""] * 9)
    assert Run(*dies, steps=tuple(range(100))).run() == "steps"


def test_of_another_role_and_of_one_that_died_too_often_it_ends() -> None:
    with pytest.raises(RoleDied, match="rewards"):
        Run("", "rewards").run()
