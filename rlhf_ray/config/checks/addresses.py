"""Checks of addresses: those of services that score, and those in which a run has hidden a credential."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from rlhf_ray.config.passthrough import holds_secret
from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.redaction.texts import HIDDEN

if TYPE_CHECKING:
    from rlhf_ray.config.rewards import HTTPReward

HEADER_SYMBOLS = frozenset("!#$%&'*+-.^_`|~")
"""What a header's name may hold beside letters and digits (RFC 9110)."""
OWN_HEADERS = frozenset({"content-type", "content-length", "host", "accept", "transfer-encoding", "connection"})


def service_problems(source: "HTTPReward") -> Iterator[Problem]:
    """Find a wrong address of a service, and a wrong header of its secret; keys are the source's own."""
    # Messages must not repeat what may be a credential.
    if "@" in _authority(source.url) or any(holds_secret(name.lower()) for name, _ in parse_qsl(_query(source.url))):
        yield Problem(("url",), "holds a credential, which a log would show; name its variable in secret_variable")
    elif not _is_address(source.url):
        yield Problem(("url",), f"is written http://host:port/path or https://..., not {source.url!r}")
    header = source.secret_header
    if not header or not all(c.isascii() and (c.isalnum() or c in HEADER_SYMBOLS) for c in header):
        yield Problem(("secret_header",), f"{header!r} cannot be the name of an HTTP header")
    elif header.lower() in OWN_HEADERS:
        yield Problem(("secret_header",), f"{header!r} is set by the request itself; name another header")


def _authority(url: str) -> str:
    """Host and port with what may stand before them, of an address that need not be whole."""
    return (url.partition("//")[2] or url).partition("/")[0]


def _query(url: str) -> str:
    return url.partition("?")[2].partition("#")[0]


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme.lower() in {"http", "https"}
            and bool(parts.hostname)
            and parts.port != 0
            and url.isprintable()
            and " " not in url
        )
    except ValueError:
        return False


def hidden_credentials(config: Any) -> Iterator[Problem]:
    """Find addresses from the `config.yaml` of a run, in which their credentials are hidden."""
    for key, text in _texts((), config):
        if f"{HIDDEN}@" in text or f"={HIDDEN}" in text:
            yield Problem(key, f"{HIDDEN} stands where a run left a credential out; write the whole address again")


def _texts(key: KeyPath, value: Any) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts((*key, name), inner)
