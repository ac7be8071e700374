"""A service over HTTP as reward source.

One request holds up to `batch_size` samples: `{"prompts": [...], "completions": [...], "columns": {name: [...]}}`. The
answer is a list with a finite number, or null where the service does not apply, for each completion.
"""

import asyncio
import json
import math
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from rlhf_ray.config.rewards import HTTPReward
from rlhf_ray.config.secret_variables import read_secret
from rlhf_ray.data.columns import as_given
from rlhf_ray.data.records import Prompt
from rlhf_ray.data.retries import asked_seconds, may_pass, pause_seconds
from rlhf_ray.redaction.texts import redact_text
from rlhf_ray.scoring.source import Failure, FailureKind, Scores

LONGEST_ANSWER_BYTES = 16 * 2**20
"""A list of scores is far shorter; more is some other page."""
SHOWN_CHARACTERS = 160
"""Of an answer that is not understood."""


class HTTPScorer:
    """Posts batches to a service, and tries again after what may pass: broken connections, 408, 425, 429 and 5xx.

    Redirects are not followed, and neither proxies nor passwords are taken from the environment, so that texts and
    secret reach the named address alone.
    """

    def __init__(self, source: HTTPReward) -> None:
        """Keep the settings; nothing is sent yet: a service may start later than the job.

        Raises:
            BadInput: the variable of the secret is not set where this process runs.
        """
        self._source = source
        self._runner = asyncio.Runner()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if source.secret_variable is not None:
            headers[source.secret_header] = read_secret(source.secret_variable, "secret_variable")
        # The system's certificates: without `trust_env`, httpx would look at no others than its own.
        verify = ssl.create_default_context() if source.url.lower().startswith("https") else True
        self._client = httpx.AsyncClient(
            headers=headers, trust_env=False, follow_redirects=False, timeout=None, verify=verify
        )

    @classmethod
    def open(cls, source: HTTPReward, tokens_per_microbatch: int) -> "HTTPScorer":
        """Make a client of the service."""
        return cls(source)

    @staticmethod
    def refuse(key: str, source: HTTPReward) -> None:
        """Look for the secret; the service may start later than the job."""
        if source.secret_variable is not None:
            read_secret(source.secret_variable, f"{key}.secret_variable")

    @staticmethod
    def identity(source: HTTPReward) -> list[Any]:
        """Return nothing: what a service does is its own affair."""
        return []

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> Scores:
        """Score completions, request by request; what goes wrong is a failure of the request's samples."""
        whole = Scores([])
        for start in range(0, len(completions), self._source.batch_size):
            rows = slice(start, start + self._source.batch_size)
            part = self._request(
                prompts[rows], completions[rows], {name: values[rows] for name, values in columns.items()}
            )
            whole.values += part.values
            whole.failures += [
                Failure(failure.kind, failure.message, tuple(start + row for row in failure.rows))
                for failure in part.failures
            ]
        return whole

    def wake(self) -> None:
        """Do nothing: the service is always ready."""

    def sleep(self) -> None:
        """Do nothing: the service has no device of ours."""

    def close(self) -> None:
        """Close connections."""
        self._runner.run(self._client.aclose())
        self._runner.close()

    def _request(
        self, prompts: Sequence[Prompt], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> Scores:
        given = [as_given(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        body: dict[str, Any] = {"prompts": list(prompts), "completions": given, "columns": {}}
        for name, values in columns.items():
            try:
                json.dumps(values := list(values), allow_nan=False)
            except (TypeError, ValueError) as error:
                message = f"column {name!r} cannot be sent as JSON: {error}; leave it out of the data"
                return Scores.failed("bad input", message, len(given))
            body["columns"][name] = values
        try:
            answer = self._runner.run(self._post(json.dumps(body).encode("ascii")))
            scores = read_scores(answer, len(given))
        except RequestFailed as failure:
            return Scores.failed(failure.kind, self._told(failure.message), len(given))
        failures = [Failure(failure.kind, self._told(failure.message), failure.rows) for failure in scores.failures]
        return Scores(scores.values, failures)

    async def _post(self, body: bytes) -> bytes:
        """Return the answer to a request; raises RequestFailed with the last reason once trying again is no use."""
        seconds, attempt = self._source.timeout_seconds, 0
        last: RequestFailed | None = None
        try:
            async with asyncio.timeout(seconds) as limit:
                ends = limit.when() or 0.0
                while True:
                    attempt += 1
                    try:
                        return await self._attempt(body)
                    except RequestFailed as failure:
                        last = failure
                    if not last.may_pass:
                        raise last
                    left = ends - asyncio.get_running_loop().time()
                    pause = pause_seconds(attempt - 1, last.retry_after, left)
                    if pause is None:
                        raise last.after(attempt, seconds)
                    await asyncio.sleep(pause)
        except TimeoutError:
            before = f"; the attempt before: {last.message}" if last is not None else ""
            message = f"attempt {attempt} was not answered within timeout_seconds {seconds:g}{before}"
            raise RequestFailed("timed out", message) from None

    async def _attempt(self, body: bytes) -> bytes:
        try:
            async with self._client.stream("POST", self._source.url, content=body) as response:
                answer = await _read(response)
        except (httpx.TransportError, httpx.DecodingError) as error:
            # Also a connection that broke off within the answer.
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise RequestFailed("unreachable", reason, may_pass=True) from None
        status = response.status_code
        if status == httpx.codes.OK:
            return answer
        if response.has_redirect_location:
            where = response.headers["location"]
            raise RequestFailed("refused", f"HTTP {status} points to {where}, which is not followed; name that url")
        shown = _shown(answer)
        message = f"HTTP {status} {response.reason_phrase}" + (f": {shown}" if shown else "")
        asked = asked_seconds(response.headers.get("retry-after"))
        raise RequestFailed("refused", message, may_pass=may_pass(status), retry_after=asked)

    def _told(self, message: str) -> str:
        # A service may well repeat the request's header in its complaint, and only this process may know the secret.
        return redact_text(f"{self._source.url}: {message}")


@dataclass(eq=False)
class RequestFailed(Exception):
    """Why a request brought no scores."""

    kind: FailureKind
    message: str
    may_pass: bool = False
    """Whether another attempt may succeed."""
    retry_after: float | None = None
    """Seconds for which the service asks."""

    def after(self, attempts: int, seconds: float) -> "RequestFailed":
        """Return the same, when the time is over."""
        waits = f", and asks to wait {self.retry_after:g} s" if self.retry_after is not None else ""
        ending = f" (attempt {attempts} within timeout_seconds {seconds:g}{waits})"
        return RequestFailed(self.kind, self.message + ending)


def read_scores(answer: bytes, rows: int) -> Scores:
    """Read the scores of a service's answer; single values that are no finite number fail alone.

    Raises:
        RequestFailed: it is no list of as many values as there are rows.
    """
    try:
        values = json.loads(answer)
    except (ValueError, RecursionError):
        raise RequestFailed("malformed answer", f"the answer is no JSON: {_shown(answer)}") from None
    if not isinstance(values, list):
        raise RequestFailed("malformed answer", f"the answer is no JSON list of scores: {_shown(answer)}")
    if len(values) != rows:
        raise RequestFailed("wrong count", f"the answer has {len(values)} scores for {rows} completions")
    broken = tuple(row for row, value in enumerate(values) if value is not None and not _is_number(value))
    kept = [math.nan if row in broken else None if v is None else float(v) for row, v in enumerate(values)]
    if not broken:
        return Scores(kept)
    first = json.dumps(values[broken[0]])[:SHOWN_CHARACTERS]
    message = (
        f"the answer has {first} for completion {broken[0]}; it takes finite numbers, or null for `not applicable`"
    )
    return Scores(kept, [Failure("not a number", message, broken)])


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


async def _read(response: httpx.Response) -> bytes:
    read = bytearray()
    async for chunk in response.aiter_bytes():
        read += chunk
        if len(read) > LONGEST_ANSWER_BYTES:
            raise RequestFailed("malformed answer", f"the answer is longer than {LONGEST_ANSWER_BYTES >> 20} MiB")
    return bytes(read)


def _shown(answer: bytes) -> str:
    # Before it is cut: half a secret is one too.
    text = redact_text(" ".join(answer.decode("utf-8", "replace").split()))
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
