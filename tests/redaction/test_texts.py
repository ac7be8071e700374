"""Texts lose secrets in whatever form they are written, and nothing else."""

import html
import json
import os
from collections.abc import Callable
from unittest.mock import patch
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rlhf_ray.redaction.texts import HIDDEN, hide_forms, holds_known_token, redact, redact_text, url_secrets
from rlhf_ray.redaction.values import SHORTEST, is_word

WRITTEN: list[Callable[[str], str]] = [
    str,
    json.dumps,
    lambda secret: json.dumps({"key": [secret]}, ensure_ascii=False),
    repr,
    lambda secret: repr(ValueError(secret)),
    lambda secret: f"https://host/?x={quote(secret, safe='')}",
    quote_plus,
    html.escape,
]

# What an environment variable can hold, but for lone surrogates, which stand for bytes that are no UTF-8.
SECRETS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=SHORTEST, max_size=40)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(secret=SECRETS, before=TEXTS, after=TEXTS, written=st.sampled_from(WRITTEN))
def test_no_secret_stays_in_any_form(secret: str, before: str, after: str, written: Callable[[str], str]) -> None:
    secret = secret.strip()
    assume(len(secret) >= SHORTEST and not is_word(secret) and not secret.startswith(("/", "~/")))
    form = written(secret)
    # The surroundings themselves, and the word that takes its place, may spell it out.
    assume(secret not in before + HIDDEN + after)
    with patch.dict(os.environ, {"A_SECRET": secret}):
        shown = redact_text(f"{before} {form} {after}")
        assert secret not in shown
        assert form.strip("'\"") not in shown
        assert HIDDEN in shown


@given(secrets=st.lists(SECRETS, min_size=2, max_size=4, unique=True), joint=TEXTS)
def test_secrets_side_by_side(secrets: list[str], joint: str) -> None:
    """Also where one begins with the other, or holds it."""
    secrets = [secret.strip() for secret in secrets]
    assume(all(len(secret) >= SHORTEST and not is_word(secret) and secret[0] not in "/~" for secret in secrets))
    secrets += [secrets[0] + secrets[1]]
    assume(not any(secret in joint + HIDDEN + joint for secret in secrets))
    text = joint.join([*secrets, *reversed(secrets)])
    with patch.dict(os.environ, {f"SECRET_{place}": secret for place, secret in enumerate(secrets)}):
        shown = redact_text(text)
        assert not any(secret in shown for secret in secrets)


@given(TEXTS)
def test_texts_without_secrets_stay_as_they_are(text: str) -> None:
    assume("://" not in text and "=" not in text)
    with patch.dict(os.environ, {"A_SECRET": "not-in-Any-of-these-1234"}):
        assert redact_text(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@host/x", f"https://{HIDDEN}@host/x"),
        ("https://:tok@host", f"https://{HIDDEN}@host"),
        ("https://me:p@ss@host/x", f"https://{HIDDEN}@host/x"),
        ("https://0123456789abcdef0123@host", f"https://{HIDDEN}@host"),
        ("postgresql://me@host/labels", "postgresql://me@host/labels"),
        ("http://host/@me", "http://host/@me"),
        ("http://h/rows?token=abc&page=2", f"http://h/rows?token={HIDDEN}&page=2"),
        ("http://h/rows?page=2&X-Amz-Signature=0a1b&x=1#end", f"http://h/rows?page=2&X-Amz-Signature={HIDDEN}&x=1#end"),
        ("http://h/rows?sig=a%2Fb", f"http://h/rows?sig={HIDDEN}"),
        ("http://h/rows?max_tokens=512&monkey=x", "http://h/rows?max_tokens=512&monkey=x"),
        ("Authorization: Bearer abcdefghij0123456789", f"Authorization: Bearer {HIDDEN}"),
        ("the bearer of bad news", "the bearer of bad news"),
        ("key hf_" + "aB3" * 12 + " refused", f"key {HIDDEN} refused"),
        ("key sk-" + "0a1b2c3d" * 4, f"key {HIDDEN}"),
        ("key sk-or-v1-" + "0a1b2c3d" * 8, f"key {HIDDEN}"),
        ("data/sk-learn-corpus-of-2024-texts.jsonl", "data/sk-learn-corpus-of-2024-texts.jsonl"),
    ],
)
def test_forms(text: str, shown: str) -> None:
    assert hide_forms(text) == shown
    assert hide_forms(shown) == shown


def test_a_presigned_address_holds_no_token_of_its_own() -> None:
    signed = (
        "https://b.s3.amazonaws.com/x?X-Amz-Credential=hf_aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3&X-Amz-Signature=0a1b"
    )
    assert not holds_known_token(signed)
    assert list(url_secrets(signed)) == ["hf_" + "aB3" * 12, "0a1b"]
    assert holds_known_token("ghp_" + "aB3" * 12)


def test_configs_lose_values_by_their_keys_and_keep_numbers() -> None:
    config = {"rewards": [{"api_key": "plain", "max_tokens": 5, "weight": 0.5}], "password": "", "eos": None}
    assert redact(config) == {
        "rewards": [{"api_key": HIDDEN, "max_tokens": 5, "weight": 0.5}],
        "password": "",
        "eos": None,
    }
