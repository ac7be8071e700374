"""Who gets an answer: requests under the page's own name, from the page itself, with the token where one is asked.

A name that a stranger's web site gives this machine's address (DNS rebinding) brings that site's scripts to a page that
has no token; so does a WebSocket, which browsers open across origins.
"""

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from rlhf_ray.config.jobs.labelling import LOOPBACK

CLOSE_REFUSED = 4403
"""Close code of a WebSocket: 4000 and above are an application's own."""
COOKIE = "rlhf_token"
REFUSED = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>rlhf</title><style>
body { font: 1rem/1.6 system-ui, sans-serif; color: #31333f; background: #f6f7f9; }
form { box-sizing: border-box; max-width: 26rem; margin: 18vh auto; padding: 1.5rem; background: white;
  border: 1px solid #d9dbe1; border-radius: 0.6rem; }
p { margin: 0 0 1rem; }
input, button { box-sizing: border-box; width: 100%; padding: 0.6rem 0.8rem; font: inherit; border-radius: 0.4rem; }
input { margin-bottom: 0.8rem; border: 1px solid #b6bac4; }
button { border: 0; color: white; background: #2456a6; cursor: pointer; }
</style>
<form><p>需要访问令牌（启动时显示在终端里）。<br>This page needs the token that was shown when it was started.</p>
<input name="token" type="password" aria-label="token" autofocus required><button>OK</button></form>
"""


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
    """Return the name in a URL, without port and brackets; empty where it has none or is no URL."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


class TokenGate:
    """ASGI middleware: a request passes with the cookie, which `?token=` in the address gives."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token
        # A digest needs no quoting as a cookie, and gives nobody the token who reads a browser's cookies.
        self._cookie = hashlib.sha256(token.encode()).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let through, redirect with the cookie, or refuse."""
        if scope["type"] not in ("http", "websocket") or self._has_entered(scope):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": CLOSE_REFUSED})
            return
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        if secrets.compare_digest(query.pop("token", "").encode(), self._token.encode()):
            # Without the token in the address it stays out of the history and of what others are shown.
            entered = RedirectResponse(f"?{urlencode(query)}", 303)
            entered.set_cookie(_name(scope), self._cookie, httponly=True, samesite="strict")
            await entered(scope, receive, send)
        else:
            await HTMLResponse(REFUSED, 401)(scope, receive, send)

    def _has_entered(self, scope: Scope) -> bool:
        # Another server on this host, or a page above it, may have set a cookie of the same name.
        return any(secrets.compare_digest(found, self._cookie.encode()) for found in _cookies(scope, _name(scope)))


def _name(scope: Scope) -> str:
    """Return the cookie's name: cookies are shared by all ports of a host, tokens are not."""
    return f"{COOKIE}_{scope['server'][1]}"


def _cookies(scope: Scope, wanted: str) -> Iterator[bytes]:
    """Yield the values of all cookies of a name; those of others may hold anything at all."""
    for name, value in scope["headers"]:
        if name == b"cookie":
            for pair in value.split(b";"):
                key, _, found = pair.strip().partition(b"=")
                if key == wanted.encode():
                    yield found
