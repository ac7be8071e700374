"""Private data are found by form and checksum, and nothing else is."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_rows import PRIVATE

from rlhf_ray.data.cleaning.privacy import MASKS, Masker, find_private, is_card, is_identity
from rlhf_ray.data.cleaning.texts import map_strings


@pytest.mark.parametrize("kind", PRIVATE)
@settings(max_examples=200)
@given(
    seed=st.integers(),
    before=st.sampled_from(["", "电话", "at ", "（", "x: "]),
    after=st.sampled_from(["", "。", " ok", "）"]),
)
def test_each_kind_is_found_whole_in_any_surroundings(kind, seed, before, after):
    datum = PRIVATE[kind](random.Random(seed))
    masker = Masker()
    assert masker(f"{before}{datum}{after}") == f"{before}{MASKS[kind]}{after}"
    assert masker.found == {kind: 1}


FOUND = {
    "写信给zhang.san@公司.cn不行，zhang.san@example.com.cn可以": "写信给zhang.san@公司.cn不行，<EMAIL>可以",
    "a@b.co, c@d.org.": "<EMAIL>, <EMAIL>.",
    "手机１３８１２３４５６７８": "手机<MOBILE>",
    "+8613812345678/138-1234-5678": "<MOBILE>/<MOBILE>",
    "id 11010519491231002X.": "id <IDENTITY>.",
    "卡号6222 0212 3456 7894 561 4111-1111-1111-1111": "卡号6222 0212 3456 7894 561 <CARD>",
    "192.168.0.1:8080 and [2001:db8::1]": "<IP>:8080 and [<IP>]",
    "postgres://user:hunter22@db/x": "postgres://user:<SECRET>@db/x",
    'password = "correct9horse"': 'password = "<SECRET>"',
    "密码：abc12345678": "密码：<SECRET>",
    "Authorization: Bearer abcdef0123456789abcdef": "Authorization: Bearer <SECRET>",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- rest": "<SECRET> rest",
    "-----BEGIN PRIVATE KEY-----\ncut off": "<SECRET>",
}


@pytest.mark.parametrize("text", FOUND)
def test_found(text):
    assert Masker()(text) == FOUND[text]


@pytest.mark.parametrize(
    "text",
    [
        "订单号：1421846721",
        "2007年10月25日 12:30:45",
        "version 1.2.3 of 4.5.6.7.8",
        "std::vector<int> a::b",
        "11010519491231002Y 110105194912310021 000000000000000000",
        "12345678901 23812345678 1381234567 138123456789",
        "4111111111111112 1234567890123",
        "3 4 5 6 7 8 9 10 11 12 13 14 15",
        "a@b @user user@localhost",
        "密码是什么？ The token is missing. password: forgotten",
        "sk-short hf_no token=none",
        "10:20:30:40 ::",
        "3.14159265358979 999999999999999999",
        "",
    ],
)
def test_left_alone(text):
    assert find_private(text) == []


def test_checksums():
    assert is_identity("11010519491231002X")
    assert is_identity("11010519491231002x")
    assert not is_identity("11010519491331002X"), "there is no month 13"
    assert not is_identity("99010519491231002X"), "there is no province 99"
    assert sum(is_identity(f"1101051949123100{n:02}") for n in range(100)) == 9, "one check digit of ten or X each"
    assert is_identity("911124198108030024"), "of a foreign resident"
    assert is_card("4111 1111 1111 1111")
    assert is_card("٤١١١١١١١١١١١١١١١"), "in the digits of another script"
    assert sum(is_card(f"411111111111111{digit}") for digit in range(10)) == 1
    assert not is_card("4111111111")


@settings(max_examples=300)
@given(st.text(alphabet="0123456789@.:-ab测１Ｘ +/", max_size=60))
def test_nothing_is_found_in_what_was_masked(text):
    masked = Masker()(text)
    assert find_private(masked) == []
    assert Masker()(masked) == masked


@given(st.text(max_size=80))
def test_places_are_places_of_the_given_text(text):
    found = find_private(text)
    assert all(0 <= one.start < one.end <= len(text) for one in found)
    assert all(first.end <= second.start for first, second in pairwise(found))


def test_all_columns_of_a_row_are_masked():
    row = {
        "prompt": [{"role": "user", "content": "我是13812345678"}],
        "author": {"mail": ["a@b.co"]},
        "tel": 13812345678,
    }
    assert map_strings(row | {"count": 12, "ok": True, "none": None}, Masker()) == {
        "prompt": [{"role": "user", "content": "我是<MOBILE>"}],
        "author": {"mail": ["<EMAIL>"]},
        "tel": "<MOBILE>",
        "count": 12,
        "ok": True,
        "none": None,
    }
