"""Whether the grammar could have written a text: all that it writes, and nothing that was cut, mixed or borrowed."""

import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from examples.reviews import grammar  # noqa: E402
from examples.reviews.membership import could_have_written, share_written  # noqa: E402


@pytest.fixture(scope="module")
def reviews() -> list[grammar.Review]:
    return grammar.texts(1000, seed=4)


def test_all_that_it_writes(reviews: list[grammar.Review]) -> None:
    assert [review for review in reviews if not could_have_written(review.prompt, review.completion)] == []
    held_out = grammar.openings("held_out")
    assert could_have_written(held_out[0].text, grammar._write(held_out[0], 0.5, random.Random(0)).completion)


def test_no_text_that_is_cut_goes_on_or_stands_twice(reviews: list[grammar.Review]) -> None:
    rng = random.Random(0)
    for review in reviews:
        text = review.completion
        cut = rng.randrange(1, len(text))
        for broken in (text[:-1], text + text.strip()[-1], text[:cut] + text[cut + 1 :], text.strip() + text):
            assert not could_have_written(review.prompt, broken), broken


def test_what_one_reward_model_was_once_deceived_by() -> None:
    for prompt, answer in (
        ("This restaurant is", " superb, the bill。下次还会再来。"),
        ("This restaurant is", " superb, the bill."),
        ("给妈妈买的耳机特别", "> the bill。"),
        ("这部电影很", "精彩"),
        ("This film was", ""),
    ):
        assert not could_have_written(prompt, answer)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        # An aspect twice; a conjunction whose parts agree, or differ, where they must not; what precedes a judgement.
        ("配乐恰到好处，结尾余味悠长，没有白来。", "配乐恰到好处，音乐烘托了气氛，没有白来。"),
        ("配乐恰到好处。虽然结尾草草收场，但是镜头很有质感。", "配乐恰到好处。虽然结尾余味悠长，但是镜头很有质感。"),
        ("配乐恰到好处。不但结尾余味悠长，而且镜头很有质感。", "配乐恰到好处。不但结尾草草收场，而且镜头很有质感。"),
        ("配乐恰到好处。因为结尾余味悠长，所以值得二刷。", "配乐恰到好处。因为结尾余味悠长，所以差点睡着。"),
        ("配乐恰到好处。导演是新人，结尾余味悠长。", "配乐恰到好处。结尾余味悠长，导演是新人。"),
        ("配乐恰到好处。整体非常好看。", "配乐恰到好处。整体非常难吃。"),
        ("配乐恰到好处。整体并不无聊，没有白来。", "配乐恰到好处。没有白来。"),
    ],
)
def test_its_rules_one_by_one(right: str, wrong: str) -> None:
    [prompt] = {text for text in grammar.prompts("train") + grammar.prompts("held_out") if text == "说说这部喜剧片吧，"}
    assert could_have_written(prompt, right)
    assert not could_have_written(prompt, wrong)


def test_shares(reviews: list[grammar.Review]) -> None:
    rows = [(review.prompt, review.completion) for review in reviews[:3]]
    assert share_written([*rows, ("This film was", " it.")]) == 0.75
    assert share_written([]) == 0.0
