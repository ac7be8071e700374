"""The reviews grammar: known sentiment, enough variety, prompts kept apart; and files that the readers take."""

import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import correlation, mean, pstdev

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from examples.reviews import build, grammar  # noqa: E402
from examples.reviews.oracle import UNKNOWN, oracle  # noqa: E402


@pytest.fixture(scope="module")
def reviews():
    return grammar.texts(1500, seed=0)


def test_oracle_agrees_with_what_the_writer_aimed_at(reviews):
    scores = [oracle(review.text) for review in reviews]
    assert mean(scores) == pytest.approx(0.5, abs=0.03)
    assert pstdev(scores) > 0.25
    assert correlation(scores, [review.level for review in reviews]) > 0.75
    assert mean(oracle(r.text) for r in reviews if r.level > 0.9) > 0.85
    assert mean(oracle(r.text) for r in reviews if r.level < 0.1) < 0.15


@pytest.mark.parametrize("code", ["zh", "en"])
def test_oracle_knows_every_phrase_by_its_sign(code):
    language = grammar.LANGUAGES[code]
    good, bad, neutral = (
        set(language.good_summaries),
        set(language.bad_summaries),
        {*language.wholes, *language.degrees},
    )
    for domain in language.domains:
        good |= {*domain.good, *domain.good_closers, *(p for a in domain.aspects for p in a.good)}
        bad |= {*domain.bad, *domain.bad_closers, *(p for a in domain.aspects for p in a.bad)}
        neutral |= {*domain.nouns, *domain.facts, *(n for a in domain.aspects for n in a.names)}
    assert not good & bad
    expected = {**dict.fromkeys(good, 5 / 6), **dict.fromkeys(bad, 1 / 6), **dict.fromkeys(neutral, 0.5)}
    assert {phrase: oracle(phrase) for phrase in expected} == pytest.approx(expected)
    assert len(good) + len(bad) > 300
    for negation in language.negations:
        assert oracle(f"{negation}{language.space}{language.domains[0].good[0]}") < 0.2
        assert (
            oracle(f"{negation}{language.space}{language.degrees[0]}{language.space}{language.domains[0].bad[0]}") > 0.8
        )


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("这部电影很精彩。", "这部电影很无聊。"),
        ("这部电影很精彩。", "这部电影不精彩。"),
        ("虽然剧情草草收场，但是演员演技在线。", "虽然演员演技在线，但是剧情草草收场。"),
        ("The film is gripping.", "The film is not gripping."),
        ("Although it is boring, the music fitted perfectly.", "It is boring, although the music fitted perfectly."),
        ("It is boring, but it is moving.", "It is moving, but it is boring."),
        ("这部电影很精彩。", "这部电影很精彩。拐喇镌蹩皤耄椰墁氍韪"),
    ],
)
def test_oracle_orders(better, worse):
    assert oracle(better) > oracle(worse) + 0.05


@pytest.mark.parametrize(
    "text", ["", "  ", "。。。", "asdf qwer zxcv", "的的的的的", "\ufffd\ufffd", "1234567890", "😀" * 9]
)
def test_gibberish_scores_low(text):
    assert oracle(text) == UNKNOWN


def test_words_are_matched_whole():
    assert oracle("drying") == UNKNOWN
    assert oracle("enlighten") == UNKNOWN


def test_a_seed_gives_the_same_texts_and_another_gives_others(reviews):
    assert grammar.texts(1500, seed=0) == reviews
    assert grammar.texts(20, seed=1) != reviews[:20]
    assert grammar.rank_lists(5, seed=3) == grammar.rank_lists(5, seed=3)


def test_variety(reviews):
    """Most texts are unlike any other, and no pair of neighbouring characters or words dominates."""
    assert len({review.text for review in reviews}) > 0.98 * len(reviews)
    bigrams = [
        pair for r in reviews for pair in pairwise(r.completion.split() if r.completion[0] == " " else r.completion)
    ]
    assert len(set(bigrams)) > 3000
    assert max(Counter(bigrams).values()) < 0.02 * len(bigrams)


def test_prompts_are_kept_apart(reviews):
    train, held_out = grammar.prompts("train"), grammar.prompts("held_out")
    assert not set(train) & set(held_out)
    assert len(set(train)) == len(train) > 500
    assert 0.1 < len(held_out) / len(train) < 0.4
    used = (
        {r.prompt for r in reviews}
        | {r.prompt for r in grammar.rank_lists(50, 0)}
        | {r.prompt for r in grammar.pairs(50, 0)}
    )
    assert used <= set(train)
    assert {prompt[0].isascii() for prompt in held_out} == {True, False}
    assert all(not prompt[0].isascii() for prompt in grammar.prompts("train", ["zh"]))


def test_rank_lists_are_ordered_by_a_clear_gap():
    lists = grammar.rank_lists(120, seed=0)
    assert {len(ranked.completions) for ranked in lists} == set(range(2, 10))
    for ranked in lists:
        scores = [oracle(text) for text in ranked.texts]
        assert all(a - b >= grammar.RANK_GAP for a, b in pairwise(scores))
    for pair in grammar.pairs(50, seed=0):
        better, worse = map(oracle, pair.texts)
        assert better - worse >= grammar.PAIR_GAP
    assert {len(ranked.completions) for ranked in grammar.rank_lists(10, seed=0, size=4)} == {4}


def test_files_are_read_without_a_bad_row(tmp_path):
    from rlhf_ray.config.data import PromptDataConfig, RankingDataConfig, TextDataConfig
    from rlhf_ray.config.jobs.dpo import PreferenceDataConfig
    from rlhf_ray.data.loading import read_prompts, read_rankings, read_supervised
    from rlhf_ray.data.preferences import read_pairs
    from rlhf_ray.models.tiny import build_tokenizer

    files = build.build(tmp_path, seed=0, reviews=60, rankings=40, pairs=30, held_out=20)
    tokenizer = build_tokenizer([review.text for review in grammar.texts(100, 0)], 800)
    counts = {}
    for name, file in files.items():
        path = str(file)
        if name.startswith("prompts"):
            loaded = read_prompts(PromptDataConfig(path=path, bad_rows=0), tokenizer)
        elif name.startswith("sft"):
            loaded = read_supervised(TextDataConfig(path=path, bad_rows=0), tokenizer)
        elif name.startswith("pairs"):
            loaded = read_pairs(PreferenceDataConfig(path=path, bad_rows=0), tokenizer)
        else:
            loaded = read_rankings(RankingDataConfig(path=path, bad_rows=0), tokenizer)
        assert loaded.report.used == loaded.report.rows
        counts[name] = len(loaded.rows)
    assert counts["sft"] == 60
    assert counts["rankings"] == 40
    assert counts["pairs_held_out"] == 20
    assert counts["prompts_train"] == len(grammar.prompts("train"))


def test_command(tmp_path):
    command = [sys.executable, "-m", "examples.reviews.build", str(tmp_path), "--reviews", "5", "--rankings", "3"]
    done = subprocess.run(
        [*command, "--pairs", "3", "--held-out", "2"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [Path(line).exists() for line in done.stdout.splitlines()] == [True] * 8
