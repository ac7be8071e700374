"""Duplicates are those that a comparison of each row with each other finds."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_rows import clean_text, nearly

from rlhf_ray.data.cleaning.bucket_index import LONGEST_CHAIN, BucketIndex
from rlhf_ray.data.cleaning.duplicates import DuplicateFinder
from rlhf_ray.data.cleaning.near_texts import text_keys
from rlhf_ray.data.cleaning.signatures import (
    at_most,
    jaccard,
    most_unequal_bits,
    ngram_set,
    rows_of_band,
    shingles,
    signatures,
)
from rlhf_ray.data.cleaning.texts import normal


def find(texts, batch, threshold=0.8):
    finder = DuplicateFinder(5, threshold)
    found = []
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        places = [f"f:{start + number}" for number in range(len(part))]
        found += finder.filter(part, places, text_keys(part, 5, threshold))
    return found, finder


def by_comparison(texts, threshold=0.8):
    """The first kept row that each row repeats, by comparing all pairs."""
    kept, found = [], []
    for number, text in enumerate(texts):
        near = next((k for k in kept if texts[k] == text or similar(texts[k], text) >= threshold), None)
        found.append(near)
        if near is None:
            kept.append(number)
    return found


def similar(one, other):
    return jaccard(ngram_set(one, 5), ngram_set(other, 5)) if min(len(one), len(other)) >= 5 else 0


def barely(text, source):
    """As far away as a near duplicate may be."""
    stranger = normal(clean_text(source))
    return next(one for one in (text + stranger[:cut] for cut in range(99, -1, -1)) if similar(text, one) >= 0.8)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_as_by_comparison_of_all_pairs(batch):
    source = random.Random(1)
    texts = [normal(clean_text(source)) for _ in range(150)]
    texts += [normal(nearly(source.choice(texts), source)) for _ in range(80)] + source.choices(texts, k=40)
    texts += [barely(source.choice(texts), source) for _ in range(80)]
    source.shuffle(texts)
    found, _ = find(texts, batch)
    assert [one and one.place for one in found] == [None if of is None else f"f:{of}" for of in by_comparison(texts)]
    assert sum(one is not None for one in found) > 100


@given(st.lists(st.sampled_from(["", "a", "ab", "abcde", "abcdef", "bcdef", "一二三四五", "一二三四六"]), max_size=20))
def test_short_texts_are_the_same_or_not_at_all(texts):
    found, _ = find(texts, 3)
    assert [one is not None for one in found] == [text in texts[:place] for place, text in enumerate(texts)]


def test_only_same_texts_without_a_threshold():
    found, finder = find(["one long text here", "one long text her", "one long text here"], 10, None)
    assert [one and one.similarity for one in found] == [None, None, 1.0]
    assert finder.near.index.keys == 1


def test_signatures_estimate_jaccard():
    source = random.Random(2)
    pairs = []
    for _ in range(200):
        text = clean_text(source)
        cut = source.randrange(len(text) // 2)
        pairs.append((text, text[cut:] + clean_text(source)[: source.randrange(40)]))
    first, second = (signatures(shingles(list(side), 5), 256) for side in zip(*pairs, strict=True))
    estimated = (first == second).mean(axis=1)
    exact = np.array([jaccard(ngram_set(one, 5), ngram_set(other, 5)) for one, other in pairs])
    assert np.abs(estimated - exact).max() < 5 * 0.5 / 16, "five standard errors of 256 hashes"
    assert abs((estimated - exact).mean()) < 0.01


@given(st.text(alphabet="ab一", max_size=40), st.text(alphabet="ab一", max_size=40), st.integers(1, 6))
def test_the_bound_bounds(one, other, length):
    assert (
        at_most(ngram_set(one, length), other, length) >= jaccard(ngram_set(one, length), ngram_set(other, length))
        or len(other) < length
    )


def test_sketches_refuse_strangers_and_no_near_duplicate():
    source = random.Random(3)
    texts = [normal(clean_text(source)) for _ in range(300)]
    near = [barely(text, source) for text in texts]
    first, second = (text_keys(side, 5, 0.8).sketches for side in (texts, near))
    allowed = most_unequal_bits(0.8)
    assert (np.bitwise_count(first ^ second) <= allowed).all()
    assert (np.bitwise_count(first ^ np.roll(first, 1)) <= allowed).mean() < 0.15


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_bands_miss_few_pairs_at_the_threshold(threshold):
    rows = rows_of_band(threshold)
    assert (1 - threshold**rows) ** 16 <= 1e-3 or rows == 1
    assert (1 - threshold ** (rows + 1)) ** 16 > 1e-3, "and no more candidates than needed"


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), max_size=60),
    st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=10),
    st.integers(1, 20),
)
def test_the_index_finds_rows_with_the_same_key_in_the_same_place(rows, asked, batch):
    index = BucketIndex(3)
    for start in range(0, len(rows), batch):
        index.add(np.array(rows[start : start + batch], np.uint32))
    positions, found, _ = index.find(np.array(asked, np.uint32))
    expected = [
        (here, row)
        for here, keys in enumerate(asked)
        for row, others in enumerate(rows)
        for key, other in zip(keys, others, strict=True)
        if key == other
    ]
    assert sorted(zip(positions.tolist(), found.tolist(), strict=True)) == sorted(expected)


def test_the_index_grows_and_its_memory_is_as_stated():
    index = BucketIndex(17)
    keys = np.random.default_rng(0).integers(0, 2**32, (30_000, 17), np.uint32)
    for start in range(0, len(keys), 1000):
        index.add(keys[start : start + 1000])
    positions, found, _ = index.find(keys[[5, 29_999]])
    assert set(zip(positions.tolist(), found.tolist(), strict=True)) >= {(0, 5), (1, 29_999)}
    assert 12 <= index.bytes / index.entries <= 24


def test_a_key_that_thousands_share_is_cut():
    index = BucketIndex(1)
    index.add(np.zeros((3 * LONGEST_CHAIN, 1), np.uint32))
    _, found, crowded = index.find(np.zeros((1, 1), np.uint32))
    assert sorted(found.tolist()) == list(range(2 * LONGEST_CHAIN, 3 * LONGEST_CHAIN)), "the newest"
    assert index.cut_chains == 1
    assert crowded.tolist() == [0]
    assert index.rows_of(0, 0) == list(reversed(range(3 * LONGEST_CHAIN)))
