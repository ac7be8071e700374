"""Engines behind the pages of annotators: two sides of a comparison have roles of their own."""

from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from rlhf_ray.cluster.placement import lay_out
from rlhf_ray.config.jobs.labelling import CompareConfig, RolloutAnswers
from rlhf_ray.jobs.people import engines


@pytest.mark.parametrize("sides", [1, 2])
def test_sides_do_not_share_a_name(sides: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = {"kind": "rollout", "model": {"path": "m"}, "max_prompt_tokens": 8}
    config = CompareConfig.model_validate(
        {"store": "s.db", "prompts": {"path": "p.jsonl"}, "a": source, "b": source, "groups": {"main": {}}}
    )
    layout = lay_out(config.groups, {})

    class Role:
        def begin(self, _: str) -> None: ...
        def ready(self) -> None: ...

    def place(cluster: Any, model: Any, rollout: Any, *, name: str, **_: Any) -> Role:
        layout.add(name, rollout)
        return Role()

    @contextmanager
    def pool(*_: Any, **__: Any) -> Any:
        yield None

    for name in (
        "check_language_model",
        "check_engine",
        "load_tokenizer",
        "Encoder",
        "RolloutWriter",
        "model_identity",
    ):
        monkeypatch.setattr(engines, name, lambda *_, **__: "")
    monkeypatch.setattr(engines, "SingleTurn", lambda *_: None)
    monkeypatch.setattr(engines, "connect", lambda *_: nullcontext())
    monkeypatch.setattr(engines, "place_engines", place)
    monkeypatch.setattr(engines, "open_pool", pool)
    sources = [one for one in (config.a, config.b)[:sides] if isinstance(one, RolloutAnswers)]
    with engines.open_rollout_writers(sources, config) as writers:
        assert len(writers) == sides
