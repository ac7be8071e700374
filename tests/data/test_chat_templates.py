"""Chat templates of many families: what is learned is what inference shows, and each turn's end is known."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.tokenization import Encoder
from rlhf_ray.models.tiny import build_tokenizer
from tests.tiny_sentencepiece import LLAMA_2, build_sentencepiece

SHIPPED = Path(next(iter(importlib.util.find_spec("trl").submodule_search_locations))) / "chat_templates"  # type: ignore[union-attr,arg-type]


@dataclass(frozen=True)
class Family:
    """A template, and what is known about its turns."""

    template: str
    """Its text, or the name of one that TRL ships."""
    end: str
    """What ends a turn."""
    eos: str
    thought: str = ""
    """What the template lets the last answer begin with."""
    sequences: int = 1
    """Of a conversation with two answers."""
    special: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    """What else ends a turn: one that calls tools."""

    @property
    def text(self) -> str:
        """The template itself."""
        return self.template if "{" in self.template else (SHIPPED / f"{self.template}.jinja").read_text()


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
PHI_4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
GRANITE = (
    "{% for m in messages %}{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
WORDS = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
MARKED = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{%- generation -%}"
    "{{ m.content }}{%- endgeneration -%}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWQ = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + (m.content.split('</think>')[-1].lstrip('\n') if "
    "m.role == 'assistant' else m.content) + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
DEEPSEEK_END = "<｜end▁of▁sentence｜>"
COHERE_END = "<|END_OF_TURN_TOKEN|>"
IM = ("<|im_start|>", "<|im_end|>")
THINKING = (*IM, "<think>", "</think>")
DEEPSEEK = ("<｜User｜>", "<｜Assistant｜>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>")
THINK = "<think>\n\n</think>\n\n"
FAMILIES = {
    "chatml": Family(CHATML, "<|im_end|>", "<|im_end|>", special=IM),
    "chatml-other-eos": Family(CHATML, "<|im_end|>", "<|endoftext|>", special=IM),
    "qwen2.5": Family("qwen2_5", "<|im_end|>", "<|im_end|>", special=IM),
    "qwen3": Family("qwen3", "<|im_end|>", "<|endoftext|>", THINK, 2, (*IM, "<think>", "</think>")),
    "llama-2": Family(LLAMA_2, "</s>", "</s>"),
    "llama-3": Family("llama3", "<|eot_id|>", "<|eot_id|>", special=("<|start_header_id|>", "<|end_header_id|>")),
    "llama-3-base": Family("llama3", "<|eot_id|>", "<|end_of_text|>", special=("<|eot_id|>", "<|start_header_id|>")),
    "mistral": Family(MISTRAL, "</s>", "</s>", special=("[INST]", "[/INST]")),
    "gemma-2": Family("gemma", "<end_of_turn>", "<eos>", special=("<start_of_turn>", "<end_of_turn>")),
    "gemma-3": Family("gemma3", "<end_of_turn>", "<eos>", special=("<start_of_turn>", "<end_of_turn>", "\n\n", "\n")),
    "phi-3.5": Family("phi3_5", "<|end|>", "<|endoftext|>", special=("<|user|>", "<|assistant|>", "<|end|>")),
    "phi-4": Family(PHI_4, "<|im_end|>", "<|endoftext|>", special=(*IM, "<|im_sep|>")),
    "deepseek-v3": Family(
        "deepseekv3",
        DEEPSEEK_END,
        DEEPSEEK_END,
        sequences=2,
        special=DEEPSEEK,
    ),
    "deepseek-r1": Family("deepseek_r1_distill", DEEPSEEK_END, DEEPSEEK_END, "", 2, DEEPSEEK),
    "deepseek-r1-marked": Family("deepseek_r1_distill_training", DEEPSEEK_END, DEEPSEEK_END, "", 2, DEEPSEEK),
    "qwen3.5": Family("qwen3_5_think", "<|im_end|>", "<|endoftext|>", "", 2, THINKING),
    "qwen3.8": Family("qwen3_8", "<|im_end|>", "<|im_end|>", "", 1, THINKING),
    "qwq": Family(QWQ, "<|im_end|>", "<|im_end|>", "", 2, THINKING),
    "nemotron-3": Family("nemotron_3_nano", "<|im_end|>", "<|im_end|>", "", 2, THINKING),
    "nemotron-3-marked": Family("nemotron_3_nano_training", "<|im_end|>", "<|im_end|>", "", 2, THINKING),
    "llama-3.1": Family("llama3_1", "<|eot_id|>", "<|eot_id|>", special=HEADERS, more=("<|eom_id|>",)),
    "gemma-4": Family("gemma4", "<turn|>", "<eos>", special=("<|turn>", "<tool_call|>"), more=("<|tool_response>",)),
    "zephyr": Family(ZEPHYR, "</s>", "</s>", special=("<|user|>", "<|assistant|>")),
    "granite": Family(GRANITE, "<|end_of_text|>", "<|end_of_text|>", special=("<|start_of_role|>", "<|end_of_role|>")),
    "cohere": Family(
        "cohere",
        COHERE_END,
        COHERE_END,
        special=("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>"),
    ),
    "marked": Family(MARKED, "<|im_end|>", "<|endoftext|>", special=IM),
    "no-end": Family(WORDS, "<eos>", "<eos>"),
}
TALK = [
    {"role": "user", "content": "how are you"},
    {"role": "assistant", "content": "质量很好。"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "4"},
]


def encoder_of(family: Family, kind: str) -> Encoder:
    names = list(dict.fromkeys((family.eos, family.end, *family.more, *family.special)))
    if kind == "bytes":
        tokenizer: Any = build_tokenizer(["hello how are you"], 300)
        tokenizer.add_special_tokens({"bos_token": "<s>"})
    else:
        tokenizer = build_sentencepiece("normalizer" if kind == "blank" else "first")
    # As in many vocabularies: what begins a turn is special, `<think>` and runs of line breaks are only added.
    plain = [name for name in names if not name.strip() or "think" in name]
    tokenizer.add_tokens(plain)
    tokenizer.add_special_tokens(
        {"eos_token": family.eos, "additional_special_tokens": [name for name in names if name not in plain]}
    )
    tokenizer.chat_template = family.text
    return Encoder(tokenizer)


@pytest.mark.parametrize("kind", ["bytes", "blank", "first"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_learned_is_what_inference_shows(name: str, kind: str) -> None:
    family = FAMILIES[name]
    encoder = encoder_of(family, kind)
    known = encoder.tokenizer.convert_ids_to_tokens(list(encoder.ends))
    assert known[0] == family.eos
    assert sorted(known) == sorted({family.eos, family.end, *family.more}), "each end of a turn stops generation"
    sequences = encoder.conversation(TALK)
    assert len(sequences) == family.sequences
    for turn in (1, 3):
        sequence = sequences[-1] if turn == 3 else sequences[0]
        prompt, content = TALK[:turn], TALK[turn]["content"]
        before, answer = encoder.prompt(prompt), encoder.answer(prompt, content)
        if turn == 1 and name == "no-end":
            # Nothing in the template ends a turn, so EOS stands only at the very end.
            answer = answer[:-1]
        np.testing.assert_array_equal(sequence.ids[: len(before)], before, "the policy reads what it learned behind")
        place = slice(len(before), len(before) + len(answer))
        np.testing.assert_array_equal(sequence.ids[place], answer)
        assert sequence.learned[place].all()
        assert not sequence.learned[len(before) - 1]
        assert not sequence.learned[place.stop : place.stop + 1].any(), "nothing is learned behind a turn's end"
        assert not set(answer[:-1].tolist()) & set(encoder.ends)
        ended = answer[-1] in encoder.ends
        assert encoder.response(prompt, before, answer, ended=True) == family.thought + content
        assert ended == (turn == 3 or name != "no-end")
    learned = sum(int(sequence.learned.sum()) for sequence in sequences)
    answers = [encoder.answer(TALK[:turn], TALK[turn]["content"]) for turn in (1, 3)]
    assert learned == sum(map(len, answers)) - (name == "no-end")


@pytest.mark.parametrize("kind", ["bytes", "blank"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_reward_model_reads_what_it_learned(name: str, kind: str) -> None:
    """An answer that a policy wrote, end of turn and all, is judged as the same answer in a data set."""
    family = FAMILIES[name]
    encoder = encoder_of(family, kind)
    prompt = TALK[:3]
    before, answer = encoder.prompt(prompt), encoder.answer(prompt, "4")
    judged = encoder.judged(prompt, "4")
    assert encoder.tokenizer.convert_ids_to_tokens([judged[-1]]) == [family.end]
    assert not set(judged[len(before) :][:-1].tolist()) & set(encoder.ends)
    np.testing.assert_array_equal(encoder.judged(prompt, encoder.response(prompt, before, answer, ended=True)), judged)
    # One opens a turn with more than a conversation holds; the other has no token at the border, where texts merge.
    if not name.startswith(("deepseek", "qwq", "no-end", "nemotron")):
        np.testing.assert_array_equal(judged, [*before, *answer])


OPENED = [name for name in FAMILIES if name.startswith(("deepseek", "qwen3.", "qwq", "nemotron"))]


@pytest.mark.parametrize("name", OPENED)
def test_a_thought_goes_on_where_the_opening_began_it(name: str) -> None:
    encoder = encoder_of(FAMILIES[name], "bytes")
    thought = [*TALK[:3], {"role": "assistant", "content": "<think>\nwhy\n</think>\n\n4"}]
    sequence, opening = encoder.conversation(thought)[-1], encoder.prompt(TALK[:3])
    np.testing.assert_array_equal(sequence.ids[: len(opening)], opening)
    learned = encoder.answer(TALK[:3], thought[-1]["content"])
    np.testing.assert_array_equal(sequence.ids[len(opening) :], learned)
    text = encoder.response(TALK[:3], opening, learned, ended=True)
    assert text == "why\n</think>\n\n4"
    assert encoder.tokenizer.decode(encoder.answer(TALK[:3], "4")[:-1]).endswith("</think>\n\n4"), (
        "an empty thought ends"
    )
    np.testing.assert_array_equal(encoder.answer(TALK[:3], text), learned, "a policy's own answer is learned as it was")


@pytest.mark.parametrize("name", ["qwq", "deepseek-r1"])
def test_a_thought_that_the_template_drops_is_refused(name: str) -> None:
    encoder = encoder_of(FAMILIES[name], "bytes")
    with pytest.raises(BadRow, match="passes over `reasoning_content` of turn 4"):
        encoder.conversation([*TALK[:3], {"role": "assistant", "content": "4", "reasoning_content": "why"}])
