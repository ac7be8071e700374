"""Checks across the fields of `rlhf evaluate`."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from rlhf_ray.config.errors import perhaps
from rlhf_ray.config.jobs.judges import RewardJudge, ServiceJudge
from rlhf_ray.config.jobs.row_sources import FILE_NAME
from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.config.rewards import ORACLE, TOTAL_COLUMN
from rlhf_ray.redaction.texts import quoted_address

if TYPE_CHECKING:
    from rlhf_ray.config.jobs.evaluate import EvaluateConfig


def evaluate_problems(config: "EvaluateConfig") -> Iterator[Problem]:
    """Yield what contradicts itself in the config of an evaluation."""
    yield from _names(config)
    yield from _sources(config)
    yield from _divergence(config)
    yield from _judges(config)
    if not (config.rewards or config.oracle or config.reference or config.texts or config.judges):
        yield Problem(("rewards",), "nothing to compare by: give rewards, oracle, reference, texts or judges")


def _names(config: "EvaluateConfig") -> Iterator[Problem]:
    keys: Iterable[tuple[KeyPath, str]] = chain(
        ((("models", name), name) for name in config.models),
        ((("judges", index, "name"), judge.name) for index, judge in enumerate(config.judges)),
    )
    for key, name in keys:
        if not FILE_NAME.fullmatch(name):
            yield Problem(key, f"names a file: letters, digits, `.`, `-` and `_`, not {name!r}")
    for field, chosen in (("baseline", config.baseline), ("reference", config.reference)):
        if chosen is not None and chosen not in config.models:
            named = perhaps(chosen, config.models) or f"; models has {', '.join(config.models)}"
            yield Problem((field,), f"no model is named {chosen!r}{named}")


def _sources(config: "EvaluateConfig") -> Iterator[Problem]:
    alone = len(config.rewards) == 1 and config.rewards[0].weight == 1
    for index, source in enumerate(config.rewards):
        if source.name == ORACLE:
            yield Problem(("rewards", index, "name"), f"{ORACLE!r} is the name of the oracle; choose another")
        if source.name == TOTAL_COLUMN and not alone:
            yield Problem(
                ("rewards", index, "name"), f"{TOTAL_COLUMN!r} is the weighted sum; give this source another name"
            )


def _divergence(config: "EvaluateConfig") -> Iterator[Problem]:
    sampling = config.sampling
    if config.reference is not None and (sampling.greedy or sampling.top_k or sampling.top_p < 1):
        yield Problem(
            ("reference",),
            "KL is a mean over what a model itself would say, which greedy, top_k and top_p change; "
            "leave them out, or the reference",
        )


def _judges(config: "EvaluateConfig") -> Iterator[Problem]:
    known = [source.name for source in config.rewards] + ([ORACLE] if config.oracle else [])
    seen: dict[str, int] = {}
    for index, judge in enumerate(config.judges):
        key: KeyPath = ("judges", index)
        if judge.name in seen:
            yield Problem((*key, "name"), f"{judge.name!r} also names judges.{seen[judge.name]}")
        seen.setdefault(judge.name, index)
        if isinstance(judge, RewardJudge):
            if judge.source is not None and judge.source not in known:
                named = perhaps(judge.source, known) or f"; there are {', '.join(known) or 'none'}"
                yield Problem((*key, "source"), f"no reward source is named {judge.source!r}{named}")
            if judge.source is None and not config.rewards:
                yield Problem((*key, "source"), "there are no rewards; name `oracle`, or give rewards")
        if isinstance(judge, ServiceJudge):
            if not judge.url.startswith(("http://", "https://")):
                yield Problem((*key, "url"), f"begins with http:// or https://, not {quoted_address(judge.url, 40)}")
            missing = [mark for mark in ("[[A]]", "[[B]]", "[[C]]") if mark not in judge.instruction]
            if missing:
                yield Problem(
                    (*key, "instruction"), f"must say that the answer ends in {', '.join(missing)} for that verdict"
                )
    if config.judges and len(config.models) < 2:
        yield Problem(("judges",), "judges compare models, but there is one model only")
