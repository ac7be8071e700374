"""HTTP sources against a local server that pages, fails, stalls and lies."""

import http.server
import json
import threading
import time
from urllib.parse import parse_qs, urlsplit

import pytest

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.row_sources import HttpSource
from rlhf_ray.data.acquisition import AcquisitionFailed, http_rows

ROWS = [{"text": f"第 {number} 行"} for number in range(25)]


class Service(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        url = urlsplit(self.path)
        self.server.asked.append(self.path)
        if self.server.failures:
            status, headers = self.server.failures.pop(0)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.server.tokens.append(self.headers.get("Authorization"))
        answer = self.server.pages[url.path]({name: values[0] for name, values in parse_qs(url.query).items()})
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def by_offset(query):
    start = int(query["offset"])
    return {"rows": [{"row_idx": n, "row": row} for n, row in enumerate(ROWS)][start : start + 10]}


def by_cursor(query):
    start = int(query.get("cursor", 0))
    return {"data": {"items": ROWS[start : start + 10], "next": str(start + 10) if start < 20 else None}}


def by_link(query):
    start = int(query.get("start", 0))
    return {"items": ROWS[start : start + 10], "next": f"link?start={start + 10}" if start < 20 else ""}


@pytest.fixture
def service():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.failures, server.asked, server.tokens = [], [], []
    server.pages = {
        "/offset": by_offset,
        "/cursor": by_cursor,
        "/link": by_link,
        "/list": lambda _: ROWS,
        "/lines": lambda _: "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
        "/circle": lambda _: {"items": ROWS[:1], "next": "circle"},
        "/text": lambda _: b"<html>moved</html>",
        "/numbers": lambda _: [1, 2],
        "/error": lambda _: {"error": "quota"},
    }
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield server
    server.shutdown()
    server.server_close()


class Clock:
    """Time that passes only in sleep."""

    def __init__(self):
        self.now = 0.0
        self.slept = []

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def __call__(self):
        return self.now


def acquire(server, path, clock=None, **settings):
    source = HttpSource.model_validate({"kind": "http", "name": "s", "url": server.url + path} | settings)
    clock = clock or Clock()
    return list(http_rows(source, clock.sleep, clock))


@pytest.mark.parametrize(
    ("path", "settings"),
    [
        ("/list", {}),
        ("/lines", {}),
        ("/offset", {"rows": "rows", "row": "row", "offset_parameter": "offset"}),
        ("/cursor", {"rows": "data.items", "next": "data.next", "next_parameter": "cursor"}),
        ("/link", {"rows": "items", "next": "next"}),
    ],
)
def test_all_rows_of_all_pages_in_order(service, path, settings):
    assert acquire(service, path, **settings) == ROWS
    assert acquire(service, path, limit=12, **settings) == ROWS[:12]


def test_parameters_of_the_url_stay(service):
    assert acquire(service, "/list?split=train&n=3") == ROWS
    assert service.asked == ["/list?split=train&n=3"]


def test_failures_are_tried_again_with_growing_pauses(service):
    service.failures = [(503, {}), (500, {}), (429, {"Retry-After": "7"}), (502, {"Retry-After": "Tue, 1 Jan"})]
    clock = Clock()
    assert acquire(service, "/list", clock) == ROWS
    assert len(service.asked) == 5
    first, second, third, fourth = clock.slept
    assert 0.3 < first < 0.7
    assert 0.7 < second < 1.3
    assert third == 7
    assert 2.9 < fourth < 5.1


def test_retries_end(service):
    service.failures = [(503, {})] * 9
    with pytest.raises(AcquisitionFailed, match=r"s: http://.*/list: HTTP 503, 3 times; raise retries"):
        acquire(service, "/list", retries=2)
    assert len(service.asked) == 3


def test_the_deadline_ends_all(service):
    service.failures = [(503, {})] * 99
    clock = Clock()
    with pytest.raises(AcquisitionFailed, match=r"deadline_seconds \(10 s\) passed \(last: HTTP 503\)"):
        acquire(service, "/list", clock, retries=50, deadline_seconds=10)
    assert clock.now <= 10


@pytest.mark.parametrize(
    ("status", "advice"),
    [(401, "set token_variable"), (403, "set token_variable"), (404, "check url"), (400, "HTTP 400")],
)
def test_what_no_retry_can_mend_fails_at_once(service, status, advice):
    service.failures = [(status, {})]
    with pytest.raises(AcquisitionFailed, match=advice):
        acquire(service, "/list")
    assert len(service.asked) == 1


@pytest.mark.parametrize(
    ("path", "settings", "error", "message"),
    [
        ("/text", {}, AcquisitionFailed, "the answer is not JSON"),
        ("/numbers", {}, BadInput, "row 1 of .* has no object at ''"),
        ("/error", {"rows": "data.rows"}, BadInput, "has no list at 'data.rows'; it has error"),
        ("/list", {"row": "row"}, BadInput, "sources: s: row: row 1 of .* has no object at 'row'"),
        ("/circle", {"rows": "items", "next": "next"}, AcquisitionFailed, "names page 'circle' again; check"),
    ],
)
def test_answers_that_are_no_rows(service, path, settings, error, message):
    with pytest.raises(error, match=message):
        acquire(service, path, **settings)


def test_silence_and_answers_that_never_end(service):
    service.pages["/silent"] = lambda _: time.sleep(0.5) or []
    with pytest.raises(AcquisitionFailed, match=r"ReadTimeout.*, 2 times"):
        acquire(service, "/silent", retries=1, timeout_seconds=0.05)
    ticks = iter(range(1000))
    source = HttpSource(kind="http", name="s", url=service.url + "/list", deadline_seconds=2)
    with pytest.raises(AcquisitionFailed, match=r"deadline_seconds \(2 s\) passed \(last: the answer did not end\)"):
        list(http_rows(source, clock=lambda: next(ticks)))


def test_nobody_there(service):
    service.shutdown()
    service.server_close()
    with pytest.raises(AcquisitionFailed, match=r"ConnectError.*, 2 times"):
        acquire(service, "/list", retries=1)


def test_tokens_come_from_the_environment_and_stay_out_of_messages(service, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "very-secret")
    assert acquire(service, "/list", token_variable="MY_TOKEN") == ROWS
    assert service.tokens == ["Bearer very-secret"]
    service.failures = [(403, {})]
    with pytest.raises(AcquisitionFailed) as caught:
        acquire(service, "/list", token_variable="MY_TOKEN")
    assert "very-secret" not in str(caught.value)
    # As files of tokens end.
    monkeypatch.setenv("MY_TOKEN", "very-secret\n")
    with pytest.raises(BadInput, match="no HTTP header can hold") as caught:
        acquire(service, "/list", token_variable="MY_TOKEN")
    assert "very-secret" not in str(caught.value)
    monkeypatch.delenv("MY_TOKEN")
    with pytest.raises(BadInput, match="MY_TOKEN is not set in the environment"):
        acquire(service, "/list", token_variable="MY_TOKEN")
