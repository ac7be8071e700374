"""Environments of a user's class, or of functions as tools, each in a process of its own, with deadlines."""

import asyncio
import itertools
import json
import pickle
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any, Self

from rlhf_ray.config.episodes import EnvironmentConfig
from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.records import Message, PromptRecord
from rlhf_ray.rollout.environment import Answer, EnvironmentFailed
from rlhf_ray.rollout.environment_process import END, LENGTH, OPEN
from rlhf_ray.scoring.user_process import UserProcess

GRACE_SECONDS = 5.0
"""For a tool that is late to be interrupted."""
SENDING_SECONDS = 10.0
"""In which the process that forks environments takes up what it is told."""


class ForkedEnvironments:
    """Forks an environment for each episode from one process that has imported the user's file.

    Where that process is lost, its environments are lost with it, and it is started again for the next ones.
    """

    def __init__(self, config: EnvironmentConfig) -> None:
        """Start the process and import the file.

        Raises:
            BadInput: the file cannot be imported, or has no such class or functions.
        """
        self._file, self._name = str(Path(config.file).expanduser()), config.loaded_name
        self._where, self._seconds = f"{self._file}:{config.shown_name}", config.seconds
        self.gives_rewards = config.gives_rewards
        self._numbers = itertools.count()
        self._starting = asyncio.Lock()
        self._process = self._start()
        self.tools: list[dict[str, Any]] = self._process.description

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.leave()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["ProcessEnvironment"]:
        """Fork an environment; it is killed at the end of the block, with all that it started.

        Raises:
            EnvironmentFailed: there is no process for it.
        """
        number = next(self._numbers)
        try:
            reader, writer = await self._fork(number)
        except (OSError, BadInput) as error:
            raise EnvironmentFailed("died", f"{self._file}: there is no process for an environment: {error}") from error
        try:
            environment = ProcessEnvironment(self._where, self._seconds, reader, writer)
            yield environment
            await environment.close()
        finally:
            writer.close()
            self._tell(END, number)

    async def _fork(self, number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with self._starting:
            if not self._process.alive:
                self._process.end()
                self._process = await asyncio.to_thread(self._start)
        ours, theirs = socket.socketpair()
        with theirs:
            self._process.connection.send((OPEN, number))
            send_handle(self._process.connection, theirs.fileno(), self._process.pid)
        return await asyncio.open_connection(sock=ours)

    def _tell(self, kind: str, number: int) -> None:
        # A process that is gone has taken its environments with it.
        with suppress(OSError):
            self._process.connection.send((kind, number))

    def _start(self) -> UserProcess:
        return UserProcess("rlhf_ray.rollout.environment_process", self._file, self._name, SENDING_SECONDS)


class ProcessEnvironment:
    """An environment at the other end of a socket."""

    def __init__(self, name: str, seconds: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._name, self._seconds, self._reader, self._writer = name, seconds, reader, writer

    async def reset(self, prompt: PromptRecord, seed: int) -> Sequence[Message]:
        """Make the environment and begin."""
        asked = {"prompt": prompt.prompt, "seed": seed, "columns": prompt.columns}
        messages: Sequence[Message] = (await self._call("reset", asked))["messages"]
        return messages

    async def step(self, turn: Message) -> Answer:
        """Take a turn of the policy."""
        # Tools have that limit themselves; what outlives it, and a moment, cannot be interrupted.
        grace = GRACE_SECONDS if turn.get("tool_calls") else 0
        answer = await self._call("step", (turn,), self._seconds + grace)
        return Answer(answer["messages"], answer["reward"], answer["ended"])

    async def close(self) -> None:
        """Let the environment give back what it holds; what goes wrong there is no concern of the episode's."""
        with suppress(EnvironmentFailed):
            await self._call("close", ())

    async def _call(self, method: str, arguments: Any, seconds: float | None = None) -> Mapping[str, Any]:
        seconds = seconds or self._seconds
        try:
            async with asyncio.timeout(seconds):
                content = pickle.dumps((method, arguments))
                self._writer.write(LENGTH.pack(len(content)) + content)
                await self._writer.drain()
                (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
                answer: Mapping[str, Any] = json.loads(await self._reader.readexactly(length))
        except TimeoutError:
            late = f"{self._name}: {method} did not return within {seconds:g} s (rollout.environment.seconds)"
            raise EnvironmentFailed("hung", late) from None
        except (EOFError, ConnectionError) as error:
            raise EnvironmentFailed("died", f"{self._name}: its process ended in {method}") from error
        if "failed" in answer:
            raise EnvironmentFailed(answer["failed"], answer["message"])
        return answer
