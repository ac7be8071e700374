"""Tokenizers that begin a text with a blank of their own: an answer has the tokens and the text that it has behind its
prompt."""

import numpy as np
import pytest

from rlhf_ray.data.tokenization import Encoder
from tests.tiny_sentencepiece import EOS, LLAMA_2, build_sentencepiece

KINDS = [(blank, kind) for blank in ("normalizer", "always", "first", "never") for kind in ("bpe", "unigram")]
BORDERS = [
    ("刚收到货，", "质量很好。"),
    ("hello", " how are"),
    ("hello how", "\n\nhow"),
    ("hello\n", "how"),
    ("", "hello"),
    ("hel", "lo world"),
    ("hello ", "world"),
    ("x  ", "  y"),
    ("刚", "🎉🎉 ok\n"),
]


@pytest.fixture(scope="module", params=KINDS, ids=["-".join(kind) for kind in KINDS])
def encoder(request):
    return Encoder(build_sentencepiece(*request.param))


@pytest.mark.parametrize(("prompt", "response"), BORDERS)
def test_an_answer_has_the_tokens_and_the_text_that_it_has_behind_its_prompt(encoder, prompt, response):
    before, answer = encoder.prompt(prompt), encoder.answer(prompt, response)
    assert answer[-1] == encoder.eos
    assert encoder.response(prompt, before, answer, ended=True) == response
    joint = np.array(encoder.tokenizer(prompt + response)["input_ids"])
    if np.array_equal(joint[: len(before)], before):
        np.testing.assert_array_equal([*before, *answer[:-1]], joint)
        np.testing.assert_array_equal([*before, *answer], encoder.judged(prompt, response))
    assert encoder.tokenizer.decode([*before, *answer[:-1]], skip_special_tokens=True) == prompt + response


def test_a_cut_character_of_a_response_leaves_the_prompt_whole(encoder):
    prompt = encoder.prompt("你")
    half = encoder.answer("你", "饿")[:2]
    assert encoder.response("你", prompt, half, ended=False) == "\ufffd\ufffd"


@pytest.mark.parametrize(("blank", "kind"), KINDS)
def test_conversations_are_read_as_a_rollout_reads_them(blank, kind):
    tokenizer = build_sentencepiece(blank, kind)
    tokenizer.chat_template = LLAMA_2
    encoder = Encoder(tokenizer)
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "质量很好。"},
        {"role": "user", "content": "how are you"},
        {"role": "assistant", "content": "good"},
    ]
    [sequence] = encoder.conversation(messages)
    np.testing.assert_array_equal(sequence.ids, encoder._ids(encoder.template.render(messages)))
    for turn in (1, 3):
        before = encoder.prompt(messages[:turn])
        answer = encoder.answer(messages[:turn], messages[turn]["content"])
        np.testing.assert_array_equal(sequence.ids[: len(before)], before)
        np.testing.assert_array_equal(sequence.ids[len(before) : len(before) + len(answer)], answer)
        assert sequence.learned[len(before) : len(before) + len(answer)].all()
        assert not sequence.learned[len(before) - 1]
        assert encoder.response(messages[:turn], before, answer, ended=True) == messages[turn]["content"]
    assert list(sequence.ids).count(encoder.eos) == 2
    assert encoder.template.shape.end == EOS


@pytest.mark.parametrize("blank", ["normalizer", "always", "first"])
def test_the_blank_behind_a_special_token_is_no_part_of_an_answer(blank):
    """Zephyr's and Phi-3's turns open with a special token, behind which some tokenizers put a blank again."""
    tokenizer = build_sentencepiece(blank, special=("<|user|>", "<|assistant|>"))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    encoder = Encoder(tokenizer)
    prompt = [{"role": "user", "content": "hello"}]
    before, answer = encoder.prompt(prompt), encoder.answer(prompt, "how are you")
    np.testing.assert_array_equal([*before, *answer], encoder.judged(prompt, "how are you"))
    assert encoder.response(prompt, before, answer, ended=True) == "how are you"


def test_blanks_before_punctuation_are_what_the_policy_wrote():
    tokenizer = build_sentencepiece("first", "unigram")
    tokenizer.clean_up_tokenization_spaces = True
    encoder = Encoder(tokenizer)
    before, answer = encoder.prompt("hello"), encoder.answer("hello", " how , it 's good .")
    assert encoder.response("hello", before, answer, ended=True) == " how , it 's good ."
