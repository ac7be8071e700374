"""Which finished groups an engine sends together."""

import asyncio
from typing import Any

import pytest

from rlhf_ray.rollout import requests
from rlhf_ray.rollout.requests import GenerationResult

LIMIT_SECONDS = 60.0


def result(number: int) -> GenerationResult:
    return GenerationResult(str(number), [])


def run(scenario: Any) -> Any:
    return asyncio.run(asyncio.wait_for(scenario, LIMIT_SECONDS))


def test_groups_travel_at_once_when_no_other_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "COALESCE_SECONDS", 60 * LIMIT_SECONDS)

    async def scenario() -> list[GenerationResult]:
        finished: asyncio.Queue[Any] = asyncio.Queue()
        waiting = asyncio.create_task(requests.next_results(finished, remaining=3))
        for number in range(3):
            finished.put_nowait(result(number))
            await asyncio.sleep(0)
        return await waiting

    assert [found.request_id for found in run(scenario())] == ["0", "1", "2"]


def test_groups_that_take_longer_travel_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "COALESCE_SECONDS", 0.01)

    async def scenario() -> list[list[GenerationResult]]:
        finished: asyncio.Queue[Any] = asyncio.Queue()
        finished.put_nowait(result(0))
        finished.put_nowait(result(1))
        first = await requests.next_results(finished, remaining=3)
        finished.put_nowait(result(2))
        return [first, await requests.next_results(finished, remaining=1)]

    assert [[found.request_id for found in batch] for batch in run(scenario())] == [["0", "1"], ["2"]]
