"""Groups of prompts are the connected components of a comparison of all pairs."""

import random

import numpy as np
import pytest
from planted_rows import clean_text, nearly

from rlhf_ray.data.cleaning import prompt_groups
from rlhf_ray.data.cleaning.bucket_index import LONGEST_CHAIN
from rlhf_ray.data.cleaning.near_texts import TextKeys, text_keys
from rlhf_ray.data.cleaning.prompt_groups import PromptGroups
from rlhf_ray.data.cleaning.selection import prompt_key
from rlhf_ray.data.cleaning.signatures import jaccard, ngram_set
from rlhf_ray.data.cleaning.texts import normal


def grouped(texts: list[str], batch: int, threshold: float = 0.8) -> tuple[list[int], PromptGroups]:
    """The key of each text's group."""
    groups = PromptGroups(5, threshold)
    numbers: list[int] = []
    for start in range(0, len(texts), batch):
        part = texts[start : start + batch]
        numbers += groups.add(part, [prompt_key(text) for text in part], text_keys(part, 5, threshold))
    return [groups.key(number) for number in numbers], groups


def by_comparison(texts: list[str], threshold: float = 0.8) -> list[int]:
    """The first text that can be reached over near ones."""
    pairs = [
        (one, other)
        for one, text in enumerate(texts)
        for other in range(one)
        if text == texts[other] or jaccard(ngram_set(text, 5), ngram_set(texts[other], 5)) >= threshold
    ]
    first = list(range(len(texts)))
    for _ in texts:
        for one, other in pairs:
            first[one] = first[other] = min(first[one], first[other])
    return first


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_as_by_comparison_of_all_pairs(batch: int) -> None:
    source = random.Random(4)
    texts = [normal(clean_text(source)) for _ in range(25)]
    for _ in range(4):
        texts += [normal(nearly(source.choice(texts), source)) for _ in range(8)]
    texts += source.choices(texts, k=10)
    source.shuffle(texts)
    found, groups = grouped(texts, batch)
    first = by_comparison(texts)
    assert found == [prompt_key(texts[place]) for place in first]
    assert sum(groups.sizes()) == len(set(texts))
    assert len(groups.sizes()) == len(set(first)) < len(set(texts))


@pytest.mark.parametrize("batch", [1, 100])
def test_what_is_near_to_two_brings_them_together(batch: int) -> None:
    """A chain: each is near to the next one, the ends are far apart; the link comes last."""
    source = random.Random(5)
    chain = [normal(clean_text(source) * 3)[:120]]
    while len(chain) < 7:
        chain.append(chain[-1][8:] + "".join(source.choices("abcdefghij", k=8)))
    assert jaccard(ngram_set(chain[0], 5), ngram_set(chain[-1], 5)) < 0.7
    assert jaccard(ngram_set(chain[0], 5), ngram_set(chain[1], 5)) >= 0.8
    order = [chain[place] for place in (0, 6, 1, 5, 2, 4)]
    found, _ = grouped(order, batch)
    assert len(set(found)) == 2
    found, groups = grouped([*order, chain[3]], batch)
    assert set(found) == {prompt_key(chain[0])}
    assert groups.sizes() == [7]


def test_short_prompts_are_the_same_or_apart() -> None:
    found, _ = grouped(["好吗", "好么", "好吗", "", "abcd", "abce"], 3)
    assert len(set(found)) == 5
    assert found[0] == found[2]


def test_thousands_of_one_template_cost_no_square() -> None:
    source = random.Random(6)
    template = normal(clean_text(source) * 3)[:120]
    texts = [f"{template[:60]}{''.join(source.choices('甲乙丙丁戊己庚辛', k=3))}{template[60:]}" for _ in range(2000)]
    found, groups = grouped(texts, 1000)
    assert len(set(found)) == 1
    assert groups.sizes() == [len(set(texts))]


WORDS = [f"{first}{second}{third}" for first in "bdkmt" for second in ("ar", "el", "ion", "ou") for third in "snlx"]


def of_template(count: int, words: int, source: random.Random) -> list[str]:
    """Different prompts that begin alike and end in other words."""
    found: dict[str, None] = {}
    while len(found) < count:
        ending = " ".join(source.choices(WORDS, k=words))
        found[f"please answer the following question about the history of the town {ending}"] = None
    return list(found)


def near_pairs(texts: list[str], threshold: float = 0.8) -> np.ndarray:
    """All pairs, by a table of n-grams."""
    sets = [ngram_set(text, 5) for text in texts]
    column = {ngram: place for place, ngram in enumerate(sorted(set().union(*sets)))}
    table = np.zeros((len(texts), len(column)), np.float32)
    for row, ngrams in enumerate(sets):
        table[row, [column[ngram] for ngram in ngrams]] = 1
    shared = table @ table.T
    sizes = table.sum(axis=1)
    return np.argwhere(np.triu(shared / (sizes[:, None] + sizes - shared) >= threshold, k=1))


@pytest.mark.parametrize("batch", [90, 5000])
@pytest.mark.parametrize("count", [200, 400, 1500])
def test_near_prompts_of_a_template_are_together(count: int, batch: int) -> None:
    texts = of_template(count, 3, random.Random(7))
    found, groups = grouped(texts, batch)
    keys = np.array(found, np.uint64)
    pairs = near_pairs(texts)
    assert len(pairs) > count / 4
    assert (keys[pairs[:, 0]] == keys[pairs[:, 1]]).all()
    assert sum(groups.sizes()) == count


def test_as_many_as_can_be_compared_are_not_joined_unseen() -> None:
    texts = of_template(250, 5, random.Random(8))
    found, groups = grouped(texts, 100)
    assert groups.unchecked == 0
    assert len(set(found)) == len(set(by_pairs(len(texts), near_pairs(texts)))) > 200


def by_pairs(count: int, pairs: np.ndarray) -> list[int]:
    first = list(range(count))
    for _ in range(count):
        for one, other in pairs:
            first[one] = first[other] = min(first[one], first[other])
    return first


@pytest.mark.parametrize("batch", [50, 300, 1000])
def test_all_prompts_of_a_crowd_are_joined_whatever_the_batch(batch: int) -> None:
    """One key that all share, and nothing else: the oldest too are in the one group, and nobody walks the demand."""
    count = 3 * LONGEST_CHAIN
    texts = [f"text number {number}" for number in range(count)]
    buckets = np.random.default_rng(0).integers(0, 2**32, (count, 17), np.uint32)
    buckets[:, 3] = 7
    groups = PromptGroups(5, 0.8)
    for start in range(0, count, batch):
        part = slice(start, start + batch)
        sketches = np.arange(start, count, dtype=np.uint64)[:batch] * np.uint64(0x9E3779B97F4A7C15)
        groups.add(texts[part], list(range(count))[part], TextKeys(buckets[part], sketches))
    assert groups.sizes() == [count]
    assert groups.unchecked == count - 1
    assert len(groups.near.index.rows_of(3, 7)) < LONGEST_CHAIN + batch


def test_candidates_past_the_limit_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = of_template(120, 3, random.Random(9))
    _, all_compared = grouped(texts, 50)
    monkeypatch.setattr(prompt_groups, "MOST_COMPARED", 10)
    found, groups = grouped(texts, 50)
    pairs = near_pairs(texts)
    assert all(found[one] == found[other] for one, other in pairs)
    assert groups.unchecked > all_compared.unchecked == 0
    assert len(groups.sizes()) < len(all_compared.sizes())
