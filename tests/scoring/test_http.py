"""A service as reward source, against a real server that answers well, late, wrongly or not at all."""

import logging
import math
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.rewards import HTTPReward
from rlhf_ray.data import retries
from rlhf_ray.scoring import http
from rlhf_ray.scoring.http import HTTPScorer
from rlhf_ray.scoring.source import Scores
from tests.scoring.services import Asked, Service, say, serving

SECRET = "Bearer sesame-open-0123"
Handler = BaseHTTPRequestHandler


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.02)


@contextmanager
def scorer(url: str, **settings: Any) -> Iterator[Any]:
    source = HTTPScorer(HTTPReward(url=url, **{"timeout_seconds": 5.0, **settings}))
    try:
        yield source
    finally:
        source.close()


def ask(service: Service | str, rows: int = 3, **settings: Any) -> Scores:
    url = service if isinstance(service, str) else service.url
    with scorer(url, **settings) as source:
        return source.score(["p"] * rows, [f"answer {n}" for n in range(rows)], {})


def lengths(handler: Handler, asked: Asked, number: int) -> None:
    say(handler, [float(len(text)) for text in asked.body["completions"]])


def test_the_request_is_what_the_docs_say() -> None:
    def answer(handler: Handler, asked: Asked, number: int) -> None:
        say(handler, [0.5, None])

    conversation = [{"role": "user", "content": "你好"}]
    with serving(answer) as service, scorer(service.url) as source:
        scores = source.score(["质量", conversation], ["很好", "您好"], {"answer": ["a", None], "n": [1, 2.5]})
    assert scores == Scores([0.5, None])
    [asked] = service.asked
    assert asked.body == {
        "prompts": ["质量", conversation],
        "completions": ["很好", [{"role": "assistant", "content": "您好"}]],
        "columns": {"answer": ["a", None], "n": [1, 2.5]},
    }
    assert asked.headers["Content-Type"] == "application/json"
    assert asked.path == "/score"


def test_batches_are_divided_and_put_together_in_order() -> None:
    with serving(lengths) as service, scorer(service.url, batch_size=4) as source:
        texts = ["x" * n for n in range(10)]
        scores = source.score(["p"] * 10, texts, {"n": list(range(10))})
    assert scores.values == [float(n) for n in range(10)]
    assert [len(asked.body["prompts"]) for asked in service.asked] == [4, 4, 2]
    assert [asked.body["columns"]["n"] for asked in service.asked] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 520])
def test_what_may_pass_is_tried_again(status: int) -> None:
    def answer(handler: Handler, asked: Asked, number: int) -> None:
        say(handler, "busy", status) if number < 4 else lengths(handler, asked, number)

    with serving(answer) as service:
        assert ask(service).values == [8.0, 8.0, 8.0]
    assert len(service.asked) == 4
    assert all(asked.body == service.asked[0].body for asked in service.asked)


def drop(handler: Handler) -> None:
    """Reset the connection, so that the client sees no orderly end."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


def test_broken_connections_are_tried_again() -> None:
    def answer(handler: Handler, asked: Asked, number: int) -> None:
        if number == 1:
            drop(handler)
        elif number == 2:
            # Less than was promised.
            handler.send_response(200)
            handler.send_header("Content-Length", "100")
            handler.end_headers()
            handler.wfile.write(b"[1.0,")
            drop(handler)
        else:
            lengths(handler, asked, number)

    with serving(answer) as service:
        assert ask(service).values == [8.0, 8.0, 8.0]
    assert len(service.asked) == 3


def test_the_service_says_when_to_come_back() -> None:
    def answer(handler: Handler, asked: Asked, number: int) -> None:
        say(handler, "wait", 429, Retry_After="1") if number == 1 else lengths(handler, asked, number)

    began = time.monotonic()
    with serving(answer) as service:
        assert ask(service).failures == []
    assert time.monotonic() - began >= 1


def test_tries_go_on_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pause is told what is left of the time, so that the last one can be cut."""
    told: list[tuple[int, float]] = []

    def pause(attempt: int, asked: float | None, left: float) -> float | None:
        told.append((attempt, left))
        return 0.0 if attempt < 4 else None

    def answer(handler: Handler, asked: Asked, number: int) -> None:
        say(handler, "busy", 503)

    monkeypatch.setattr(http, "pause_seconds", pause)
    with serving(answer) as service:
        scores = ask(service, timeout_seconds=120)
    assert [attempt for attempt, _ in told] == [0, 1, 2, 3, 4]
    lefts = [left for _, left in told]
    assert lefts[0] < 120
    assert lefts == sorted(lefts, reverse=True)
    assert len(set(lefts)) == len(lefts)
    assert len(service.asked) == 5
    assert "attempt 5 within timeout_seconds 120" in scores.failures[0].message


