"""A person at the terminal scores answers."""

import re
import signal
import sys
import termios
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from rlhf_ray.data.messages import words_of
from rlhf_ray.data.records import Prompt

TEXTS = {
    "en": {
        "prompt": "[{number}] Prompt: {text}",
        "answer": "    Answer: {text}",
        "nothing": "(nothing)",
        "empty": "Type a number from {lowest} to {highest}.",
        "no number": "{text} is not a number; type one from {lowest} to {highest}.",
        "outside": "{text} is outside {lowest} ~ {highest}; type a number within.",
        "leaving": "Saving; the same command goes on from here.",
    },
    "zh": {
        "prompt": "[{number}] 提示：{text}",
        "answer": "    回答：{text}",
        "nothing": "（空）",
        "empty": "请输入 {lowest} 到 {highest} 之间的数字。",
        "no number": "{text} 不是数字，请输入 {lowest} 到 {highest} 之间的数字。",
        "outside": "{text} 超出范围 {lowest} ~ {highest}，请重新输入。",
        "leaving": "正在保存；再次运行同一命令即可继续。",
    },
}
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)")
SHOWN_ENTRY = 40
"""Characters of a mistaken entry that are repeated."""


@dataclass(frozen=True)
class GivenScore:
    """The person's word on an answer."""

    reward: float
    seconds: float
    """From the answer's appearance to the score."""


class ScoringTerminal:
    """Shows answers and asks for scores, again and again until one is a number within the range."""

    def __init__(
        self,
        lowest: float,
        highest: float,
        language: str = "en",
        *,
        ask: Callable[[str], str] = input,
        say: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lowest, self._highest = lowest, highest
        self._texts = TEXTS[language]
        self._ask, self._say, self._clock = ask, say, clock
        # What is no UTF-8 is a mistake of the person's, not the end of the session.
        if ask is input and hasattr(sys.stdin, "reconfigure"):
            sys.stdin.reconfigure(errors="replace")

    def score(self, number: int, prompt: Prompt, answer: str) -> GivenScore | None:
        """Show an answer and ask for its score; None: the person leaves, by the end of the input or a signal."""
        if self._ask is input:
            _forget_typed_ahead()
        turns = [prompt] if isinstance(prompt, str) else [f"{one['role']}: {words_of(one)}" for one in prompt]
        self._tell("prompt", number=number, text=shown("\n".join(turns)))
        self._tell("answer", text=shown(answer) if answer.strip() else self._texts["nothing"])
        began = self._clock()
        while True:
            try:
                with interruptible():
                    entry = self._ask(f"Reward ({self._lowest} ~ {self._highest}): ")
            except (EOFError, InputInterrupted):
                self._say("")
                self._tell("leaving")
                return None
            mistake, reward = self._read(entry)
            if mistake is None:
                return GivenScore(reward, self._clock() - began)
            self._tell(mistake, text=shown(entry.strip())[:SHOWN_ENTRY], lowest=self._lowest, highest=self._highest)

    def _read(self, entry: str) -> tuple[str | None, float]:
        # A Chinese keyboard gives full-width digits, and other keyboards a minus sign of their own.
        text = unicodedata.normalize("NFKC", entry).replace("\N{MINUS SIGN}", "-").strip()
        if not text:
            return "empty", 0.0
        if NUMBER.fullmatch(text) is None:
            return "no number", 0.0
        reward = float(text)
        return (None if self._lowest <= reward <= self._highest else "outside"), reward

    def _tell(self, name: str, **values: object) -> None:
        self._say(self._texts[name].format(**values))


def _forget_typed_ahead() -> None:
    """Throw away what was typed at a terminal while the model learned: it cannot be about an answer not yet shown."""
    if sys.stdin is not None and sys.stdin.isatty():
        termios.tcflush(sys.stdin, termios.TCIFLUSH)


def shown(text: str) -> str:
    """Return a text as a terminal can show it: what would move the cursor or change colours is written out."""
    kept = "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
    encoding = sys.stdout.encoding or "utf-8"
    return kept.encode(encoding, "replace").decode(encoding)


class InputInterrupted(Exception):
    """Ctrl-C or SIGTERM came while a person was asked."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise InputInterrupted within the block; elsewhere a job looks at its request to stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise InputInterrupted

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
