"""Requests are answered only under the page's own name, and only to the page itself.

A name that a stranger's web site gives this machine's address (DNS rebinding) brings that site's scripts to a page that
has no token; so does a WebSocket, which browsers open across origins.
"""

from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from rlhf_ray.config.jobs.labelling import LOOPBACK

CLOSE_REFUSED = 4403
"""Close code of a WebSocket: 4000 and above are an application's own."""


class AddressGate:
    """ASGI middleware: refuses foreign names in `Host` and foreign pages in `Origin`."""

    def __init__(self, app: ASGIApp, names: Sequence[str], any_name: bool) -> None:
        """Guard an app.

        Args:
            app: behind the gate.
            names: under which a proxy shows the page, besides those of loopback.
            any_name: whether any `Host` will do, because a token guards the page.
        """
        self._app = app
        self._names = frozenset(name.lower() for name in names)
        self._any_name = any_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let through or refuse."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        reason = self._refusal(scope)
        if reason is None:
            # The inner server would look up this machine's address outside before it compares an origin itself.
            checked = [(name, value) for name, value in scope["headers"] if name != b"origin"]
            await self._app({**scope, "headers": checked}, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": CLOSE_REFUSED})
        else:
            await PlainTextResponse(reason, 403)(scope, receive, send)

    def _refusal(self, scope: Scope) -> str | None:
        """Return why a request is refused; None where it is not."""
        hosts = list(_header(scope, b"host"))
        if len(hosts) != 1:
            return "a request names one host\n"
        host = hosts[0]
        if not self._any_name and not self._is_own(_name_of(f"//{host}")):
            return "this page is not shown under that name; the setting allowed_hosts names those of a proxy\n"
        for origin in _header(scope, b"origin"):
            # A proxy that speaks TLS has another scheme than the page behind it.
            if origin.partition("://")[2] != host and _name_of(origin) not in self._names:
                return "another page may not use this one\n"
        return None

    def _is_own(self, name: str) -> bool:
        return LOOPBACK.fullmatch(name) is not None or name in self._names


def _header(scope: Scope, wanted: bytes) -> Iterator[str]:
    return (value.decode("latin-1").strip().lower() for name, value in scope["headers"] if name == wanted)


def _name_of(url: str) -> str:
    """The name in a URL, without port and brackets; empty where it has none or is no URL."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
