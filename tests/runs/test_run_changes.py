"""Which settings of a run changed, and which of them it does not allow."""

from typing import Any

import pytest

from rlhf_ray.runs.changes import changes_between


def said(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [str(change) for change in changes_between(before, after)]


def test_each_setting_is_named_as_deep_as_it_is_one() -> None:
    before = {
        "output": "a",
        "steps": 4,
        "policy": {"learning_rate": 1e-6, "schedule": "linear", "lora": None},
        "rewards": [{"name": "one", "weight": 1.0}],
        "rollout": {"stop": ["a"], "deterministic": True},
    }
    after = {
        "output": "./a",
        "steps": 5,
        "policy": {"learning_rate": 5e-7, "schedule": "linear", "lora": None},
        "rewards": [{"name": "one", "weight": 2.0}, {"name": "two"}],
        "rollout": {"stop": ["a", "b"], "deterministic": False},
        "evaluation": None,
    }
    assert said(before, after) == [
        "steps: 4 -> 5",
        "policy.learning_rate: 1e-06 -> 5e-07",
        "rewards.0.weight: 1.0 -> 2.0",
        "rewards.1: (not there) -> {'name': 'two'}",
        "rollout.stop: ['a'] -> ['a', 'b']",
        "rollout.deterministic: true -> false",
        "evaluation: (not there) -> null",
    ]
    assert said(before, before) == []


def test_long_values_are_cut() -> None:
    [line] = said({"text": "a" * 500}, {"text": None})
    assert line == f"text: {'a' * 60}... -> null"


@pytest.mark.parametrize(
    ("before", "after", "locked"),
    [
        ({"seed": 1}, {"seed": 2}, True),
        ({"model": {"path": "a"}}, {"model": {"path": "b"}}, True),
        ({"data": {"limit": None}}, {"data": {"limit": 4}}, True),
        ({"policy": {"lora": None}}, {"policy": {"lora": {"r": 8}}}, True),
        ({"trainer": {"lora": {"r": 4}}}, {"trainer": {"lora": {"r": 8}}}, True),
        ({"critics": {"value": {"lora": {"r": 4}}}}, {"critics": {"value": {"lora": {"r": 8}}}}, True),
        ({"critics": {"value": {}}}, {"critics": {"value": {}, "cost": {}}}, True),
        ({"critics": {"value": {"workers": 1}}}, {"critics": {"value": {"workers": 2}}}, False),
        ({"policy": {"workers": 1}}, {"policy": {"workers": 2}}, False),
        ({"evaluation": {"data": {"path": "a"}}}, {"evaluation": {"data": {"path": "b"}}}, False),
        ({"rewards": [{"path": "a"}]}, {"rewards": [{"path": "b"}]}, False),
    ],
)
def test_what_a_run_has_one_value_of(before: dict[str, Any], after: dict[str, Any], locked: bool) -> None:
    [change] = changes_between(before, after)
    assert change.locked == locked
