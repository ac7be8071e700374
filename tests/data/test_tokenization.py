"""Text to ids: what a rollout sees is what training sees; BOS once, EOS once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.tokenization import Encoder

USER = {"role": "user", "content": "How is it?"}
GOOD = {"role": "assistant", "content": "好看！"}
QWEN = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>{% generation %}{{ m['content'] }}<|end|>"
    "{% endgeneration %}{% else %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FORGETS = "{% for m in messages %}{% if loop.last or m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"


def decode(encoder, ids):
    return encoder.tokenizer.decode(ids)


@pytest.fixture
def encoder(tokenizer):
    return Encoder(tokenizer)


def test_text(encoder):
    assert decode(encoder, encoder.prompt("这部电影很")) == "这部电影很"
    assert decode(encoder, encoder.answer("这部电影很", "好看")) == "好看<|end|>"
    assert decode(encoder, encoder.text("全文。")) == "全文。<|end|>"
    assert decode(encoder, encoder.judged("这部电影很", "好看")) == "这部电影很好看<|end|>"


def test_eos_is_never_doubled_and_ends_the_text(encoder):
    assert decode(encoder, encoder.answer("a", "b<|end|>")) == "b<|end|>"
    assert decode(encoder, encoder.answer("a", "b<|end|><|end|>\n")) == "b<|end|>"
    assert decode(encoder, encoder.answer("a", "b<|end|>c")) == "b<|end|>c<|end|>"


@given(text=st.text(max_size=30).filter(lambda t: "<|" not in t))
def test_any_text_round_trips(tokenizer, text):
    import unicodedata

    encoder = Encoder(tokenizer)
    ids = encoder.text(text)
    assert ids.dtype == np.int32
    assert ids[-1] == encoder.eos
    assert (ids == encoder.eos).sum() == 1
    assert decode(encoder, ids[:-1]) == unicodedata.normalize("NFC", text)


def test_messages(encoder):
    assert decode(encoder, encoder.prompt([USER])) == "<|user|>How is it?<|end|><|assistant|>"
    assert decode(encoder, encoder.answer([USER], "Good.")) == "Good.<|end|>"
    assert decode(encoder, encoder.judged([USER], "Good.")) == "<|user|>How is it?<|end|><|assistant|>Good.<|end|>"


def test_a_last_turn_of_the_assistant_is_continued(encoder):
    begun = [USER, {"role": "assistant", "content": "It is"}]
    assert decode(encoder, encoder.prompt(begun)) == "<|user|>How is it?<|end|><|assistant|>It is"
    assert decode(encoder, encoder.judged(begun, " good")) == "<|user|>How is it?<|end|><|assistant|>It is good<|end|>"


@pytest.mark.parametrize("template", [None, QWEN, MARKED])
def test_conversation_learns_the_assistants_turns_only(tokenizer, template):
    import copy

    chosen = copy.deepcopy(tokenizer)
    chosen.chat_template = template or tokenizer.chat_template
    encoder = Encoder(chosen)
    [sequence] = encoder.conversation([USER, GOOD, USER, {"role": "assistant", "content": "Yes."}])
    ids, written = sequence.ids, sequence.learned
    assert decode(encoder, ids[written]) == "好看！<|end|>Yes.<|end|>"
    break_ = "\n" if template is QWEN else ""
    assert decode(encoder, ids).rstrip("\n") == (
        f"<|user|>How is it?<|end|>{break_}<|assistant|>好看！<|end|>{break_}"
        f"<|user|>How is it?<|end|>{break_}<|assistant|>Yes.<|end|>"
    )
    prompt = encoder.prompt([USER])
    np.testing.assert_array_equal(ids[: len(prompt)], prompt, "training sees what a rollout sees")


def test_end_of_a_template_that_adds_a_line_break(tokenizer):
    import copy

    chosen = copy.deepcopy(tokenizer)
    chosen.chat_template = QWEN
    encoder = Encoder(chosen)
    assert decode(encoder, encoder.answer([USER], "Good.")) == "Good.<|end|>"
    assert decode(encoder, encoder.judged([USER], "Good.")).endswith("Good.<|end|>")


def test_template_that_rewrites_earlier_turns_makes_a_sequence_of_each_answer(tokenizer):
    import copy

    chosen = copy.deepcopy(tokenizer)
    chosen.chat_template = FORGETS
    encoder = Encoder(chosen)
    sequences = encoder.conversation([USER, GOOD, USER, GOOD])
    assert [decode(encoder, one.ids) for one in sequences] == [
        "How is it?好看！<|end|>",
        "How is it?How is it?好看！<|end|>",
    ]
    assert [decode(encoder, one.ids[one.learned]) for one in sequences] == ["好看！<|end|>"] * 2
    parts = [{"type": "text", "text": "好看！"}]
    chosen.chat_template = "{% for m in messages %}{{ m['role'] + m['content'] | string }}{% endfor %}+"
    with pytest.raises(BadRow, match=r"changes earlier turns when one is added; set model.chat_template"):
        Encoder(chosen).conversation([USER, {"role": "assistant", "content": parts}])


def test_a_turn_of_the_user_within_a_completion_is_not_learned(encoder):
    [sequence] = encoder.conversation([USER, GOOD, USER, GOOD], first=1)
    assert decode(encoder, sequence.ids[sequence.learned]) == "好看！<|end|>好看！<|end|>"
    [sequence] = encoder.conversation([USER, GOOD, USER, GOOD], first=2)
    assert decode(encoder, sequence.ids[sequence.learned]) == "好看！<|end|>"


def test_a_conversation_that_the_assistant_begins(encoder):
    [sequence] = encoder.conversation([GOOD])
    assert decode(encoder, sequence.ids) == "<|assistant|>好看！<|end|>"
    assert decode(encoder, sequence.ids[sequence.learned]) == "好看！<|end|>"


@pytest.mark.parametrize("dash", ["", "-"])
@pytest.mark.parametrize(
    "block",
    [
        "{{ m['content'] }}<|end|>{% endgeneration %}",
        "{{ m['content'] }}{% endgeneration %}<|end|>",
        "{{ m['content'] }}<|end|>\n{% endgeneration %}",
        "{{ m['content'] }}{% endgeneration %}",
    ],
)
def test_a_generation_block_is_learned_to_its_turns_end(tokenizer, dash, block):
    import copy

    chosen = copy.deepcopy(tokenizer)
    mark = f"{{%{dash} generation %}}"
    chosen.chat_template = (
        f"{{% for m in messages %}}{{% if m['role'] == 'assistant' %}}<|assistant|>{mark}{block}"
        "{% else %}<|user|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    encoder = Encoder(chosen)
    [sequence] = encoder.conversation([USER, GOOD, USER, {"role": "assistant", "content": "Yes."}])
    middle = "<|end|>" if "<|end|>" in block else ""
    assert decode(encoder, sequence.ids[sequence.learned]) == f"好看！{middle}Yes.<|end|>"
    assert sequence.ids[-1] == encoder.eos


def test_special_tokens_reach_the_text_unless_they_end_or_pad(encoder):
    written = encoder._ids("<|system|>call<|user|> it<|endoftext|><|end|>")
    prompt = encoder.prompt([USER])
    assert encoder.response([USER], prompt, written, ended=True) == "<|system|>call<|user|> it"
    assert encoder.response([USER], prompt, written, ended=True, skip_special_tokens=True) == "call it"
    # What ended the response by the model's own settings is no part of it.
    assert encoder.response("a", prompt, encoder._ids("b<|user|>"), ended=True) == "b"
    assert encoder.response("a", prompt, encoder._ids("b<|user|>"), ended=False) == "b<|user|>"


def test_a_blank_answer_to_messages_takes_nothing_of_the_prompt(encoder):
    assert decode(encoder, encoder.judged([USER], " ")).endswith("<|end|><|assistant|> <|end|>")


def test_no_template(tokenizer):
    import copy

    chosen = copy.deepcopy(tokenizer)
    chosen.chat_template = None
    with pytest.raises(
        BadInput, match=r"the data holds messages, but the tokenizer has no chat template; set model.chat"
    ):
        Encoder(chosen).prompt([USER])


def test_bos_once_and_no_eos_in_a_prompt(with_bos):
    encoder = Encoder(with_bos)
    for text in ("The film", "<|begin|>The film"):
        assert decode(encoder, encoder.prompt(text)) == "<|begin|>The film"
        assert decode(encoder, encoder.text(text)) == "<|begin|>The film<|end|>"
        assert decode(encoder, encoder.judged(text, " was")) == "<|begin|>The film was<|end|>"
    assert decode(encoder, encoder.answer("The film", " was")) == " was<|end|>"
    assert decode(encoder, encoder.prompt("")) == "<|begin|>"


def test_shorten_keeps_bos_and_the_end(with_bos):
    encoder = Encoder(with_bos)
    ids = encoder.text("The film was wonderful.")
    short = encoder.shorten(ids, 4)
    assert list(short) == [encoder.bos, *ids[-3:]]
    assert list(encoder.shorten(ids, 1)) == [encoder.eos]
    assert encoder.shorten(ids, len(ids)) is ids
