"""Environments of a user's class: one process an episode, deadlines, and nothing left behind."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_ray.config.episodes import PythonEnvironment, ToolsEnvironment
from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.records import Message, PromptRecord
from rlhf_ray.rollout.environment import EnvironmentFailed
from rlhf_ray.rollout.forked_environments import ForkedEnvironments, ProcessEnvironment

WORLD = '''
import os
import random
import subprocess
import time

import numpy
from neighbour import BONUS
from rlhf_ray import Reply


class World:
    def reset(self, prompt, seed, secret):
        self.secret, self.turns = secret, 0
        if secret == "opens":
            return "the board"

    def step(self, turn):
        self.turns += 1
        said = turn["content"]
        if said == "hang":
            time.sleep(600)
        if said == "die":
            os._exit(3)
        if said == "raise":
            raise KeyError("no such thing")
        if said == "fork" and os.fork() == 0:
            return Reply("I am the child")
        if said == "start":
            return Reply(str(subprocess.Popen(["sleep", "600"]).pid))
        if said == "draw":
            return Reply(f"{random.random()} {numpy.random.rand()}")
        if said == "nothing":
            return None
        if said == "infinite":
            return Reply("", reward=float("nan"))
        if said == "words":
            return Reply([{"role": "user", "content": 3}])
        if said == "number":
            return Reply(3)
        if said == "object":
            return Reply([{"role": "user", "content": "", "more": {1, 2}}])
        return Reply(f"{self.secret}, turn {self.turns}, {os.getpid()}", numpy.float32(BONUS), self.turns == 2)


class Asynchronous:
    async def reset(self, seed, **columns):
        return [{"role": "system", "content": f"{seed}, {sorted(columns)}"}]

    async def step(self, turn):
        return Reply([{"role": "tool", "content": "\\ud83d"}], ended=True)

    async def close(self):
        with open(os.environ["CLOSED"], "w") as file:
            file.write("closed")


def multiply(a: int, b: int) -> int:
    """Multiply two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a * b


def hang(a: int) -> int:
    """Do not come back.

    Args:
        a: Anything.
    """
    time.sleep(600)


def unexplained(a):
    return a


class WithTools:
    tools = [multiply, {"type": "function", "function": {"name": "other"}}]

    def reset(self, prompt, seed):
        pass

    def step(self, turn):
        return Reply(str(turn["tool_calls"]))


class WithoutStep:
    def reset(self, prompt, seed):
        pass


class NeedsMore:
    def __init__(self, size):
        pass

    def reset(self, prompt, seed):
        pass

    def step(self, turn):
        pass


def function():
    raise ValueError("not today")
