"""Which environment variables hold secrets, and which texts of theirs are hidden."""

import os
from pathlib import Path

import pytest

from rlhf_ray.redaction import values
from rlhf_ray.redaction.texts import HIDDEN, hide_values
from rlhf_ray.redaction.values import SHORTEST, is_secret_name, name_secret, named_secrets, secret_values, variable_in

SECRET = "s3same-Opens-It"

SECRET_NAMES = """
    WANDB_API_KEY AWS_SECRET_ACCESS_KEY AWS_ACCESS_KEY_ID AWS_SESSION_TOKEN HF_TOKEN GITHUB_PAT PAT MY_PAT_2 KEY
    HF_TOKENS DB_PASSWORD PGPASSWORD MYSQL_PWD SMTP_PASS SSH_PASSPHRASE ROOT_PASSWD AZURE_CREDENTIAL GCP_CREDENTIALS
    CLIENT_SECRET OPENAI_APIKEY apiKey clientSecret judge-token RAY_AUTH_TOKEN HTTP_AUTHORIZATION SECRETS
"""
OTHER_NAMES = """
    PATH PYTHONPATH LD_LIBRARY_PATH PATHS PATTERN MONKEY KEYBOARD KEYMAP TURKEY TOKENIZERS_PARALLELISM TOKENIZER
    COMPATIBLE PASSED PWD OLDPWD HOME SECRETARY RAY_AUTH_MODE COMPASS BYPASS_PROXY PASSIVE
"""


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if is_secret_name(name):
            monkeypatch.delenv(name)
    monkeypatch.setenv(values.NAMES, "")
    monkeypatch.setattr(values, "_remembered", set())


@pytest.mark.parametrize("name", SECRET_NAMES.split())
def test_names_that_say_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_secret_name(name)
    monkeypatch.setenv(name, SECRET)
    assert hide_values(f"refused: {SECRET}.") == f"refused: {HIDDEN}."


@pytest.mark.parametrize("name", OTHER_NAMES.split())
def test_names_that_only_look_like_it(name: str) -> None:
    assert not is_secret_name(name)


def test_a_variable_that_a_config_names_is_secret_whatever_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_LOGIN", SECRET)
    assert hide_values(SECRET) == SECRET
    name_secret("JUDGE_LOGIN")
    assert hide_values(SECRET) == HIDDEN
    assert named_secrets() == {values.NAMES: "JUDGE_LOGIN"}, "what workers on other machines are told"


@pytest.mark.parametrize(
    ("value", "text", "shown"),
    [
        ("x" * (SHORTEST - 1), f"{'x' * (SHORTEST - 1)}", f"{'x' * (SHORTEST - 1)}"),
        ("a1b2c3", "=a1b2c3=", f"={HIDDEN}="),
        # A weak password is hidden as a word, and does not make other words illegible.
        ("reward", "reward_model rewards: reward", f"reward_model rewards: {HIDDEN}"),
        ("123456", "1234567 tokens of 123456", f"1234567 tokens of {HIDDEN}"),
        # What a service echoes is often the token without the scheme.
        (f"Bearer {SECRET}", f"bad token {SECRET}", f"bad token {HIDDEN}"),
        (f"  {SECRET}\n", f"'{SECRET}'", f"'{HIDDEN}'"),
        (f"-----BEGIN KEY-----\n{SECRET}{SECRET}\n-----END KEY-----", SECRET * 2, HIDDEN),
    ],
)
def test_what_of_a_value_is_hidden(value: str, text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", value)
    assert hide_values(text) == shown


def test_paths_and_counts_under_such_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    monkeypatch.setenv("VLLM_MAX_NUM_BATCHED_TOKENS", "131072")
    assert secret_values() == frozenset()
    monkeypatch.setenv("BASE64_KEY", "/9j4AAQSkZJRgABAQ==")
    assert secret_values() == {"/9j4AAQSkZJRgABAQ=="}


def test_passwords_within_addresses_are_secret_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:{SECRET}@proxy:3128")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:p%40ss-w0rd@db/labels")
    monkeypatch.setenv("STORAGE_CONNECTION_STRING", "AccountName=lab;AccountKey=Zm9vYmFyMTIz==;Suffix=core")
    assert secret_values() == {SECRET, "p%40ss-w0rd", "p@ss-w0rd", "Zm9vYmFyMTIz=="}


def test_the_variable_of_a_secret_is_named_but_not_that_of_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", "postgres")
    assert variable_in("postgresql://postgres@db") is None
    monkeypatch.setenv("MY_TOKEN", SECRET)
    assert variable_in(f"https://host/{SECRET}/x") == "MY_TOKEN"
