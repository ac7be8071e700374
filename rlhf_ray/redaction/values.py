"""Which texts are secrets of this process: values of environment variables, by their names or because a config says so.

Nothing heavy is imported: every process of a run has this, the one of a reward function too.
"""

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import unquote, urlsplit

SHORTEST = 6
"""Characters of a value that is hidden. Shorter ones are ordinary words and numbers of a message (`true`, `token`,
`1234`), and are guessed in no time, so that hiding them makes messages unreadable and keeps nothing secret."""

LONGEST_WORD = 16
"""A value of letters alone, or of digits alone, up to this length is hidden only where it stands as a word: a password
`reward` must not blank out a part of `reward_model`."""

_WORDS = frozenset({"KEY", "PAT", "PASS", "PASSPHRASE", "AUTHORIZATION"})
_ENDINGS = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "APIKEY", "ACCESSKEY", "SECRETKEY", "PRIVATEKEY")
"""Also at the end of a longer part, as in PGPASSWORD; what begins with one, as TOKENIZERS_PARALLELISM, is none."""

_PARTS = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])")
_SCHEME = re.compile(r"(?i)(?:bearer|basic|token)\s+(\S.*)", re.DOTALL)
_CONNECTION = re.compile(r"(?:^|_)(?:DSN|CONNECTION_STRING|CONN_STR)$")
_CONNECTION_PASSWORD = re.compile(r"(?i)(?:key|password|pwd|secret|signature|token)\s*=\s*([^;&\s]+)")
_PEM_FRAME = "-----"

NAMES = "RLHF_SECRET_VARIABLES"
"""Variable in which a process tells those that it starts which further variables are secret. No setting: configs name
them. Nothing but the environment reaches all of them: vLLM starts those of its engines itself, and runs start runs."""

_remembered: set[str] = set()


def name_secret(variable: str) -> None:
    """Make the value of an environment variable secret from now on, whatever the variable is called.

    Processes that start later know it too; those on other machines by `named_secrets`.
    """
    os.environ[NAMES] = ",".join(sorted({*_named(), variable}))


def named_secrets() -> dict[str, str]:
    """Return the variable by which a worker knows that it is one, and which further variables are secret."""
    return {NAMES: os.environ.get(NAMES, "")}


def is_worker() -> bool:
    """Return whether this process was started as a part of a run, or by such a one."""
    return NAMES in os.environ


def _named() -> set[str]:
    return set(filter(None, os.environ.get(NAMES, "").split(",")))


def remember_secret(value: str) -> None:
    """Make a text secret in this process from now on, wherever it came from."""
    _remembered.update(_texts_of(value))


@lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Return whether a variable or parameter holds a secret by its name.

    A part of the name says so, as cut by `_`, `-` or a change to capitals: KEY, TOKEN, SECRET, PASSWORD, PASSWD, PASS,
    PASSPHRASE, PAT, CREDENTIAL, AUTHORIZATION, also in the plural; PWD behind another part. PATH, MONKEY and KEYBOARD
    are other words.
    """
    parts = [part.upper() for part in _PARTS.split(name) if part]
    singular = [part.removesuffix("S") if part != "PASS" else part for part in parts]
    if any(part in _WORDS or part.endswith(_ENDINGS) for part in singular):
        return True
    return len(parts) > 1 and "PWD" in parts[1:]


def secret_values() -> frozenset[str]:
    """Return all texts that are secret now: the environment may change while a process runs."""
    found, named = set(_remembered), _named()
    for name, value in _variables():
        if name in named:
            found.update(_texts_of(value))
        elif is_secret_name(name):
            if not _is_no_secret(name, value):
                found.update(_texts_of(value))
        elif "://" in value or _CONNECTION.search(name):
            found.update(text for inner in _passwords_within(name, value) for text in _texts_of(inner))
    return frozenset(found)


def variable_in(text: str) -> str | None:
    """Return the environment variable whose secret value stands in a text; None where there is none.

    Values that may be in a text by chance, words of letters or numbers, are not looked for.
    """
    named = _named()
    for name, value in _variables():
        if name not in named and (not is_secret_name(name) or _is_no_secret(name, value)):
            continue
        if any(secret in text for secret in _texts_of(value) if not is_word(secret)):
            return name
    return None


def _variables() -> Iterator[tuple[str, str]]:
    """Yield the environment's names and values; another thread may change it meanwhile, as an engine's start does."""
    for name in list(os.environ):
        value = os.environ.get(name)
        if value is not None:
            yield name, value


def is_word(value: str) -> bool:
    """Return whether a secret is a word or a number that stands in other texts too."""
    return len(value) <= LONGEST_WORD and (value.isalpha() or value.isdigit())


def _is_no_secret(name: str, value: str) -> bool:
    """Tell whether a variable with such a name holds a path, which messages need, a count of tokens, or names."""
    if name == NAMES:
        return True
    value = value.strip()
    if value.startswith(("/", "~/")):
        # One that begins by chance like a path, as base64 may, is in no folder of this machine.
        return os.path.isdir(os.path.expanduser("/".join(value.split("/")[:2]) or "/"))
    return value.isdecimal() and "TOKENS" in name.upper()


def _texts_of(value: str) -> Iterator[str]:
    """Yield the value as programs print it: whole, without the name of its scheme, and each line of several."""
    whole = value.strip()
    scheme = _SCHEME.fullmatch(whole)
    found = [whole, *([scheme[1].strip()] if scheme else [])]
    lines = [line.strip() for line in whole.splitlines()]
    if len(lines) > 1:
        found += [line for line in lines if len(line) >= LONGEST_WORD and not line.startswith(_PEM_FRAME)]
    return (text for text in found if len(text) >= SHORTEST)


def _passwords_within(name: str, value: str) -> Iterator[str]:
    """Find passwords of a URL, such as that of a proxy, or of a connection string."""
    if "://" in value:
        try:
            password = urlsplit(value.strip()).password
        except ValueError:
            return
        if password:
            yield from {password, unquote(password)}
    if _CONNECTION.search(name):
        yield from _CONNECTION_PASSWORD.findall(value)
