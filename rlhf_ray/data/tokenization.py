"""Text to token ids, once: chat templates, BOS never twice, EOS where a text ends.

Prompt and completion become ids apart from each other, as in a rollout, where the prompt's ids are fixed before the
first token of the answer is written.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.messages import LEARNED
from rlhf_ray.data.records import Message, Prompt
from rlhf_ray.data.template_turns import TemplateTurns, without_unlearned

Ids = Int32[np.ndarray, " tokens"]


class Encoder:
    """A tokenizer with the rules of this project around it."""

    def __init__(self, tokenizer: Any) -> None:
        """Args: tokenizer, of Transformers; with a chat template if messages are to be encoded."""
        self.tokenizer = tokenizer
        self.eos: int = tokenizer.eos_token_id
        self.bos: int | None = tokenizer.bos_token_id
        self._turns_of = TemplateTurns(self._by_template)
        self.read_keys = self._turns_of.read
        """Keys of messages that are read, by the template or here."""

    def prompt(self, prompt: Prompt) -> Ids:
        """Ids of a prompt: text as it is, messages by the chat template with the opening of the answer.

        Messages that end with the assistant's turn are continued within that turn.

        Raises:
            BadInput: messages, and the tokenizer has no chat template.
            BadRow: the template refuses them.
        """
        if isinstance(prompt, str):
            return self._begin(prompt)
        if prompt[-1]["role"] == "assistant":
            return self._ids(self._render(prompt, continue_final_message=True))
        return self._ids(self._render(prompt, add_generation_prompt=True))

    def answer(self, prompt: Prompt, response: str) -> Ids:
        """Ids of a response that ended, EOS last. To a prompt of messages it is the assistant's next turn."""
        if isinstance(prompt, str) or prompt[-1]["role"] == "assistant":
            return self.end(self._ids(response))
        return self._turns(prompt, [{"role": "assistant", "content": response}])

    def completion(self, prompt: Prompt, completion: Prompt) -> Ids:
        """Ids of a demonstrated completion, text or messages, EOS last."""
        if isinstance(completion, str):
            return self.answer(prompt, completion)
        return self._turns([] if isinstance(prompt, str) else prompt, completion)

    def text(self, text: str) -> Ids:
        """Ids of a whole text, with BOS if the tokenizer sets one, EOS last."""
        return self.end(self._begin(text))

    def judged(self, prompt: Prompt, response: str) -> Ids:
        """Ids of a prompt with its response as a reward model reads them: one text, EOS last."""
        if isinstance(prompt, str):
            return self.text(prompt + response)
        if prompt[-1]["role"] == "assistant":
            return self.end(self._ids(self._render(prompt, continue_final_message=True) + response))
        return self.end(self._ids(self._render([*prompt, {"role": "assistant", "content": response}])))

    def shorten(self, ids: Ids, max_tokens: int) -> Ids:
        """Take away the beginning of a text that is too long, but not BOS, so that the response is what remains."""
        if len(ids) <= max_tokens:
            return ids
        begins = ids[:1] if ids[0] == self.bos and max_tokens > 1 else ids[:0]
        return np.concatenate([begins, ids[len(ids) - max_tokens + len(begins) :]])

    def conversation(self, messages: Sequence[Message]) -> tuple[Ids, Bool[np.ndarray, " tokens"]]:
        """Ids of a conversation, and which of them the assistant writes (its turns with their EOS).

        A template with `{% generation %}` says that itself; with any other it is found by rendering the conversation
        turn by turn, each of which must only add to the one before.

        Raises:
            BadInput: no chat template.
            BadRow: the template refuses the turns, or changes earlier ones when later ones are added.
        """
        self.read_keys.update(LEARNED)
        if "{% generation" in (self.tokenizer.chat_template or ""):
            self._render(messages)
            turns, tools, _ = self._turns_of.given(messages)
            encoded = self.tokenizer.apply_chat_template(
                turns, tools=tools, return_dict=True, return_assistant_tokens_mask=True
            )
            learned = without_unlearned(messages, np.array(encoded["assistant_masks"], bool))
            return np.array(encoded["input_ids"], np.int32), learned
        ids: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        done = ""
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            opening = self._render(messages[:turn], add_generation_prompt=True) if turn else ""
            closing = self._render(messages[: turn + 1])
            before, answer = self._added(done, opening), self._added(opening, closing)
            # What a template puts after EOS (often a line break) belongs to the next turn's beginning.
            answer_ids = self._ids(answer)
            kept = self.end(answer_ids)
            rest = answer_ids[len(kept) :]
            counts = message.get("weight") != 0
            for piece, mine in ((self._ids(before), False), (kept, counts), (rest, False)):
                ids.append(piece)
                masks.append(np.full(len(piece), mine))
            done = closing
        return np.concatenate(ids), np.concatenate(masks)

    def end(self, ids: Ids) -> Ids:
        """End `ids` with exactly one EOS: added where it is missing, and what is blank after it taken away."""
        places = np.flatnonzero(ids == self.eos)
        if len(places) and not self.tokenizer.decode(ids[places[-1] + 1 :], skip_special_tokens=True).strip():
            last = int(places[-1])
            while last > 0 and ids[last - 1] == self.eos:
                last -= 1
            return ids[: last + 1]
        return np.append(ids, np.int32(self.eos)).astype(np.int32)

    def _turns(self, prompt: Sequence[Message], completion: Sequence[Message]) -> Ids:
        opening = self._render(prompt, add_generation_prompt=True) if prompt else ""
        whole = self._render([*prompt, *completion])
        return self.end(self._ids(self._added(opening, whole)))

    def _begin(self, text: str) -> Ids:
        """Ids of text at the beginning of a sequence, with the tokenizer's BOS once and without an EOS of its own."""
        ids = np.array(self.tokenizer(text, verbose=False)["input_ids"], np.int32)
        if self.bos is not None and len(ids) > 1 and ids[0] == ids[1] == self.bos:
            ids = ids[1:]
        # An EOS that the text does not hold itself was set by the tokenizer.
        if len(ids) and ids[-1] == self.eos and not np.array_equal(self._ids(text)[-1:], ids[-1:]):
            ids = ids[:-1]
        return ids

    def _ids(self, text: str) -> Ids:
        return np.array(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int32)

    def _render(self, messages: Sequence[Message], **options: Any) -> str:
        return self._turns_of.rendered(messages, **options)

    def _by_template(self, messages: Sequence[Any], **options: Any) -> str:
        if not self.tokenizer.chat_template:
            raise BadInput(
                f"{self.tokenizer.name_or_path}: the data holds messages, but the tokenizer has no chat template; "
                "set model.chat_template (or layout: trl, where transcripts are to stay text)"
            )
        from jinja2.exceptions import TemplateError

        try:
            return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
        except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise BadRow(f"the chat template refuses turns of {roles}: {error}") from error

    def _added(self, before: str, after: str) -> str:
        if not after.startswith(before):
            raise BadRow(
                "the chat template changes earlier turns when one is added; "
                "set model.chat_template to one that does not, or to one with {% generation %} around the answers"
            )
        return after[len(before) :]
