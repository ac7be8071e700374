"""Rows from HTTP services: page after page, with retries, until the last page or a deadline."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urljoin

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.config.jobs.row_sources import HttpSource
from rlhf_ray.config.secret_variables import read_secret
from rlhf_ray.data.file_formats import Row
from rlhf_ray.data.retries import NoAnswer, answered
from rlhf_ray.redaction.texts import redact_text


class AcquisitionFailed(RlhfError):
    """A service did not answer, or not with rows; the message says where and what to do."""


def http_rows(
    source: HttpSource,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Row]:
    """Yield the rows of all pages, at most `source.limit`.

    Args:
        source: where, and how pages are found.
        sleep, clock: time, in seconds.

    Raises:
        BadInput: the token's variable is not set, or an answer has no rows where the config says.
        AcquisitionFailed: refused, no answer after all retries, or the deadline passed.
    """
    import httpx

    headers = {"Accept": "application/json"}
    if source.token_variable is not None:
        token = read_secret(source.token_variable, f"sources: {source.name}: token_variable")
        headers["Authorization"] = f"Bearer {token}"
    with httpx.Client(headers=headers, timeout=source.timeout_seconds, follow_redirects=True) as client:
        yield from _pages(source, _Fetcher(source, client, sleep, clock))


def _pages(source: HttpSource, fetch: "_Fetcher") -> Iterator[Row]:
    url, parameters = source.url, {}
    seen: set[str] = set()
    count = 0
    if source.offset_parameter:
        parameters = {source.offset_parameter: "0"}
    while True:
        answer = fetch(url, parameters)
        rows = _rows(source, url, answer)
        for row in rows:
            if count == source.limit:
                return
            count += 1
            yield row
        if source.offset_parameter:
            if not rows:
                return
            parameters = {source.offset_parameter: str(count)}
            continue
        cursor = _inside(answer, source.next) if source.next else None
        if not cursor:
            return
        if str(cursor) in seen:
            raise AcquisitionFailed(
                f"{source.name}: {url} names page {redact_text(str(cursor))[:80]!r} again; check `next`"
            )
        seen.add(str(cursor))
        if source.next_parameter:
            parameters = {source.next_parameter: str(cursor)}
        else:
            url, parameters = urljoin(url, str(cursor)), {}


class _Fetcher:
    """One request at a time, with retries, all within the source's deadline."""

    def __init__(
        self, source: HttpSource, client: Any, sleep: Callable[[float], None], clock: Callable[[], float]
    ) -> None:
        self._source = source
        self._client = client
        self._sleep = sleep
        self._clock = clock
        self._ends = clock() + source.deadline_seconds

    def __call__(self, url: str, parameters: dict[str, str]) -> Any:
        """Return the content of a page."""
        import httpx

        source = self._source
        try:
            content = answered(
                lambda seconds: self._get(url, parameters, seconds),
                retries=source.retries,
                timeout_seconds=source.timeout_seconds,
                left=lambda: self._ends - self._clock(),
                sleep=self._sleep,
            )
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise BadInput(f"{source.name}: {url}: {error}") from None
        except NoAnswer as failure:
            told = f"{failure.told(source.deadline_seconds)}{_advice(failure)}"
            raise AcquisitionFailed(f"{source.name}: {url}: {told}") from None
        return self._parsed(url, content)

    def _get(self, url: str, parameters: dict[str, str], seconds: float) -> tuple[Any, bytes]:
        # Parameters of the URL itself stay; `params={}` would take them away.
        with self._client.stream("GET", url, params=parameters or None, timeout=seconds) as response:
            parts = []
            for part in response.iter_bytes():
                parts.append(part)
                # The limit of a request is one of silence; a server that trickles keeps that for ever.
                if self._clock() >= self._ends:
                    raise NoAnswer("too late", "the answer did not end")
            return response, b"".join(parts)

    def _parsed(self, url: str, content: bytes) -> Any:
        text = content.decode("utf-8-sig", errors="replace")
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":
                raise AcquisitionFailed(f"{self._source.name}: {url}: the answer is not JSON: {error.msg}") from None
        try:
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        except json.JSONDecodeError as error:
            raise AcquisitionFailed(
                f"{self._source.name}: {url}: the answer is neither JSON nor lines of JSON: {error.msg}"
            ) from None


def _rows(source: HttpSource, url: str, answer: Any) -> list[Row]:
    found = _inside(answer, source.rows)
    if isinstance(found, dict) and not source.rows:
        found = [found]
    if not isinstance(found, list):
        here = ", ".join(answer) if isinstance(answer, dict) else type(answer).__name__
        raise BadInput(f"sources: {source.name}: rows: {url} has no list at {source.rows!r}; it has {here}")
    rows = [_inside(row, source.row) for row in found]
    for place, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise BadInput(f"sources: {source.name}: row: row {place} of {url} has no object at {source.row!r}")
    return rows


def _inside(value: Any, path: str) -> Any:
    """Return what stands at a dotted path; None if nothing does."""
    for step in filter(None, path.split(".")):
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def _advice(failure: NoAnswer) -> str:
    if failure.kind == "unreachable":
        return "; raise retries, or try later"
    if failure.status in (401, 403):
        return "; set token_variable to an environment variable that holds a valid token"
    return "; check url" if failure.status in (404, 410) else ""