'''

Use = Callable[[ProcessEnvironment], Coroutine[Any, Any, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds")
    (folder / "world.py").write_text(WORLD)
    (folder / "neighbour.py").write_text("BONUS = 0.5")
    return folder


@pytest.fixture(scope="module")
def worlds(folder: Path) -> Iterator[ForkedEnvironments]:
    path = f"{folder}/world.py:World"
    with ForkedEnvironments(PythonEnvironment(kind="python", path=path, seconds=20)) as running:
        yield running


def record(secret: object = 7) -> PromptRecord:
    prompt: list[Message] = [{"role": "user", "content": "begin"}]
    return PromptRecord("0", prompt, np.zeros(1, np.int32), {"secret": secret, "other": object()})


def said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def use(worlds: ForkedEnvironments, act: Use) -> Any:
    async def opened() -> Any:
        async with worlds.open() as environment:
            return await act(environment)

    return asyncio.run(opened())


def step(text: str, secret: object = 7) -> Use:
    async def act(environment: ProcessEnvironment) -> Any:
        await environment.reset(record(secret), 1)
        return await environment.step(said(text))

    return act


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(pid)


def test_each_episode_has_a_process_of_its_own_that_ends_with_it(worlds: ForkedEnvironments) -> None:
    pids: list[int] = []

    async def act(environment: ProcessEnvironment) -> None:
        assert await environment.reset(record(), 1) == []
        for turn in (1, 2):
            answer = await environment.step(said("more"))
            [message] = answer.messages
            words = message["content"].split(", ")
            assert (message["role"], words[:2]) == ("user", ["7", f"turn {turn}"])
            assert (answer.reward, answer.ended) == (0.5, turn == 2)
            pids.append(int(words[2]))
            assert is_alive(pids[-1])

    for _ in range(2):
        use(worlds, act)
    assert pids[0] == pids[1] != pids[2]
    assert os.getpid() not in pids
    for pid in pids:
        wait_until_gone(pid)


def test_reset_may_open_the_game(worlds: ForkedEnvironments) -> None:
    async def act(environment: ProcessEnvironment) -> Any:
        return await environment.reset(record("opens"), 1)

    assert use(worlds, act) == [{"role": "user", "content": "the board"}]


def test_chance_comes_from_the_seed(worlds: ForkedEnvironments) -> None:
    async def draw(environment: ProcessEnvironment, seed: int) -> str:
        await environment.reset(record(), seed)
        return (await environment.step(said("draw"))).messages[0]["content"]

    drawn = [use(worlds, lambda one, seed=seed: draw(one, seed)) for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.parametrize(
    ("turn", "kind", "message"),
    [
        ("raise", "raised", r"step: .*world.py:\d+: KeyError: 'no such thing'"),
        ("die", "died", "world.py:World: its process ended in step"),
        ("nothing", "malformed answer", "step returned NoneType; return rlhf_ray.Reply"),
        ("infinite", "malformed answer", "step returned the reward nan; give a finite number"),
        ("words", "malformed answer", "for a message; it has `role` and `content`, which are texts"),
        ("number", "malformed answer", "step returned int for messages; return a text, or a list of messages"),
        ("object", "malformed answer", "step returned messages that JSON cannot hold"),
    ],
)
def test_what_fails_is_told_and_the_next_episode_has_a_new_process(
    worlds: ForkedEnvironments, turn: str, kind: str, message: str
) -> None:
    with pytest.raises(EnvironmentFailed, match=message) as raised:
        use(worlds, step(turn))
    assert raised.value.kind == kind
    assert use(worlds, step("more")).reward == 0.5


def test_columns_that_are_missing_are_told(worlds: ForkedEnvironments) -> None:
    async def act(environment: ProcessEnvironment) -> None:
        await environment.reset(PromptRecord("0", [], np.zeros(1, np.int32), {}), 1)

    with pytest.raises(EnvironmentFailed, match=r"reset: .*missing 1 required positional argument: 'secret'"):
        use(worlds, act)


def test_one_that_hangs_is_ended_at_its_deadline(folder: Path) -> None:
    path = f"{folder}/world.py:World"
    with ForkedEnvironments(PythonEnvironment(kind="python", path=path, seconds=1)) as worlds:
        with pytest.raises(
            EnvironmentFailed, match=r"step did not return within 1 s \(rollout.environment.seconds\)"
        ) as e:
            use(worlds, step("hang"))
        assert e.value.kind == "hung"


def test_what_an_environment_starts_ends_with_it(worlds: ForkedEnvironments) -> None:
    pid = int(use(worlds, step("start")).messages[0]["content"])
    wait_until_gone(pid)


def test_a_process_that_forked_off_and_came_back_does_not_answer(worlds: ForkedEnvironments) -> None:
    assert use(worlds, step("fork")).messages[0]["content"].startswith("7, turn 1")


def test_environments_may_be_asynchronous_and_are_closed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOSED", str(tmp_path / "closed"))

    async def act(environment: ProcessEnvironment) -> Any:
        opening = await environment.reset(record(), 5)
        return opening, await environment.step(said(""))

    path = f"{folder}/world.py:Asynchronous"
    with ForkedEnvironments(PythonEnvironment(kind="python", path=path)) as worlds:
        opening, answer = use(worlds, act)
    assert opening == [{"role": "system", "content": "5, ['other', 'prompt', 'secret']"}]
    assert answer.messages == [{"role": "tool", "content": "\ud83d"}]
    assert answer.ended
    assert (tmp_path / "closed").read_text() == "closed"


def test_where_the_process_that_forks_is_lost_it_starts_again(folder: Path) -> None:
    with ForkedEnvironments(PythonEnvironment(kind="python", path=f"{folder}/world.py:World")) as worlds:
        pids = []

        async def act(environment: ProcessEnvironment) -> None:
            await environment.reset(record(), 1)
            pids.append(int((await environment.step(said(""))).messages[0]["content"].split(", ")[2]))
            os.kill(worlds._process.pid, 9)
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:  # until its children notice
                await environment.step(said(""))
                await asyncio.sleep(0.05)

        with pytest.raises(EnvironmentFailed, match="its process ended in step"):
            use(worlds, act)
        wait_until_gone(pids[0])
        assert use(worlds, step("more")).reward == 0.5


def test_hundreds_play_at_once(worlds: ForkedEnvironments) -> None:
    async def all_at_once() -> list[Any]:
        async def one() -> Any:
            async with worlds.open() as environment:
                await environment.reset(record(), 1)
                return await environment.step(said("more"))

        return await asyncio.gather(*(one() for _ in range(200)))

    answers = asyncio.run(all_at_once())
    assert len({answer.messages[0]["content"].split(", ")[2] for answer in answers}) == 200


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Wolrd", "has no class Wolrd; it defines: Reply, World, Asynchronous, WithTools, WithoutStep, NeedsMore"),
        ("WithoutStep", "WithoutStep in .* has no method step"),
        ("BONUS", "BONUS in .* is no class but float"),
    ],
)
def test_a_class_that_cannot_be_one_is_refused(folder: Path, name: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ForkedEnvironments(PythonEnvironment(kind="python", path=f"{folder}/world.py:{name}"))


def test_one_that_cannot_be_made_fails_its_episode(folder: Path) -> None:
    with (
        ForkedEnvironments(PythonEnvironment(kind="python", path=f"{folder}/world.py:NeedsMore")) as worlds,
        pytest.raises(EnvironmentFailed, match="missing 1 required positional argument: 'size'"),
    ):
        use(worlds, step("more"))


def test_functions_are_tools_by_their_hints_and_docstrings(folder: Path) -> None:
    config = ToolsEnvironment(file=f"{folder}/world.py", functions=["multiply", "hang"], seconds=0.5)

    async def act(environment: ProcessEnvironment) -> Any:
        assert await environment.reset(record(), 1) == []
        calls = [
            {"id": f"c{place}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for place, (name, arguments) in enumerate([("multiply", {"a": 6, "b": 7}), ("hang", {"a": 1})])
        ]
        turn: Any = {"role": "assistant", "content": "", "tool_calls": calls}
        return await environment.step(turn), await environment.step(said("42"))

    with ForkedEnvironments(config) as environments:
        assert not environments.gives_rewards
        schema = environments.tools[0]["function"]
        assert (schema["name"], schema["description"]) == ("multiply", "Multiply two numbers.")
        assert schema["parameters"]["required"] == ["a", "b"]
        answer, last = use(environments, act)
    assert [message["content"] for message in answer.messages] == [
        "42",
        "Error: hang did not return within the 0.5 s of a turn",
    ]
    assert (answer.ended, last.ended, last.messages) == (False, True, [])


def test_a_class_may_have_tools(folder: Path) -> None:
    with ForkedEnvironments(PythonEnvironment(path=f"{folder}/world.py:WithTools")) as environments:
        assert [schema["function"]["name"] for schema in environments.tools] == ["multiply", "other"]


def test_a_function_that_says_nothing_of_itself_is_refused(folder: Path) -> None:
    config = ToolsEnvironment(file=f"{folder}/world.py", functions=["unexplained"])
    with pytest.raises(BadInput, match=r"unexplained in .* needs type hints, and a docstring"):
        ForkedEnvironments(config)