def sleeps(handler: Handler, asked: Asked, number: int) -> None:
    time.sleep(60)
    say(handler, [1.0] * 3)


def dribbles(handler: Handler, asked: Asked, number: int) -> None:
    """A byte now and then: no single read takes long, the whole answer for ever."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(600):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def never_ends(handler: Handler, asked: Asked, number: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(2**30))
    handler.end_headers()
    for _ in range(2**10):
        handler.wfile.write(b" " * 2**20)


def elsewhere(handler: Handler, asked: Asked, number: int) -> None:
    say(handler, "moved", 307, Location="http://127.0.0.1:9/other")


WRONG: dict[str, tuple[Any, str, str]] = {
    # name: (answer, kind of failure, words of the message)
    "late": (sleeps, "timed out", "attempt 1 was not answered within timeout_seconds 0.5"),
    "byte by byte": (dribbles, "timed out", "attempt 1 was not answered within timeout_seconds 0.5"),
    "always busy": (lambda h, a, n: say(h, "busy", 503), "refused", 'HTTP 503 Service Unavailable: "busy" (attempt'),
    "busy for an hour": (
        lambda h, a, n: say(h, "later", 429, Retry_After="3600"),
        "refused",
        "asks to wait 3600 s",
    ),
    "unauthorised": (lambda h, a, n: say(h, "who are you?", 401), "refused", 'HTTP 401 Unauthorized: "who are you?"'),
    "not found": (lambda h, a, n: say(h, b"", 404), "refused", "HTTP 404 Not Found"),
    "redirect": (elsewhere, "refused", "points to http://127.0.0.1:9/other, which is not followed"),
    "no content": (lambda h, a, n: say(h, b""), "malformed answer", "no JSON"),
    "a web page": (lambda h, a, n: say(h, b"<html>hi</html>"), "malformed answer", "no JSON: <html>hi</html>"),
    "not UTF-8": (lambda h, a, n: say(h, b"\xff\xfe["), "malformed answer", "no JSON"),
    "nested too deeply": (lambda h, a, n: say(h, b"[" * 100_000), "malformed answer", "no JSON"),
    "an object": (lambda h, a, n: say(h, {"scores": [1, 2, 3]}), "malformed answer", "no JSON list of scores"),
    "one number": (lambda h, a, n: say(h, 0.5), "malformed answer", "no JSON list of scores: 0.5"),
    "without end": (never_ends, "malformed answer", "longer than 1 MiB"),
    "too few": (lambda h, a, n: say(h, [1.0]), "wrong count", "1 scores for 3 completions"),
    "too many": (lambda h, a, n: say(h, [1.0] * 4), "wrong count", "4 scores for 3 completions"),
    "words": (lambda h, a, n: say(h, ["good", "bad", "1"]), "not a number", 'has "good" for completion 0'),
    "truth values": (lambda h, a, n: say(h, [True, False, True]), "not a number", "has true for completion 0"),
    "NaN": (lambda h, a, n: say(h, b"[NaN, Infinity, -Infinity]"), "not a number", "has NaN for completion 0"),
    "too large": (lambda h, a, n: say(h, [10**400] * 3), "not a number", "takes finite numbers, or null"),
}


@pytest.mark.parametrize("case", WRONG)
def test_services_that_misbehave(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, kind, message = WRONG[case]
    monkeypatch.setattr(http, "LONGEST_ANSWER_BYTES", 2**20)
    began = time.monotonic()
    with serving(answer) as service:
        # On a busy machine too, an answer that is there comes in time.
        late = kind == "timed out" or case in ("always busy", "busy for an hour")
        scores = ask(service, timeout_seconds=0.5 if late else 20)
    assert time.monotonic() - began < 20
    [failure] = scores.failures
    assert (failure.kind, failure.rows) == (kind, (0, 1, 2))
    assert message in failure.message, failure.message
    assert failure.message.startswith(service.url)
    assert all(math.isnan(value) for value in scores.values)
    if kind not in ("timed out", "refused"):
        assert len(service.asked) == 1, "what cannot pass is not asked again"


def test_nobody_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/"
        [failure] = ask(url, timeout_seconds=0.5).failures
    assert failure.kind == "unreachable"
    assert "ConnectError" in failure.message
    assert "within timeout_seconds 0.5" in failure.message


def test_no_such_host() -> None:
    [failure] = ask("http://nowhere.invalid/score", timeout_seconds=1).failures
    assert failure.kind in ("unreachable", "timed out")


def test_a_single_score_that_is_no_number_fails_alone() -> None:
    with serving(lambda h, a, n: say(h, [1, "x", None])) as service:
        scores = ask(service)
    assert scores.values[0] == 1.0
    assert scores.values[2] is None
    assert [failure.rows for failure in scores.failures] == [(1,)]


def test_a_failed_request_leaves_the_others() -> None:
    def answer(handler: Handler, asked: Asked, number: int) -> None:
        say(handler, "no", 400) if number == 2 else lengths(handler, asked, number)

    with serving(answer) as service:
        scores = ask(service, rows=6, batch_size=2)
    assert [failure.rows for failure in scores.failures] == [(2, 3)]
    assert [math.isnan(value) for value in scores.values] == [False, False, True, True, False, False]


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes"])
def test_columns_that_json_cannot_hold(value: object) -> None:
    with serving(lengths) as service, scorer(service.url) as source:
        [failure] = source.score(["p"], ["a"], {"fine": [1], "odd": [value]}).failures
    assert failure.kind == "bad input"
    assert "column 'odd' cannot be sent as JSON" in failure.message
    assert service.asked == []


def test_half_a_surrogate_pair_is_sent_as_it_is() -> None:
    with serving(lengths) as service, scorer(service.url) as source:
        assert source.score(["p"], ["\ud83d"], {}).values == [1.0]
    assert service.asked[0].body["completions"] == ["\ud83d"]


def test_the_secret_goes_into_the_header_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(handler: Handler, asked: Asked, number: int) -> None:
        say(handler, f"not for {asked.headers['X-Key']}", 403)

    monkeypatch.setenv("JUDGE_KEY", SECRET)
    source = HTTPReward(url="http://unused", secret_variable="JUDGE_KEY", secret_header="X-Key")
    assert SECRET not in source.model_dump_json()
    with caplog.at_level(logging.DEBUG), serving(answer) as service:
        [failure] = ask(service, secret_variable="JUDGE_KEY", secret_header="X-Key").failures
    assert service.asked[0].headers["X-Key"] == SECRET
    assert failure.message.endswith('HTTP 403 Forbidden: "not for [hidden]"')
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("value", "message"), [(None, "JUDGE_KEY is not set"), ("", "is not set"), ("a\nb: c", "no HTTP header can hold")]
)
def test_a_secret_that_cannot_be_sent(monkeypatch: pytest.MonkeyPatch, value: str | None, message: str) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(BadInput, match=message) as caught:
        HTTPScorer(HTTPReward(url="http://unused", secret_variable="JUDGE_KEY"))
    assert "a\nb" not in str(caught.value)


def test_proxies_of_the_environment_see_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda h, a, n: say(h, [9.0] * 3)) as proxy, serving(lengths) as service:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert ask(service).values == [8.0, 8.0, 8.0]
    assert proxy.asked == []
