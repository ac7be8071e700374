"""Text to token ids and back, once: chat templates, BOS never twice, EOS where a text ends.

A prompt's ids are fixed before the first token of an answer is written, as in a rollout; the answer's ids are those
that it has behind that prompt. Tokenizers of SentencePiece begin a text with a blank of their own, so they are asked
for prompt and answer as one text; byte-level tokenizers, whose texts only add up, are asked for the answer alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.chat_template import ChatTemplate
from rlhf_ray.data.messages import LEARNED
from rlhf_ray.data.records import Message, Prompt

Ids = Int32[np.ndarray, " tokens"]

ANCHORS = ("\n", "x", "。")
"""Texts that stand for what was written before; the first one that merges with nothing is taken."""


@dataclass(frozen=True, slots=True)
class Written:
    """A sequence of tokens, and which of them are to be learned."""

    ids: Ids
    learned: Bool[np.ndarray, " tokens"]


class Encoder:
    """A tokenizer with the rules of this project around it."""

    def __init__(self, tokenizer: Any) -> None:
        """Encode with a tokenizer of Transformers, which needs a chat template if messages are to be encoded."""
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer)
        self.eos: int = tokenizer.eos_token_id
        self.bos: int | None = tokenizer.bos_token_id
        self.read_keys = self.template.read_keys
        """Keys of messages that are read, by the template or here."""
        ends = {self.eos, *tokenizer.convert_tokens_to_ids(list(self.template.ends))}
        self.ends: tuple[int, ...] = (self.eos, *sorted(ends - {self.eos}))
        """Tokens at which generation stops: EOS first, then what ends a turn of the chat template."""
        self._hidden = {*self.ends, tokenizer.pad_token_id}
        self._special = frozenset(self.template.special)
        self._added = self._special.union(tokenizer.get_added_vocab().values())
        self._adds_up = self._decode([*self._ids("x"), *self._ids("a")]) == "xa"
        # Whether the tokenizer puts a blank of its own behind an added token, too.
        behind = self._ids(tokenizer.eos_token + "a")[1:]
        self._blank_behind_added = not self._adds_up and self._decode_behind(behind).startswith(" ")

    def prompt(self, prompt: Prompt) -> Ids:
        """Return the ids of a prompt: text as it is, messages by the chat template with the opening of the answer.

        Messages that end with the assistant's turn are continued within that turn.

        Raises:
            BadInput: messages, and the tokenizer has no chat template.
            BadRow: the template refuses them.
        """
        return self._begin(prompt) if isinstance(prompt, str) else self._ids(self.template.opening(prompt))

    def answer(self, prompt: Prompt, response: str) -> Ids:
        """Return the ids of a response that ended, with the token that ends it.

        To a prompt of messages it is the assistant's next turn, which ends as the chat template has it.
        """
        if isinstance(prompt, str):
            return self._end(self._continue(prompt, self._begin(prompt), self.template.cut(response), self._begin))
        opening, written = self._turn(prompt, response)
        return self._end(self._continue(opening, self._ids(opening), written))

    def text(self, text: str) -> Ids:
        """Return the ids of a whole text, with BOS if the tokenizer sets one, EOS last."""
        return self._end(self._begin(self.template.cut(text)))

    def judged(self, prompt: Prompt, response: str) -> Ids:
        """Return the ids of a prompt with its response as a reward model reads them: one text, its end last."""
        if isinstance(prompt, str):
            return self._end(self._begin(prompt + self.template.cut(response)))
        if prompt[-1]["role"] == "assistant":
            return self._end(self._ids("".join(self._turn(prompt, response))))
        return self._end(self._ids(self.template.judged(prompt, response)))

    def response(
        self, prompt: Prompt, prompt_ids: Ids, response_ids: Ids, *, ended: bool, skip_special_tokens: bool = False
    ) -> str:
        """Return the text that a policy wrote: what its tokens add to the text of the prompt.

        Padding and the tokens that end a turn are no part of it, nor what the chat template puts around an answer.

        Args:
            prompt: what was asked.
            prompt_ids: its ids.
            response_ids: what the policy wrote.
            ended: whether a token ended the response, and not its length.
            skip_special_tokens: leave out all special tokens.
        """
        hidden = self._hidden | self._special if skip_special_tokens else self._hidden
        # A model may name further tokens that end generation than its tokenizer and its template do.
        last = len(response_ids) - 1 if ended and len(response_ids) and response_ids[-1] in self._special else None
        kept = [token for place, token in enumerate(response_ids.tolist()) if token not in hidden and place != last]
        if self._adds_up or not len(prompt_ids) or self._special.issuperset(prompt_ids.tolist()):
            text = self._decode(kept)
        else:
            text = self._decode_behind(kept)
            if self._blank_behind_added and int(prompt_ids[-1]) in self._added:
                text = text.removeprefix(" ")
        if isinstance(prompt, str):
            return text
        return self.template.content(text, ended, continued=prompt[-1]["role"] == "assistant")

    def all_ends(self, network: Any) -> list[int]:
        """Return the ids at which a network stops writing: `ends`, then those that its generation_config names."""
        named = getattr(getattr(network, "generation_config", None), "eos_token_id", None)
        return list(dict.fromkeys([*self.ends, *np.atleast_1d([] if named is None else named).tolist()]))

    def shorten(self, ids: Ids, max_tokens: int) -> Ids:
        """Take away the beginning of a text that is too long, but not BOS, so that the response is what remains."""
        if len(ids) <= max_tokens:
            return ids
        begins = ids[:1] if ids[0] == self.bos and max_tokens > 1 else ids[:0]
        return np.concatenate([begins, ids[len(ids) - max_tokens + len(begins) :]])

    def conversation(self, messages: Sequence[Message], first: int = 0) -> list[Written]:
        """Return the ids of a conversation, learned where the assistant writes: its turns, each with its end.

        Before each turn stands exactly what the policy would read there. A template that renders earlier turns
        otherwise once later ones follow (without their thoughts, mostly) makes several sequences of a conversation.
        A template with `{% generation %}` says itself what the assistant writes, if all turns are to be learned and
        each stands behind what the policy would read there.

        Args:
            messages: the conversation; what follows the assistant's last turn is left out.
            first: the turn from which on the assistant's turns are learned.

        Raises:
            BadInput: no chat template.
            BadRow: the template refuses the turns, or no answer is to be learned.
        """
        self.read_keys.update(LEARNED)
        if first == 0 and self.template.marks_answers and self.template.marks_what_follows(messages):
            return [self._marked(messages)]
        sequences: list[_Sequence] = []
        for turn, message in enumerate(messages):
            if turn < first or message["role"] != "assistant" or message.get("weight") == 0:
                continue
            opening, written = self.template.turn(messages[: turn + 1])
            if not sequences or not self._extend(sequences[-1], opening):
                sequences.append(_Sequence())
                sequences[-1].add(opening, self._ids(opening), learned=False)
            current = sequences[-1]
            current.add(written, self._continue(opening, current.ids, written), learned=True)
        if not sequences:
            raise BadRow("no turn of the assistant is to be learned")
        return [self._ended(sequence) for sequence in sequences]

    def behind(self, end: str, text: str) -> Ids:
        """Return the ids of a text that follows a token of the vocabulary, which stands alone; empty: any text."""
        before = end or ANCHORS[0]
        return self._continue(before, self._ids(before), text)

    def _turn(self, prompt: Sequence[Message], response: str) -> tuple[str, str]:
        """Return what the policy reads and what it writes, as text."""
        if prompt[-1]["role"] != "assistant":
            return self.template.turn([*prompt, {"role": "assistant", "content": response}])
        opening = self.template.opening(prompt)
        begun: Message = {"role": "assistant", "content": prompt[-1]["content"] + response}
        whole = self.template.render([*prompt[:-1], begun])
        return opening, self.template.cut(self.template.continued(opening, whole, response))

    def _extend(self, sequence: "_Sequence", opening: str) -> bool:
        """Add what leads from the end of a sequence to the next opening; False where that does not begin likewise."""
        if not opening.startswith(sequence.text):
            return False
        between = opening[len(sequence.text) :]
        if self._adds_up and sequence.ids[-1] in self.ends:
            # Nothing merges with a special token, so the whole need not be read again.
            ids = self._ids(between)
        else:
            whole = self._ids(opening)
            if not np.array_equal(whole[: len(sequence.ids)], sequence.ids):
                return False
            ids = whole[len(sequence.ids) :]
        sequence.add(between, ids, learned=False)
        return True

    def _marked(self, messages: Sequence[Message]) -> Written:
        sequence = _Sequence()
        for piece, learned in self.template.marked(messages):
            sequence.add(piece, self._continue(sequence.text, sequence.ids, piece), learned)
        return self._ended(sequence)

    def _ended(self, sequence: "_Sequence") -> Written:
        ids = self._end(sequence.ids)
        return Written(ids, np.append(sequence.learned, np.ones(len(ids) - len(sequence.ids), bool)).astype(bool))

    def _end(self, ids: Ids) -> Ids:
        """End ids with EOS unless something ends them already."""
        return ids if len(ids) and ids[-1] in self.ends else np.append(ids, np.int32(self.eos)).astype(np.int32)

    def _begin(self, text: str) -> Ids:
        """Encode text at the beginning of a sequence, with the tokenizer's BOS once and without an EOS of its own."""
        ids = np.array(self.tokenizer(text, verbose=False)["input_ids"], np.int32)
        if self.bos is not None and len(ids) > 1 and ids[0] == ids[1] == self.bos:
            ids = ids[1:]
        # An EOS that the text does not hold itself was set by the tokenizer.
        if len(ids) and ids[-1] == self.eos and not np.array_equal(self._ids(text)[-1:], ids[-1:]):
            ids = ids[:-1]
        return ids

    def _continue(self, before: str, before_ids: Ids, text: str, whole: Callable[[str], Ids] | None = None) -> Ids:
        """Encode text as it goes on from what stands before it, whose ids are fixed.

        Args:
            before: text.
            before_ids: its ids.
            text: what follows.
            whole: gives the ids of both together.
        """
        if self._adds_up or not before:
            return self._ids(text)
        joint = (whole or self._ids)(before + text)
        if np.array_equal(joint[: len(before_ids)], before_ids):
            return joint[len(before_ids) :]
        # The two have merged at their border; then another text without a border of its own stands before it.
        for anchor in ANCHORS:
            held, joint = self._ids(anchor), self._ids(anchor + text)
            if np.array_equal(joint[: len(held)], held) and self._decode(joint) == self._decode(held) + text:
                return joint[len(held) :]
        return self._ids(text)

    def _ids(self, text: str) -> Ids:
        return np.array(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int32)

    def _decode(self, ids: Sequence[int] | Ids) -> str:
        # Many tokenizers ask for blanks before punctuation to be cleaned away, which the policy wrote.
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _decode_behind(self, ids: Sequence[int] | Ids) -> str:
        """Decode ids that do not begin a text: what they add to a letter before them."""
        held = self._ids("x")
        before, both = self._decode(held), self._decode([*held, *ids])
        return both[len(before) :] if both.startswith(before) else self._decode(ids)


