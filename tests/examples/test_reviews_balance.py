"""The cost of one-sided reviews knows the grammar's own turns, and common words that only look like one."""

import pytest

from examples.reviews.balance import one_sided
from examples.reviews.grammar import LANGUAGES

CONTRASTS = [words for language in LANGUAGES.values() for words in language.contrasts]


@pytest.mark.parametrize(("before", "between"), CONTRASTS)
def test_each_contrast_of_the_grammar_shows_two_sides(before: str, between: str) -> None:
    assert one_sided(["p"], [f"{before} good, {between} dear"]) == [0.0]


@pytest.mark.parametrize(
    "text",
    [
        *("", "很好。", "不但好看，而且便宜。", "非但不好还很贵。", "不只是好看。", "不仅只是便宜。"),
        *("再好不过了。", "只不过一般。", "不过如此。", "但愿更好。"),
        *("Good.", "Nothing but good.", "anything but bad", "all but perfect", "last but not least", "the best yet."),
        *("not yet good", "has yet to fail", "a butter dish", "Butter and eyetooth"),
    ],
)
def test_words_that_turn_nothing_cost(text: str) -> None:
    assert one_sided(["p"], [text]) == [1.0]


def test_each_completion_has_its_cost() -> None:
    assert one_sided(["p"] * 3, ["好但贵", "好", "Although dear, good"]) == [0.0, 1.0, 0.0]
