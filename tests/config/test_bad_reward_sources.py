"""Services and safety filters that cannot work: one line that names the key, exit code 2, and no secret shown."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_ray import cli

HTTP = {"kind": "http", "url": "https://judge.example/score"}
SECRET = "Bearer sesame-0123"

SERVICES: dict[str, tuple[dict[str, Any], str, str]] = {
    # name: (keys of the source, key that the line names, words in the line)
    "no scheme": ({"url": "judge.example/score"}, "url", "is written http://host:port/path"),
    "another scheme": ({"url": "ftp://judge.example"}, "url", "is written http://"),
    "no host": ({"url": "http:///score"}, "url", "is written http://"),
    "a port that is none": ({"url": "http://judge:99999/"}, "url", "is written http://"),
    "a space": ({"url": "http://judge/a b"}, "url", "is written http://"),
    "a password in the url": ({"url": "http://me:sesame-0123@judge/"}, "url", "name its variable in secret_variable"),
    "a password beside a bad port": ({"url": "http://me:sesame-0123@judge:99999/"}, "url", "holds a credential"),
    "a password without scheme": ({"url": "me:sesame-0123@judge/score"}, "url", "holds a credential"),
    "a key in the url": ({"url": "http://judge/?api_key=sesame-0123"}, "url", "holds a credential"),
    "the secret itself": ({"secret_variable": SECRET}, "secret_variable", "not the secret itself"),
    "a header of two words": ({"secret_header": "X Key"}, "secret_header", "cannot be the name of an HTTP header"),
    "a header of the request's": ({"secret_header": "Host"}, "secret_header", "set by the request itself"),
    "no samples": ({"batch_size": 0}, "batch_size", "greater than 0"),
    "no time": ({"timeout_seconds": 0}, "timeout_seconds", "or equal to 0.001, not 0"),
    "a function's key": ({"function": "r.py:f"}, "function", "is a key of kind function, but the kind here is http"),
}

FILTERS: dict[str, tuple[dict[str, Any], str, str]] = {
    # name: (changed keys of a generate config, key that the line names, words in the line)
    "no cost": ({"safety": {}}, "safety.cost", "missing"),
    "no such action": ({"safety": {"cost": HTTP, "action": "reject"}}, "safety.action", "'refuse', 'replace' or"),
    "greedy answers again": (
        {"safety": {"cost": HTTP, "action": "resample"}, "sampling": {"greedy": True}},
        "safety.action",
        "a greedy answer is always the same",
    ),
    "replacement of what is refused": (
        {"safety": {"cost": HTTP, "replacement": "-"}},
        "safety.replacement",
        "set action to replace",
    ),
    "nothing in its place": (
        {"safety": {"cost": HTTP, "action": "replace", "replacement": ""}},
        "safety.replacement",
        "must not be empty",
    ),
    "resamples without resampling": ({"safety": {"cost": HTTP, "resamples": 2}}, "safety.resamples", "no effect"),
    "a cost that is no url": (
        {"safety": {"cost": HTTP | {"url": "judge"}}},
        "safety.cost.url",
        "is written http://",
    ),
    "a cost without its file": (
        {"safety": {"cost": {"kind": "function", "function": "cost.py:f"}}},
        "safety.cost.function",
        "no such file: cost.py",
    ),
    "a cost on no group": ({"safety": {"cost": HTTP | {"on": "mian"}}}, "safety.cost.on", "Perhaps you meant main?"),
}


def only_line(verb: str, path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main([verb, str(path)]) == 2
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert "sesame" not in captured.err + captured.out
    return line


@pytest.mark.parametrize("case", SERVICES)
def test_services(case: str, write_config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    changes, key, words = SERVICES[case]
    line = only_line("ppo", write_config({"rewards": [HTTP | changes]}), capsys)
    assert f"rewards.0.{key}: " in line
    assert words in line


@pytest.mark.parametrize("case", FILTERS)
def test_filters(case: str, write_config: Any, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, key, words = FILTERS[case]
    whole = yaml.safe_load(write_config({}).read_text())
    settings = {name: whole[name] for name in ("model", "data")} | {"output": "answers.jsonl"} | changes
    path = workplace / "generate.yaml"
    path.write_text(yaml.safe_dump(settings))
    line = only_line("generate", path, capsys)
    assert f" {key}: " in line
    assert words in line


@pytest.mark.usefixtures("workplace")
def test_a_secret_that_is_not_set_is_found_before_ray_starts(
    write_config: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_ray.config.errors import BadInput
    from rlhf_ray.config.rewards import HTTPReward
    from rlhf_ray.runs.model_checks import check_reward_source

    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(BadInput, match=r"rewards\.0\.secret_variable: JUDGE_KEY is not set"):
        check_reward_source("rewards.0", HTTPReward(url="http://judge/", secret_variable="JUDGE_KEY"))
