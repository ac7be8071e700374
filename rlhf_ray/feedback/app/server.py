"""The web server of the pages: Streamlit on uvicorn, in this process, so that all sessions share one desk."""

import errno
import logging
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_ray.config.errors import BadInput

if TYPE_CHECKING:
    from rlhf_ray.feedback.app.session import AnyDesk

SETTINGS = {
    # Visitors are not developers: no deploy button, no stack traces, no statistics to Streamlit's makers.
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "browser.gatherUsageStats": False,
    "server.headless": True,
    # The bar of buttons has a background of its own, and red is for what went wrong.
    "theme.base": "light",
    "theme.primaryColor": "#2456a6",
    "server.fileWatcherType": "none",
    "server.runOnSave": False,
    "logger.hideWelcomeMessage": True,
}

GRACE_SECONDS = 3
"""How long open pages may finish what they do when the server ends."""

WAITING = 128
"""Connections that may wait to be accepted."""


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that listens, before anything slow begins.

    Raises:
        BadInput: the port is taken or not allowed, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise BadInput(f"host: {host}: {error.strerror or error}") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(WAITING)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise BadInput(
                f"port: {port} on {host} is taken; stop what listens there, or set another: --port"
            ) from None
        key = "port" if error.errno == errno.EACCES else "host"
        raise BadInput(f"{key}: cannot listen on {host}, port {port}: {error.strerror}") from None
    return listening


def serve_page(
    desk: "AnyDesk", listening: socket.socket, token: str | None, allowed_hosts: tuple[str, ...] = ()
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        desk: what the pages work with.
        listening: from `listen`.
        token: that visitors must bring, or None where only this machine can reach the page.
        allowed_hosts: names under which a proxy shows the page.
    """
    import uvicorn
    from starlette.middleware import Middleware
    from streamlit import config
    from streamlit.starlette import App

    from rlhf_ray.feedback.app.gates import AddressGate, TokenGate
    from rlhf_ray.feedback.app.leaving import leaving_route
    from rlhf_ray.feedback.app.session import seat

    seat(desk)
    host, port = listening.getsockname()[:2]
    for name, value in (SETTINGS | {"server.address": host, "server.port": port}).items():
        config.set_option(name, value)
    logging.getLogger("streamlit").setLevel(logging.WARNING)
    gates = [Middleware(AddressGate, names=allowed_hosts, any_name=token is not None)]
    if token is not None:
        gates.append(Middleware(TokenGate, token=token))
    app = App(Path(__file__).with_name("entry.py"), routes=[leaving_route()], middleware=gates)
    settings = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_SECONDS)
    server = uvicorn.Server(settings)
    # Both ways to end a page let the job close what it opened.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        # The server has ended in good order; that is how the page is meant to be closed.
        return
