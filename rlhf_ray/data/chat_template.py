"""Messages to text by a tokenizer's chat template, and what that template puts around the turns of the assistant."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.messages import REASONING
from rlhf_ray.data.records import Message
from rlhf_ray.data.template_turns import TemplateTurns

GENERATION = re.compile(r"\{%[-+]?\s*generation\b")
"""How a template begins to mark what the assistant writes, with any control of white space."""

QUESTION: Message = {"role": "user", "content": "question"}
PROBE = "probe"
"""An answer that no template changes; what stands around it is the template's."""
THOUGHT, THOUGHT_END = "<think>", "</think>"
NO_THOUGHT = f"{THOUGHT}\n\n{THOUGHT_END}\n\n"
"""How templates write that an answer has no thought."""


@dataclass(frozen=True, slots=True)
class TurnShape:
    """Texts that a template puts around an answer."""

    before: str = ""
    """Blanks between the opening of the assistant's turn and the answer, or the end of an empty thought."""
    after: str = ""
    """Text between the answer and the end-of-turn token, or all that follows where there is no such token."""
    end: str | None = None
    """The token that ends a turn. None: the template has none."""


class ChatTemplate:
    """The chat template of a tokenizer; without one, only its EOS is known."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._turns = TemplateTurns(self._by_template)
        self.read_keys = self._turns.read
        """Keys of messages that the template has asked for."""

    @cached_property
    def shape(self) -> TurnShape:
        """Return what the template puts around an answer, found by rendering one that is known."""
        if not self._tokenizer.chat_template:
            return TurnShape()
        answered: list[Message] = [QUESTION, {"role": "assistant", "content": PROBE}]
        try:
            start, probe, alone = self._by_template(answered).rpartition(PROBE)
            opening = self._by_template([QUESTION], add_generation_prompt=True)
        except BadRow:
            return TurnShape()
        if not probe:
            return TurnShape()
        end = self._end_of_turn(alone, answered)
        before = start.removeprefix(opening)
        if begun := _thought_begun(opening):
            before = NO_THOUGHT.removeprefix(begun)
        elif before.strip():
            before = ""
        return TurnShape(before, alone[: alone.index(end)] if end else alone, end)

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """Tokens that end what the assistant writes: EOS, the template's end of a turn, and of one that calls tools."""
        # Not by the turns that are read: what is asked for here says nothing of the data.
        turns = TemplateTurns(self._by_template)
        calls = turns.call_ends(self.special.values()) if self._tokenizer.chat_template else []
        return tuple(dict.fromkeys(end for end in (self._tokenizer.eos_token, self.shape.end, *calls) if end))

    @property
    def marks_answers(self) -> bool:
        """Whether the template says itself, by `{% generation %}`, what the assistant writes."""
        return bool(self._tokenizer.chat_template) and bool(GENERATION.search(self._tokenizer.get_chat_template()))

    def marks_what_follows(self, messages: Sequence[Message]) -> bool:
        """Tell whether marked answers of a conversation stand behind what the policy reads there.

        Templates that are made for training may lack what the opening of an answer has at inference, `<think>` mostly.
        """
        whole = self.render(messages)
        turns = [turn for turn, message in enumerate(messages) if turn and message["role"] == "assistant"]
        return all(whole.startswith(self.render(messages[:turn], add_generation_prompt=True)) for turn in turns)

    def render(self, messages: Sequence[Message], **options: Any) -> str:
        """Return the text of messages; options are those of `apply_chat_template`.

        Raises:
            BadInput: no chat template.
            BadRow: the template refuses the turns, or passes over something that they say.
        """
        return self._turns.rendered(messages, **options)

    def _by_template(self, messages: Sequence[Any], **options: Any) -> str:
        if not self._tokenizer.chat_template:
            raise BadInput(
                f"{self._tokenizer.name_or_path}: the data holds messages, but the tokenizer has no chat template; "
                "set model.chat_template (or layout: trl, where transcripts are to stay text)"
            )
        from jinja2.exceptions import TemplateError

        try:
            return str(self._tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
        except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise BadRow(f"the chat template refuses turns of {roles}: {error}") from error

    def opening(self, messages: Sequence[Message]) -> str:
        """Return what the policy reads: messages and the opening of its turn, or its own last turn to go on with."""
        if messages[-1]["role"] == "assistant":
            return self.render(messages, continue_final_message=True)
        return self.render(messages, add_generation_prompt=True)

    def turn(self, messages: Sequence[Message]) -> tuple[str, str]:
        """Return what the policy reads before the last turn, the assistant's, and what it then writes, to its end.

        Where the opening is more than a turn begins with in a conversation (a `<think>`, say), the policy goes on from
        there: it writes the content and the end of a turn. An answer without a thought ends the one that was opened.

        Raises:
            BadRow: the template refuses the turns, or changes a turn that is not plain text.
        """
        whole = self.render(messages)
        before = messages[:-1]
        opening = self.render(before, add_generation_prompt=True) if before else self._header(whole)
        begun, content = _thought_begun(opening), _plain(messages[-1])
        if begun and content is not None and THOUGHT_END in content:
            # As the policy wrote it, for templates write thoughts in a form of their own, or leave them out.
            written = content.removeprefix(begun).removeprefix(THOUGHT) + self.shape.after + (self.shape.end or "")
        else:
            written = self.continued(opening, whole, content)
            written = NO_THOUGHT.removeprefix(begun) + written if begun and THOUGHT_END not in written else written
        return opening, self.cut(written)

    def judged(self, prompt: Sequence[Message], response: str) -> str:
        """Return a prompt with the assistant's next turn as a conversation holds them, to the end of that turn."""
        whole = self.render([*prompt, {"role": "assistant", "content": response}])
        begun = _shared(self.opening(prompt), whole)
        return whole[:begun] + self.cut(whole[begun:])

    def continued(self, opening: str, whole: str, content: Any) -> str:
        """Return what comes after an opening: the rest of the whole rendering, or the content where they part ways."""
        if whole.startswith(opening):
            return whole[len(opening) :]
        if not isinstance(content, str):
            # Neither calls nor thoughts can be put behind an opening that the template does not go on from.
            raise BadRow(
                "the chat template changes earlier turns when one is added; "
                "set model.chat_template to one that does not, or to one with {% generation %} around the answers"
            )
        begun = opening[_shared(opening, whole) :]
        return content.removeprefix(begun) + self.shape.after + (self.shape.end or "")

    def marked(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """Return the pieces of a conversation and whether the assistant writes them, as `{% generation %}` says.

        A block without the end-of-turn token that follows it gets it; what a block holds after that token does not
        count, since generation stops there. Nothing comes after the last block.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        self.render(messages)
        turns, tools, _ = self._turns.given(messages)
        rendered: list[str]
        blocks: list[list[tuple[int, int]]]
        # Its annotations promise other types than it returns, and ask for plain dicts where it only reads.
        rendered, blocks = render_jinja_template(  # type: ignore[assignment, str-unpack]
            conversations=[turns],  # type: ignore[list-item]
            tools=tools,
            chat_template=self._tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            **self._tokenizer.special_tokens_map,
        )
        text, pieces, done = rendered[0], [], 0
        weights = [message.get("weight", 1) for message in messages if message["role"] == "assistant"]
        if all(weights):
            weights = [1] * len(blocks[0])
        elif len(weights) != len(blocks[0]):
            raise BadRow(
                f"the chat template marks {len(blocks[0])} answers of {len(weights)}, so `weight` has no place"
            )
        for (start, end), weight in zip(blocks[0], weights, strict=True):
            learned = self.cut(text[start:end])
            if not learned.endswith(self.ends):
                learned += self._end_after(text[end:])
            pieces += [(text[done:start], False), (learned, weight != 0)]
            done = start + len(learned)
        return pieces or [(text, False)]

    def cut(self, text: str) -> str:
        """Return text up to the token that ends it, if it has one: what is blank or special after that is no part."""
        size = len(text)
        while (bare := text[:size].rstrip()).endswith(self._behind_ends):
            size = len(bare) - max(len(token) for token in self._behind_ends if bare.endswith(token))
        places = [(place, end) for end in self.ends if (place := text.find(end, size)) >= 0]
        if not places:
            return text
        place, end = min(places)
        return text[: place + len(end)]

    def content(self, text: str, ended: bool, continued: bool = False) -> str:
        """Return an answer without what the template puts around it.

        Args:
            text: what the policy wrote, without the end-of-turn token.
            ended: whether it ended its turn.
            continued: whether it went on with a turn that had begun.
        """
        before = "" if continued else self.shape.before
        return text.removeprefix(before).removesuffix(self.shape.after if ended else "")

    @cached_property
    def special(self) -> dict[int, str]:
        """The tokenizer's special tokens by id, those too that have no role in its settings."""
        added = {number: str(token) for number, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        return added | dict(zip(self._tokenizer.all_special_ids, self._tokenizer.all_special_tokens, strict=True))

    @cached_property
    def _behind_ends(self) -> tuple[str, ...]:
        return tuple(token for token in {*self.special.values(), *self.ends} if token.strip())

    def _end_after(self, text: str) -> str:
        """Return what a block leaves out of its turn's end."""
        blanks = len(text) - len(text.lstrip())
        ends = [end for end in self.ends if text.startswith(end, blanks)]
        return text[:blanks] + ends[0] if ends else ""

    def _header(self, whole: str) -> str:
        """Return the opening of a conversation that the assistant begins."""
        question, opening = (self._by_template([QUESTION], add_generation_prompt=asked) for asked in (False, True))
        header = opening[len(question) :] if opening.startswith(question) else ""
        return whole[: whole.index(header) + len(header)] if header and header in whole else ""

    def _end_of_turn(self, alone: str, answered: Sequence[Message]) -> str | None:
        """Find the last token of those that follow an answer whatever comes next; else the first that follows it."""
        # Some vocabularies (Gemma) count runs of blanks among their added tokens.
        names = {token: name for name, token in self._tokenizer.get_added_vocab().items() if name.strip("▁ \t\r\n")}
        names |= self.special
        here = self._ids(alone)
        try:
            followed = self._ids(self._by_template([*answered, QUESTION]).rpartition(PROBE)[2])
        except BadRow:
            followed = here
        always = [names[token] for token in here[: _shared(here, followed)] if token in names]
        found = always[-1:] or [names[token] for token in here if token in names][:1]
        return found[0] if found and found[0] in alone else None

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _plain(message: Message) -> str | None:
    """Return the text of a turn; None where it says more than that."""
    return None if message.keys() & {"tool_calls", *REASONING} else message["content"]


def _thought_begun(opening: str) -> str:
    """Return the thought that an opening begins, `<think>` and the line break behind it; empty where it begins none."""
    begun = opening[place:] if (place := opening.rfind(THOUGHT)) >= 0 else ""
    return begun if begun.strip() == THOUGHT else ""


def _shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Count the characters that both begin with."""
    return sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(one, other, strict=False)))
