"""Tokens that stand between two turns of the policy, which nobody but the chat template writes."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.records import Message
from rlhf_ray.data.tokenization import Encoder, Ids

ASKED: Message = {"role": "user", "content": "question"}
MARK = "stand-in-for-a-turn"
"""A word of a turn that stands in for the policy's, whose own tokens are never rendered again."""
MOST_KEPT = 1024
"""Latest answers whose tokens are kept."""
ANSWER: Message = {"role": "user", "content": "answer"}


class TurnBorders:
    """Renders what others say behind a turn of the policy.

    A conversation with a stand-in for the policy's turn is rendered, and what follows the end of that turn is taken. So
    what the policy wrote stays as it wrote it, token by token, whatever the template would make of its text.
    """

    def __init__(self, encoder: Encoder) -> None:
        """Take a tokenizer, and try its template with a turn of the user.

        Raises:
            BadInput: it has no text of its own between two turns; says what to do.
        """
        self._encoder = encoder
        # What environments say is often the same.
        self._rendered = lru_cache(MOST_KEPT)(self._render)
        self.ends = frozenset(encoder.ends)
        """Ids of the tokens by which the policy may end its turn."""
        try:
            self.between([ANSWER], ended=True)
        except BadRow as error:
            raise BadInput(
                f"{encoder.tokenizer.name_or_path}: episodes of several turns need a chat template in which a token "
                f"ends each turn of the assistant, and what follows does not change it: {error}; set "
                "model.chat_template to one that has it"
            ) from error

    def between(self, messages: Sequence[Message], *, ended: bool) -> Ids:
        """Return the tokens from the end of the policy's turn to the opening of its next one.

        Args:
            messages: what is said between them.
            ended: whether the policy's last token ends its turn; the end is put before the messages otherwise.

        Raises:
            BadInput: no chat template.
            BadRow: the template refuses the messages, or ends no turn before them.
        """
        return self._rendered(json.dumps(messages), ended)

    def _render(self, said: str, ended: bool) -> Ids:
        messages: Sequence[Message] = json.loads(said)
        stand_in = _stand_in(messages)
        render = self._encoder.template.render
        closing, end, _ = self._behind(render([ASKED, stand_in]))
        found, other, rest = self._behind(render([ASKED, stand_in, *messages], add_generation_prompt=True))
        if (closing, end) != (found, other):
            raise BadRow(f"the chat template ends a turn otherwise when a turn of {messages[0]['role']} follows it")
        if ended:
            return self._encoder.behind(end, rest)
        return self._encoder.behind("", closing + end + rest)

    def _behind(self, text: str) -> tuple[str, str, str]:
        """Return what closes the stand-in's turn, the token that ends it, and what follows."""
        tail = text.partition(MARK)[2]
        places = [(place, end) for end in self._encoder.template.ends if (place := tail.find(end)) >= 0]
        if not places:
            raise BadRow("the chat template ends no turn of the assistant by a token")
        place, end = min(places)
        return tail[:place], end, tail[place + len(end) :]


def _stand_in(messages: Sequence[Message]) -> Message:
    """Return a turn to which the messages may answer: with a call for each result of a tool."""
    results = [message for message in messages if message["role"] == "tool"]
    if not results:
        return {"role": "assistant", "content": MARK}
    said: list[dict[str, Any]] = [dict(message) for message in results]
    calls = [
        {
            "type": "function",
            "id": result.get("tool_call_id", f"c{place:08}"),
            "function": {"name": result.get("name", "tool"), "arguments": {"argument": ""}},
        }
        for place, result in enumerate(said)
    ]
    calls[-1]["function"]["arguments"] = {"argument": MARK}
    return cast(Message, {"role": "assistant", "content": "", "tool_calls": calls})
