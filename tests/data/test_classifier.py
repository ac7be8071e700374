"""The classifier learns what can be learned, and says how well."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted_rows import clean_text, spam_text

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.cleaning import classifier
from rlhf_ray.data.cleaning.classifier import Features, TextClassifier, area_under_curve


def examples(count, seed):
    source = random.Random(seed)
    texts = [(clean_text, spam_text)[number % 2](source) for number in range(count)]
    return texts, np.arange(count) % 2


@pytest.fixture(scope="module")
def trained():
    return TextClassifier.train(*examples(600, 0), ("high", "low"))


def test_it_tells_spam_from_writing_that_it_has_not_seen(trained):
    texts, labels = examples(300, 1)
    scores = trained.probabilities(texts)
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    assert area_under_curve(scores[labels == 0, 0], scores[labels == 1, 0]) > 0.97


def test_a_few_hundred_short_texts_teach_much():
    texts, labels = examples(300, 0)
    learned = TextClassifier.train([text[:25] for text in texts], labels, ("high", "low"))
    texts, labels = examples(1000, 1)
    scores = learned.probabilities([text[:25] for text in texts])[:, 0]
    assert area_under_curve(scores[labels == 0], scores[labels == 1]) > 0.85


@pytest.mark.parametrize("piece", [7, 100])
def test_pieces_do_not_change_what_is_learned(monkeypatch, piece):
    texts, labels = examples(100, 7)
    whole = TextClassifier.train(texts, labels, ("high", "low")).probabilities(texts)
    monkeypatch.setattr(classifier, "PIECE", piece)
    again = TextClassifier.train(texts, labels, ("high", "low")).probabilities(texts)
    np.testing.assert_allclose(again, whole, atol=1e-3)


def test_nothing_is_learned_from_labels_that_say_nothing():
    texts, labels = examples(400, 2)
    guesses = TextClassifier.train(texts, np.random.default_rng(0).permutation(labels), ("high", "low"))
    texts, labels = examples(400, 3)
    scores = guesses.probabilities(texts)[:, 0]
    assert abs(area_under_curve(scores[labels == 0], scores[labels == 1]) - 0.5) < 0.15


def test_more_than_two_classes_and_a_rare_one():
    source = random.Random(4)
    words = {"poem": "verse rhyme moon", "code": "function return array", "chat": "hello friend weather"}
    names = ["poem"] * 100 + ["code"] * 100 + ["chat"] * 10
    texts = [" ".join(source.choices(words[name].split(), k=6)) for name in names]
    labels = np.array([sorted(words).index(name) for name in names])
    found = TextClassifier.train(texts, labels, sorted(words)).probabilities(texts).argmax(axis=1)
    np.testing.assert_array_equal(found, labels)


def test_scores_do_not_depend_on_what_else_is_scored(trained):
    texts, _ = examples(20, 5)
    texts += ["", "a", "好", " ".join(texts) * 10]
    together = trained.probabilities(texts)
    alone = np.concatenate([trained.probabilities([text]) for text in texts])
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert trained.probabilities([]).shape == (0, 2)


def test_equal_examples_train_the_same_on_any_cores_and_files_come_back(tmp_path, trained):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    again = TextClassifier.train(*examples(600, 0), ("high", "low"))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert again.to_bytes("quality") == trained.to_bytes("quality")
    file = tmp_path / "classifier.safetensors"
    file.write_bytes(trained.to_bytes("quality"))
    texts, _ = examples(20, 6)
    np.testing.assert_array_equal(
        TextClassifier.load(str(file), "quality").probabilities(texts), trained.probabilities(texts)
    )
    with pytest.raises(BadInput, match="is no classifier of classes"):
        TextClassifier.load(str(file), "classes")
    file.write_bytes(b"no")
    with pytest.raises(BadInput, match="cannot be read as safetensors"):
        TextClassifier.load(str(file), "quality")


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_features_are_those_of_each_text_alone(texts):
    together = Features.of(texts)
    alone = [Features.of([text]) for text in texts]
    np.testing.assert_array_equal(together.buckets, np.concatenate([one.buckets for one in alone]))
    np.testing.assert_array_equal(together.weights, np.concatenate([one.weights for one in alone]))


@given(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 5), min_size=1))
def test_area_counts_pairs(positive, negative):
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert area_under_curve(np.array(positive, float), np.array(negative, float)) == pytest.approx(np.mean(pairs))
