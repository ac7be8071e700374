"""Tools: what a call gives, and that whatever goes wrong in one is told to the policy."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from rlhf_ray.rollout.toolbox import Toolbox


def multiply(a: int, b: int = 2) -> int:
    return a * b


def sleepy() -> None:
    time.sleep(600)


def stubborn() -> int:
    for _ in range(3):
        try:
            time.sleep(600)
        except Exception:
            continue
    return 1


def broken(a: int) -> float:
    return 1 / 0


async def later(a: int) -> dict[str, Any]:
    return {"a": a, "who": "谁"}


TOOLS: dict[str, Callable[..., Any]] = {
    "multiply": multiply,
    "sleepy": sleepy,
    "stubborn": stubborn,
    "broken": broken,
    "later": later,
}


def call(name: str, arguments: Any, number: int = 0) -> dict[str, Any]:
    return {"type": "function", "id": f"c{number}", "function": {"name": name, "arguments": arguments}}


def answers(*calls: dict[str, Any], seconds: float = 5) -> list[str]:
    reply = Toolbox(TOOLS, seconds).step({"role": "assistant", "content": "", "tool_calls": list(calls)})
    assert not reply.ended
    said: Any = reply.messages
    assert [message["role"] for message in said] == ["tool"] * len(calls)
    assert [message["tool_call_id"] for message in said] == [one["id"] for one in calls]
    return [message["content"] for message in said]


def test_several_calls_are_answered_in_their_order() -> None:
    calls = call("multiply", {"a": 3, "b": 4}), call("later", {"a": 1}, 1), call("multiply", {"a": 5}, 2)
    assert answers(*calls) == ["12", '{"a": 1, "who": "谁"}', "10"]


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("divide", {}, "Error: there is no tool 'divide'; the tools are: multiply, sleepy"),
        ("", "a(1)", "Error: this call cannot be read: a(1)"),
        ("multiply", "a(1)", "Error: the arguments of multiply are no JSON object: a(1)"),
        ("multiply", [1], "Error: the arguments of multiply are no JSON object: [1]"),
        ("multiply", {}, "Error: multiply: missing a required argument: 'a'"),
        ("multiply", {"a": 1, "c": 2}, "Error: multiply: got an unexpected keyword argument 'c'"),
        ("broken", {"a": 1}, "Error: broken: ZeroDivisionError: division by zero"),
    ],
)
def test_what_goes_wrong_is_told(name: str, arguments: Any, told: str) -> None:
    [said] = answers(call(name, arguments))
    assert said.startswith(told)


@pytest.mark.parametrize("name", ["sleepy", "stubborn"])
def test_one_that_hangs_is_ended_and_a_turn_takes_no_longer_for_many(name: str) -> None:
    began = time.monotonic()
    said = answers(call("multiply", {"a": 2}), call(name, {}, 1), call("multiply", {"a": 2}, 2), seconds=0.2)
    assert said == [
        "4",
        f"Error: {name} did not return within the 0.2 s of a turn",
        "Error: multiply was not called: earlier calls of this turn took all of its 0.2 s",
    ]
    assert time.monotonic() - began < 60


def test_a_turn_without_calls_is_the_last() -> None:
    reply = Toolbox(TOOLS, 5).step({"role": "assistant", "content": "12"})
    assert reply.ended
    assert list(reply.messages) == []