class _Sequence:
    """Text and ids that grow together."""

    def __init__(self) -> None:
        self.text = ""
        self.ids: Ids = np.zeros(0, np.int32)
        self.learned: Bool[np.ndarray, " tokens"] = np.zeros(0, bool)

    def add(self, text: str, ids: Ids, learned: bool) -> None:
        self.text += text
        self.ids = np.concatenate([self.ids, ids]).astype(np.int32)
        self.learned = np.concatenate([self.learned, np.full(len(ids), learned)])


def check_vocabulary(model: ModelConfig, network: Any, tokenizer: Any) -> None:
    """Check that a model has an embedding for each of a tokenizer's tokens; `network` is its configuration.

    Raises:
        BadInput: names the model and what to do.
    """
    rows = network.get_text_config().vocab_size
    # Special tokens past the embeddings do no harm as long as nobody writes them: padding, mostly.
    harmless = set(tokenizer.all_special_ids) - set(Encoder(tokenizer).ends)
    beyond = sorted({i for i in tokenizer.get_vocab().values() if i >= rows} - harmless)
    if beyond:
        raise BadInput(
            f"{model.tokenizer or model.path}: the tokenizer has tokens up to number {beyond[-1]}, but the model "
            f"{model.path} has embeddings for {rows}; use the model's own tokenizer"
        )
