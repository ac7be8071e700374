"""Hiding secrets in texts and configs."""

import html
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus

from rlhf_ray.redaction.values import is_secret_name, is_word, secret_values

HIDDEN = "[hidden]"
SHORTEST_TOKEN = 16
"""Of a user in a URL that stands without a password."""

_SECRET_KEY = re.compile(r"(api_?key|token|secret|passw(or)?d|credential|private_?key|authorization)s?$", re.IGNORECASE)
_USER_IN_URL = re.compile(r"(?<=://)[^\s/?#\"'<>\\]+(?=@)")
_PARAMETER = re.compile(r"(?<=[?&;])([A-Za-z0-9_.%-]{1,64})=([^\s&;#\"'<>\\]*[^\s&;#\"'<>\\:,.)])")
_SIGNATURE = re.compile(r"(?:^|[-_])(?:sig|signature|auth)$", re.IGNORECASE)
_BEARER = re.compile(r"(?i)(?<![a-z])(bearer|basic)\s+(?=[a-z._~+/=-]*\d)[a-z0-9._~+/-]{16,}=*")

TOKEN_FORMS = "|".join(
    [
        r"sk-[A-Za-z0-9_-]{20,}",
        r"gh[pousr]_[A-Za-z0-9]{30,}",
        r"github_pat_[A-Za-z0-9_]{22,}",
        r"glpat-[A-Za-z0-9_-]{20,}",
        r"hf_[A-Za-z0-9]{30,}",
        r"xox[abeoprs]-[A-Za-z0-9-]{10,}",
        r"(?:AKIA|ASIA)[0-9A-Z]{16}",
        r"AIza[0-9A-Za-z_-]{35}",
        r"LTAI[0-9A-Za-z]{12,30}",
        r"AKID[0-9A-Za-z]{30,}",
        r"[rs]k_(?:live|test)_[0-9A-Za-z]{16,}",
        r"npm_[0-9A-Za-z]{36}",
        r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
    ]
)
"""Access tokens that are known by how they begin."""
_KNOWN_TOKEN = re.compile(rf"(?<![A-Za-z0-9])(?:{TOKEN_FORMS})")
_TOKEN_BEGINS = ("sk-", "gh", "glpat-", "hf_", "xox", "AKI", "ASIA", "AIza", "LTAI", "k_live", "k_test", "npm_", "eyJ")


def redact_text(text: str) -> str:
    """Return the text without secrets of this process, nor what is one by its form, in URLs and elsewhere.

    That is: values of secret variables; users with passwords, and parameters such as `token=`, of URLs; tokens whose
    beginning is known (`hf_...`); what follows `Bearer`.
    """
    return hide_forms(hide_values(text))


def hide_forms(text: str) -> str:
    """Return the text without what is a secret by its form, whichever process knows it."""
    if "://" in text:
        text = _USER_IN_URL.sub(lambda found: _hide_user(found[0]), text)
    if "=" in text and ("?" in text or "&" in text):
        text = _PARAMETER.sub(
            lambda found: f"{found[1]}={HIDDEN}" if _is_secret_parameter(found[1], found[2]) else found[0], text
        )
    if any(begin in text for begin in _TOKEN_BEGINS):
        text = _KNOWN_TOKEN.sub(lambda found: HIDDEN if _is_random(found[0]) else found[0], text)
    return _BEARER.sub(lambda found: f"{found[1]} {HIDDEN}", text)


def hide_values(text: str) -> str:
    """Return the text without the secrets of this process, which costs microseconds where it has none."""
    forms, pattern = _compiled(secret_values())
    return pattern.sub(HIDDEN, text) if any(form in text for form in forms) else text


def redact(value: Any) -> Any:
    """Return a config with the values of keys such as `api_key` or `password` hidden, and every text redacted."""
    if isinstance(value, Mapping):
        return {key: HIDDEN if _is_secret(key, item) else redact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return redact_text(value) if isinstance(value, str) else value


def each_text(value: Any, hide: Callable[[str], str] = redact_text) -> Any:
    """Return rows or settings with every text redacted, whatever its key is; `hide` says how."""
    if isinstance(value, Mapping):
        return {key: each_text(item, hide) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [each_text(item, hide) for item in value]
    return hide(value) if isinstance(value, str) else value


def holds_known_token(text: str) -> bool:
    """Return whether a token of a known form stands in a text, outside of a URL's user and parameters."""
    outside = _PARAMETER.sub("", _USER_IN_URL.sub("", text))
    return any(_is_random(found[0]) for found in _KNOWN_TOKEN.finditer(outside))


def url_secrets(text: str) -> Iterator[str]:
    """Yield the password and the secret parameters of a URL."""
    if "://" not in text:
        return
    for user in _USER_IN_URL.findall(text):
        if _hide_user(user) == HIDDEN:
            yield user.partition(":")[2] or user
    for name, value in _PARAMETER.findall(text):
        if _is_secret_parameter(name, value):
            yield value


def quoted_address(address: str, characters: int) -> str:
    """Quote the beginning of what should have been a URL, for a message; a password is hidden without a scheme too."""
    scheme = "" if "://" in address else "://"
    return repr(redact_text(f"{scheme}{address}").removeprefix(scheme)[:characters])


def _is_secret(key: Any, value: Any) -> bool:
    return isinstance(value, str) and bool(value) and _SECRET_KEY.search(str(key)) is not None


_HEX = re.compile(r"[0-9a-f]{20}")
"""Of keys that are written in lower case."""


def _is_random(token: str) -> bool:
    """Tell whether it can be a real token: `sk-learn-corpus-of-2024` is none."""
    return any(c.isdigit() for c in token) and (any(c.isupper() for c in token) or _HEX.search(token) is not None)


def _hide_user(user: str) -> str:
    """Hide a user that is as long as a token; a short one alone is a name, as in postgresql://me@host."""
    return user if ":" not in user and len(user) < SHORTEST_TOKEN else HIDDEN


def _is_secret_parameter(name: str, value: str) -> bool:
    return (is_secret_name(name) or _SIGNATURE.search(name) is not None) and not value.isdecimal()


@lru_cache(maxsize=16)
def _compiled(values: frozenset[str]) -> tuple[tuple[str, ...], re.Pattern[str]]:
    """Return all forms in which secrets are written, and what finds them, the longest first."""
    forms = sorted({form for value in values for form in _forms(value)}, key=lambda form: (-len(form), form))
    return tuple(forms), re.compile("|".join(map(_literal, forms)) or r"(?!)")


def _forms(value: str) -> set[str]:
    """Return a secret as it is, and as JSON, Python, a URL and HTML write it."""
    return {
        value,
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        repr(value)[1:-1],
        quote(value.encode("utf-8", "surrogateescape"), safe=""),
        quote(value.encode("utf-8", "surrogateescape")),
        quote_plus(value.encode("utf-8", "surrogateescape")),
        html.escape(value),
        html.escape(value).replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),
    }


def _literal(form: str) -> str:
    return rf"(?<!\w){re.escape(form)}(?!\w)" if is_word(form) else re.escape(form)
