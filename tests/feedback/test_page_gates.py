"""Who is let in: under which name, from which page, with which token."""

import pytest
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect
from streamlit import net_util
from streamlit.web.server.server_util import is_url_from_allowed_origins

from rlhf_ray.config.jobs.labelling import LabelConfig
from rlhf_ray.feedback.app.gates import AddressGate, TokenGate

TOKEN = "x" * 20
STREAM = "/_stcore/stream"


async def _stream(socket: WebSocket) -> None:
    # As the pages' own server does: without an origin there is nothing to compare, and nothing to look up.
    assert is_url_from_allowed_origins(socket.headers["origin"]) if "origin" in socket.headers else True
    await socket.accept()
    await socket.send_text("inside")
    await socket.close()


def _guarded(*gates: Middleware, host: str = "127.0.0.1:8904") -> TestClient:
    pages = [Route(path, lambda _: PlainTextResponse("inside")) for path in ("/", "/media/x")]
    app = Starlette(routes=[*pages, WebSocketRoute(STREAM, _stream)], middleware=list(gates))
    return TestClient(app, base_url=f"http://{host}")


def _own(*names: str, any_name: bool = False) -> Middleware:
    return Middleware(AddressGate, names=names, any_name=any_name)


def _streams(client: TestClient, headers: dict[str, str]) -> bool:
    try:
        with client.websocket_connect(f"ws://{client.base_url.netloc.decode()}{STREAM}", headers=headers) as socket:
            return socket.receive_text() == "inside"
    except WebSocketDisconnect:
        return False


@pytest.fixture(autouse=True)
def _nothing_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up() -> str:
        raise AssertionError("looked up this machine's address outside")

    monkeypatch.setattr(net_util, "get_external_ip", look_up)


@pytest.mark.parametrize("host", ["127.0.0.1:8904", "localhost:8904", "LOCALHOST", "127.8.0.1", "[::1]:8904"])
def test_this_machines_own_names_are_answered(host: str) -> None:
    client = _guarded(_own(), host=host)
    assert client.get("/").text == "inside"
    assert _streams(client, {"origin": f"http://{host}"})
    assert _streams(client, {})


@pytest.mark.parametrize(
    "host", ["evil.example:8904", "192.0.2.7:8904", "127.0.0.1.evil.example", "localhost.evil", "", "[", "0.0.0.0:8904"]
)
def test_a_name_that_a_stranger_gave_this_machine_is_refused(host: str) -> None:
    client = _guarded(_own())
    answer = client.get("/", headers={"host": host})
    assert answer.status_code == 403
    assert "inside" not in answer.text
    assert not _streams(client, {"host": host, "origin": f"http://{host}"})


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:3000", "http://localhost:8904", "http://[", "", "file://"],
)
@pytest.mark.parametrize("any_name", [False, True])
def test_another_page_may_not_use_this_one(origin: str, any_name: bool) -> None:
    client = _guarded(_own(any_name=any_name))
    assert client.get("/", headers={"origin": origin}).status_code == 403
    assert not _streams(client, {"origin": origin})


def test_a_proxys_name_is_answered_where_the_config_says_so() -> None:
    proxy = {"origin": "https://label.example.com"}
    client = _guarded(_own("Label.example.com"))
    assert _streams(client, proxy | {"host": "label.example.com"}), "a proxy that passes the name on"
    assert _streams(client, proxy), "a proxy that puts its own in its place"
    assert not _streams(_guarded(_own()), proxy | {"host": "label.example.com"})
    assert _streams(_guarded(_own(any_name=True)), proxy | {"host": "label.example.com"}), "the token is the guard"


def test_a_name_of_a_proxy_is_a_bare_one() -> None:
    given = {"store": "x.db", "answers": {"kind": "file", "path": "x.jsonl"}}
    assert LabelConfig.model_validate(given | {"allowed_hosts": ["a.example"]}).allowed_hosts == ("a.example",)
    for name in ("https://a.example", "a.example:80", "*", ""):
        with pytest.raises(ValidationError, match=r"bare names|at least 1 character"):
            LabelConfig.model_validate(given | {"allowed_hosts": [name]})


@pytest.fixture
def tokened() -> TestClient:
    return _guarded(Middleware(TokenGate, token=TOKEN))


@pytest.mark.parametrize("address", ["/", "/?token=wrong", "/?token=", "/media/x", "/?token=" + "x" * 19])
def test_without_the_token_nothing_is_shown(tokened: TestClient, address: str) -> None:
    answer = tokened.get(address)
    assert answer.status_code == 401
    assert "inside" not in answer.text
    assert not _streams(tokened, {})


def test_the_token_becomes_a_cookie_and_leaves_the_address(tokened: TestClient) -> None:
    answer = tokened.get(f"/?token={TOKEN}&name=anna", follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"] == "?name=anna"
    assert "httponly" in answer.headers["set-cookie"].lower()
    assert TOKEN not in answer.headers["set-cookie"]
    assert tokened.get("/").text == "inside"
    assert _streams(tokened, {})


@pytest.mark.parametrize("foreign", ['a b"=1', "x=é", "=", "a[1]=2", "(x)=y", '"', "{json:1}", "rlhf_token_8904=other"])
@pytest.mark.parametrize("first", [True, False])
def test_a_cookie_of_another_page_locks_nobody_out(tokened: TestClient, foreign: str, first: bool) -> None:
    entered = tokened.get(f"/?token={TOKEN}", follow_redirects=False).headers["set-cookie"].split(";")[0]
    tokened.cookies.clear()
    both = [foreign, entered] if first else [entered, foreign]
    sent = "; ".join(both).encode("latin-1")
    assert tokened.get("/", headers={"cookie": sent}).text == "inside"  # type: ignore[dict-item]
    assert tokened.get("/", headers={"cookie": foreign.encode("latin-1")}).status_code == 401  # type: ignore[dict-item]
