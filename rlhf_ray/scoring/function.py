"""A Python function as reward source, in a process that can be given up."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlhf_ray.config.checks.functions import check_function
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.rewards import FunctionReward
from rlhf_ray.data.columns import as_given
from rlhf_ray.data.records import Prompt
from rlhf_ray.scoring.source import Scores, failures_of
from rlhf_ray.scoring.user_process import UserProcess


class FunctionScorer:
    """Calls `name(prompts, completions, **columns) -> list[float | None]` of a file (TRL's convention).

    None means that the source does not apply to the sample. To prompts of messages, completions are messages too. A
    function that does not take every column gets those that it names. A process that hangs or dies is replaced; what a
    dead one did not answer is asked again, once.
    """

    def __init__(self, source: FunctionReward) -> None:
        """Start the process and import the file.

        Raises:
            BadInput: no such file or function, or the file cannot be imported.
        """
        self._file, _, self._name = source.function.rpartition(":")
        self._file = str(Path(self._file).expanduser())
        self._seconds = source.timeout_seconds
        self._asked = 0
        if not Path(self._file).is_file():
            raise BadInput(f"{source.function}: no such file: {self._file or source.function}")
        self._process: UserProcess | None = self._start()

    @classmethod
    def open(cls, source: FunctionReward, tokens_per_microbatch: int) -> "FunctionScorer":
        """Start the process."""
        return cls(source)

    @staticmethod
    def refuse(key: str, source: FunctionReward) -> None:
        """See `check_function`."""
        try:
            check_function(source.function)
        except BadInput as error:
            raise BadInput(f"{key}.function: {error}") from error

    @staticmethod
    def identity(source: FunctionReward) -> list[Any]:
        """Return the file's content."""
        return [Path(source.function.rpartition(":")[0]).expanduser().read_text(encoding="utf-8")]

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> Scores:
        """Score completions within the limit of a batch; whatever goes wrong is a failure of the whole batch."""
        rows = len(completions)
        if rows == 0:
            return Scores([])
        given = [as_given(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        beside = {name: list(values) for name, values in columns.items() if name not in ("prompts", "completions")}
        try:
            kind, answer = self._ask(list(prompts), given, beside)
        except TimeoutError:
            self._end()
            message = f"{self._file}:{self._name} did not return within timeout_seconds {self._seconds:g}"
            return Scores.failed("hung", message, rows)
        except _Died as death:
            return Scores.failed("died", f"{self._file}:{self._name}: {death}", rows)
        except BadInput as error:
            return Scores.failed("died", f"its process did not start again: {error}", rows)
        if kind != "values":
            return Scores.failed(kind, answer, rows)
        values, broken = answer
        return Scores(values, failures_of(broken))

    def wake(self) -> None:
        """Do nothing: the process stays ready."""

    def sleep(self) -> None:
        """Do nothing: the process has no device of ours."""

    def close(self) -> None:
        """End the process."""
        self._end()

    @property
    def pid(self) -> int | None:
        """Id of the process; None between its loss and the next batch."""
        return None if self._process is None else self._process.pid

    def _ask(self, *batch: Any) -> tuple[Any, Any]:
        """Return the answer to a batch; one that its process did not live to give is asked for again, once.

        Raises:
            TimeoutError: no answer within the limit.
            _Died: the second process ended too.
            BadInput: there is no second process.
        """
        with suppress(EOFError, ConnectionError):
            return self._exchange(self._living(), batch)
        self._end()
        process = self._living()
        try:
            return self._exchange(process, batch)
        except (EOFError, ConnectionError) as error:
            self._process = None
            raise _Died(process.death(error)) from error

    def _living(self) -> UserProcess:
        """Return the process, or a new one where it has ended."""
        if self._process is None or not self._process.alive:
            self._end()
            self._process = self._start()
        return self._process

    def _exchange(self, process: UserProcess, batch: tuple[Any, ...]) -> tuple[Any, Any]:
        """Send a batch and receive its answer. A process that does not read is not waited for either."""
        self._asked += 1
        try:
            process.connection.send((self._asked, *batch))
        except BlockingIOError:
            raise TimeoutError from None
        return process.receive(self._asked, self._seconds)

    def _start(self) -> UserProcess:
        return UserProcess("rlhf_ray.scoring.function_process", self._file, self._name, self._seconds)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()


class _Died(Exception):
    """A process ended before it answered; says how."""
