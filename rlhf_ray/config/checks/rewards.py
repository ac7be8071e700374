"""Checks of reward sources, wherever a config names some."""

from collections.abc import Iterator
from urllib.parse import parse_qsl, urlsplit

from rlhf_ray.config.base import Section
from rlhf_ray.config.checks.parts import functions_of, rewards_of
from rlhf_ray.config.jobs.inference import TOTAL_COLUMN, GenerateConfig, ScoreConfig
from rlhf_ray.config.passthrough import holds_secret
from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.config.rewards import HTTPReward, ModelReward

HEADER_SYMBOLS = frozenset("!#$%&'*+-.^_`|~")
"""What a header's name may hold beside letters and digits (RFC 9110)."""
OWN_HEADERS = frozenset({"content-type", "content-length", "host", "accept", "transfer-encoding", "connection"})


def reward_problems(config: Section) -> Iterator[Problem]:
    """Yield what is wrong with the reward sources of a config."""
    yield from _names(config)
    yield from _score_columns(config)
    for key, source in rewards_of(config).items():
        if isinstance(source, HTTPReward):
            yield from _service(key, source)
        if isinstance(source, ModelReward):
            yield from _ensemble(key, source)
    if isinstance(config, GenerateConfig):
        yield from _safety(config)


def _names(config: Section) -> Iterator[Problem]:
    seen: dict[str, KeyPath] = {}
    listed = {key: source for key, source in rewards_of(config).items() if isinstance(key[-1], int)}
    for key, source in listed.items():
        if source.name in seen:
            yield Problem((*key, "name"), f"{source.name!r} also names {'.'.join(map(str, seen[source.name]))}")
        seen.setdefault(source.name, key)
    for key, function in functions_of(config).items():
        file, colon, name = function.rpartition(":")
        if not (colon and file.endswith(".py") and name.isidentifier()):
            yield Problem(key, f"is written file.py:name, not {function!r}")


def _ensemble(key: KeyPath, source: ModelReward) -> Iterator[Problem]:
    if source.disagreement_penalty and not source.ensemble:
        yield Problem(
            (*key, "disagreement_penalty"), "one model cannot disagree with itself; name others in `ensemble`"
        )
    members = [source.path, *source.ensemble]
    for place, path in enumerate(source.ensemble):
        if path in members[: place + 1]:
            yield Problem((*key, "ensemble", place), f"{path} is a member already")


def _score_columns(config: Section) -> Iterator[Problem]:
    if not isinstance(config, ScoreConfig):
        return
    alone = len(config.rewards) == 1 and config.rewards[0].weight == 1
    for index, source in enumerate(config.rewards):
        key: KeyPath = ("rewards", index, "name")
        if source.name == TOTAL_COLUMN and not alone:
            yield Problem(key, f"{TOTAL_COLUMN!r} is the column of the weighted sum; give this source another name")
        if source.name in {"prompt", "completion"}:
            yield Problem(key, f"{source.name!r} is a column of the rows; give this source another name")


def _service(key: KeyPath, source: HTTPReward) -> Iterator[Problem]:
    # Messages must not repeat what may be a credential.
    if "@" in _authority(source.url) or any(holds_secret(name.lower()) for name, _ in parse_qsl(_query(source.url))):
        yield Problem((*key, "url"), "holds a credential, which a log would show; name its variable in secret_variable")
    elif not _is_address(source.url):
        yield Problem((*key, "url"), f"is written http://host:port/path or https://..., not {source.url!r}")
    header = source.secret_header
    if not header or not all(c.isascii() and (c.isalnum() or c in HEADER_SYMBOLS) for c in header):
        yield Problem((*key, "secret_header"), f"{header!r} cannot be the name of an HTTP header")
    elif header.lower() in OWN_HEADERS:
        yield Problem((*key, "secret_header"), f"{header!r} is set by the request itself; name another header")


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


def _safety(config: GenerateConfig) -> Iterator[Problem]:
    safety = config.safety
    if safety is None:
        return
    if safety.action == "resample" and config.sampling.greedy:
        yield Problem(("safety", "action"), "a greedy answer is always the same, so drawing again changes nothing")
    for name, needed in (("resamples", "resample"), ("replacement", "replace")):
        if name in safety.model_fields_set and safety.action != needed:
            yield Problem(("safety", name), f"has no effect with action {safety.action}; set action to {needed}")
