"""A config names secrets by their variables: one that stands in it is refused, or hidden where the config is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_ray import cli
from rlhf_ray.config.data import RowSource
from rlhf_ray.config.jobs.judges import ServiceJudge
from rlhf_ray.config.jobs.row_sources import HttpSource
from rlhf_ray.config.jobs.supervised import SFTConfig
from rlhf_ray.config.jobs.tools import SubmitConfig
from rlhf_ray.config.reading.loading import dump_config
from tests.planted_secrets import PLANTED

SECRET = PLANTED["PLANTED_API_KEY"]
HUB_TOKEN = "hf_" + "aB3" * 12
SIGNED = "https://bucket.s3.amazonaws.com/rows.jsonl?X-Amz-Credential=AKIA&X-Amz-Signature="

WriteConfig = Callable[[dict[str, Any]], Path]


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        ({"tracking": {"project": SECRET}}, "tracking.project", "holds the value of the environment variable PLANTED_"),
        ({"rewards.0.path": f"models/{SECRET}/x"}, "rewards.0.path", "PLANTED_API_KEY, which by its name is a secret"),
        ({"rollout": {"engine": {"served_model_name": SECRET}}}, "rollout.engine", "PLANTED_API_KEY"),
        ({"tracking": {"project": HUB_TOKEN}}, "tracking.project", "holds an access token"),
        (
            {"rollout": {"engine": {"hf_token": "x"}}},
            "rollout.engine.hf_token",
            "credentials come from the environment",
        ),
        # A run's own config, which has the address without its credentials.
        ({"data.path": "https://[hidden]@host/rows.jsonl"}, "data.path", "write the whole address again"),
        # Half of a secret is one too: a wrong value is quoted up to some length.
        ({"steps": "x" * 45 + SECRET}, "steps", "valid integer, not 'xxx"),
    ],
)
def test_a_secret_in_a_config_is_refused_and_not_shown(
    changes: dict[str, Any], key: str, words: str, write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ppo", str(write_config(changes))]) == 2
    shown = capsys.readouterr()
    assert f"{key}: " in shown.err
    assert words in shown.err
    assert "pl4nted" not in shown.err + shown.out
    assert HUB_TOKEN not in shown.err + shown.out


def test_on_the_command_line_too(write_config: WriteConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ppo", str(write_config({})), "--tracking.project", SECRET]) == 2
    assert cli.main(["ppo", str(write_config({})), SECRET]) == 2
    shown = capsys.readouterr().err
    assert "--tracking.project: holds the value of the environment variable PLANTED_API_KEY" in shown
    assert "pl4nted" not in shown


@pytest.mark.parametrize("value", [HUB_TOKEN, "Bearer 123", "a-b"])
def test_every_setting_that_names_a_variable_takes_nothing_else(value: str) -> None:
    for make in (
        lambda: HttpSource(kind="http", name="x", url="http://h", token_variable=value),
        lambda: ServiceJudge(kind="service", name="x", url="http://h", model="m", token_variable=value),
    ):
        with pytest.raises(ValueError, match="is the name of an environment variable, not the secret itself"):
            make()


def test_an_ordinary_word_that_is_a_password_elsewhere_is_no_secret_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "prompts")
    assert RowSource(path="data/prompts/all.jsonl").path == "data/prompts/all.jsonl"


@pytest.mark.parametrize("url", [f"{SIGNED}0a1b2c3d", "https://me:s3same-Opens@host/rows.jsonl"])
def test_credentials_of_an_address_are_used_and_not_kept(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = SFTConfig.model_validate({"output": "o", "model": {"path": "m"}, "data": {"path": url}})
    assert config.data.path == url
    kept = yaml.safe_load(dump_config(config))["data"]["path"]
    assert "[hidden]" in kept
    assert "0a1b2c3d" not in kept
    assert "s3same" not in kept
    assert SFTConfig.model_validate(yaml.safe_load(dump_config(config))).data.path == kept


@pytest.mark.parametrize("address", ["me:s3same-Opens@host/rows", "ftp://me:s3same-Opens@host", "h?token=s3same-Opens"])
def test_a_wrong_address_is_quoted_without_its_password(address: str) -> None:
    for make in (
        lambda: HttpSource(kind="http", name="x", url=address),
        lambda: SubmitConfig(job=["sft"], address=address),
    ):
        with pytest.raises(ValueError, match="not '") as caught:
            make()
        assert "s3same" not in str(caught.value).split("[type=")[0]
