"""Rules over many texts at once say what a look at each text says."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.config.jobs.cleaning import DataJobConfig
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.cleaning.characters import KINDS, LETTERS, Characters
from rlhf_ray.data.cleaning.language import languages_of
from rlhf_ray.data.cleaning.ngrams import ngrams_of, repeated_share
from rlhf_ray.data.cleaning.prompt_classes import use_case
from rlhf_ray.data.cleaning.rules import Rules
from rlhf_ray.data.cleaning.texts import prompt_alone, texts_of

TEXTS = st.lists(st.text(max_size=40), max_size=8)


@given(TEXTS)
def test_characters_are_counted_by_kind(texts):
    characters = Characters.of(texts)
    assert characters.counts.sum(axis=1).tolist() == [len(text) for text in texts]
    for number, text in enumerate(texts):
        categories = [unicodedata.category(character)[0] for character in text]
        assert characters.count("punctuation")[number] == categories.count("P")
        assert characters.count("han")[number] >= sum("一" <= character <= "龥" for character in text)
        assert characters.count("broken")[number] >= text.count("\ufffd") + text.count("\0")
        assert characters.count(*LETTERS)[number] <= sum(c in "LMNS" for c in categories)


@given(TEXTS)
def test_longest_runs(texts):
    found = Characters.of(texts).longest_run(*KINDS)
    for number, text in enumerate(texts):
        runs = [0]
        for place, character in enumerate(text):
            runs.append(runs[-1] + 1 if place and text[place - 1] == character else 1)
        assert found[number] == max(runs)


@given(st.lists(st.text(max_size=30), min_size=1, max_size=6), st.integers(1, 6))
def test_ngrams_are_those_of_each_text_alone(texts, length):
    together = ngrams_of(Characters.of(texts), length)
    for number, text in enumerate(texts):
        alone = ngrams_of(Characters.of([text]), length)
        part = together.hashes[together.offsets[number] : together.offsets[number + 1]]
        np.testing.assert_array_equal(part, alone.hashes)
        pieces = [text[start : start + length] for start in range(max(len(text) - length + 1, 1))]
        assert len(set(part.tolist())) == len(set(pieces))
        assert repeated_share(together)[number] == pytest.approx(1 - len(set(pieces)) / len(pieces))


def judge(config, *rows):
    whole = DataJobConfig.model_validate(
        {"output": "o", "sources": [{"kind": "files", "path": "p"}]}
        | dict.fromkeys(("length", "punctuation", "quality"))
        | config
    )
    return [verdict and verdict[0] for verdict in Rules(whole).judge([texts_of(row) for row in rows])]


@pytest.mark.parametrize(
    ("config", "good", "bad", "rule"),
    [
        ({"length": {"min_characters": 5}}, "12345", " 1234  ", "length.min_characters"),
        ({"length": {"max_characters": 5}}, "12345", "123456", "length.max_characters"),
        ({"punctuation": {}}, "好看！！", "好。！！", "punctuation.max_share"),
        ({"punctuation": {"max_run": 3, "max_share": 1}}, "好看！！！", "好看！！！！", "punctuation.max_run"),
        ({"punctuation": {"required_from": 10}}, "长" * 9, "长" * 10, "punctuation.required_from"),
        ({"quality": {}}, "12 abc", "12345678 a", "quality.min_letters"),
        ({"quality": {}}, "好 看\t的", "好\ufffd看的", "quality.max_broken"),
        ({"quality": {}}, "好看。" * 5, "非常不错的" * 12, "quality.max_repetition"),
        ({"quality": {"phrases": ["As an AI"]}}, "as an ally", "Ａｓ　AN ai， no", "quality.phrases"),
        ({"language": {"keep": ["zh"]}}, "这家酒店 very 好，服务也很周到", "The hotel was good", "language.keep"),
        (
            {"language": {"keep": ["zh"], "min_share": 0.9}},
            "这家酒店好",
            "这家酒店 really wonderful",
            "language.min_share",
        ),
    ],
)
def test_each_rule(config, good, bad, rule):
    assert judge(config, {"text": good}, {"text": bad}, {"text": good}) == [None, rule, None]


def test_which_texts_a_rule_looks_at():
    pair = {"prompt": "q", "chosen": "a long answer", "rejected": "no"}
    rule = "length.min_characters"
    for of, verdict in (("answer", None), ("answers", rule), ("prompt", rule), ("row", rule)):
        assert judge({"length": {"min_characters": 3, "of": of}}, pair) == [verdict], of
    ranked = {"prompt": "long enough", "responses": ["no", "a long answer"], "ranks": [1, 0]}
    assert judge({"length": {"min_characters": 3}}, ranked, {"prompt": "q"}) == [None, rule]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("这部电影很好看，演员也很棒。", "zh"),
        ("The film was wonderful and I would watch it again.", "en"),
        ("この映画はとても面白かったです。", "ja"),
        ("이 영화는 정말 재미있었어요.", "ko"),
        ("Фильм был замечательный.", "ru"),
        ("كان الفيلم رائعا جدا", "ar"),
        ("Der Film war nicht gut und die Schauspieler auch.", "de"),
        ("Le film est un peu long, mais je l'ai aimé dans l'ensemble.", "fr"),
        ("La película no es tan buena como el libro.", "es"),
        ("Great value!", "en"),
        ("He would come in a car, on a bus, or not at all.", "en"),
        ("12345 😀", "none"),
        ("MacBook Pro 用起来不错，屏幕清晰", "zh"),
    ],
)
def test_languages(text, language):
    assert languages_of([text], Characters.of([text]))[0][0] == language


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("Write a poem about autumn.", "generation"),
        ("写一首关于秋天的诗", "generation"),
        ("What is the capital of France?", "open_qa"),
        ("天空为什么是蓝色的？", "open_qa"),
        ("List five ideas for a birthday party", "brainstorming"),
        ("给我几个晚饭的点子", "brainstorming"),
        ("你好，陪我聊聊天吧", "chat"),
        ("Hello, how are you today", "chat"),
        ("Translate this sentence into French: I am here.", "rewrite"),
        ("把下面这句话润色一下：我去了那里", "rewrite"),
        ("Summarize the following text: it rained all day.", "summarization"),
        ("总结这段话的中心思想", "summarization"),
        ("Classify the sentiment of this review", "classification"),
        ("判断下面的评论是正面还是负面", "classification"),
        ("根据以下材料回答：谁赢了比赛", "closed_qa"),
        ("Extract all names from the text", "extraction"),
        ("提取文中的人名", "extraction"),
        ("嗯", "other"),
    ],
)
def test_use_cases(prompt, name):
    assert use_case(prompt) == name


def test_the_prompt_of_a_row():
    user, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}
    assert prompt_alone({"messages": [user, answer, user, answer]}) == [user, answer, user]
    assert prompt_alone({"prompt": "p", "completion": "c"}) == "p"
    assert prompt_alone({"chosen": "p c", "rejected": "p r"}) == "p"
    assert prompt_alone({"text": "t"}) == "t"
    assert prompt_alone({"prompt": "p", "completions": ["a", "b"]}) == "p"
    assert prompt_alone({"prompt": "p"}) == "p"
    for row in ({"messages": [answer]}, {"ranked_texts": ["a", "b"]}, {"prompt": "", "completion": "c"}):
        with pytest.raises(BadRow, match="no prompt"):
            prompt_alone(row)


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "completion": "c", "text": "p c"},
        {"prompt": "p", "completion": "c", "messages": None},
        {"prompt": "p", "completion": "c", "messages": [USER, ANSWER]},
        {"prompt": "p", "completion": "c", "chosen": 3},
        {"prompt": "p", "chosen": "c", "rejected": "r", "text": "p c", "messages": 7},
        {"prompt": "p", "responses": ["c", "r"], "messages": []},
        {"prompt": "p", "completions": ["c"], "text": "p c"},
    ],
    ids=str,
)
def test_other_columns_do_not_stand_for_the_prompt(row):
    """Alpaca's own rows have the whole text, its answer too, beside instruction and output."""
    assert prompt_alone(row) == texts_of(row).prompt == "p"
