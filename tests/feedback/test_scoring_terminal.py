"""Asking for scores: what counts as one, what is asked again, and how a person leaves."""

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.feedback.terminal import InputInterrupted, ScoringTerminal, interruptible, shown

PROMPT = "Reward (-2.0 ~ 2.0): "


class Conversation:
    """A person who types lines, then ends the input."""

    def __init__(self, *lines: str, language: str = "en") -> None:
        self._lines: Iterator[str] = iter(lines)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.seconds = 0.0
        self.terminal = ScoringTerminal(
            -2.0, 2.0, language, ask=self._ask, say=self.said.append, clock=lambda: self.seconds
        )

    def _ask(self, prompt: str) -> str:
        self.asked.append(prompt)
        self.seconds += 1.5
        try:
            return next(self._lines)
        except StopIteration:
            raise EOFError from None


@pytest.mark.parametrize(
    ("entry", "reward"),
    [
        ("1.5", 1.5),
        (" 2 ", 2.0),
        ("-2.0", -2.0),
        ("+.5", 0.5),
        ("1.", 1.0),
        ("０．５", 0.5),
        ("－１", -1.0),
        ("−1", -1.0),
    ],
)
def test_numbers_of_all_keyboards(entry: str, reward: float) -> None:
    person = Conversation(entry)
    given = person.terminal.score(1, "p", "a")
    assert given is not None
    assert given.reward == reward
    assert person.asked == [PROMPT]


REFUSED = {
    # name: (entry, words of what is said)
    "a word": ("abc", "abc is not a number; type one from -2.0 to 2.0"),
    "nothing": ("", "Type a number from -2.0 to 2.0"),
    "spaces": ("  \t", "Type a number"),
    "too high": ("3", "3 is outside -2.0 ~ 2.0"),
    "too low": ("-2.01", "-2.01 is outside"),
    "NaN": ("nan", "nan is not a number"),
    "infinity": ("inf", "inf is not a number"),
    "Python's underscores": ("0_1", "0_1 is not a number"),
    "an exponent": ("1e0", "1e0 is not a number"),
    "hexadecimal": ("0x1", "not a number"),
    "two numbers": ("1 2", "1 2 is not a number"),
    "a comma": ("1,5", "1,5 is not a number"),
    "a huge number": ("9" * 400, "is outside"),
    "a long text": ("好" * 500, "好" * 40 + " is not a number"),
    "escape sequences": ("\x1b[2J", "\\x1b[2J is not a number"),
    "half a character": ("\ufffd", "is not a number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_score_is_asked_again(case: str) -> None:
    entry, words = REFUSED[case]
    person = Conversation(entry, "1")
    given = person.terminal.score(1, "p", "a")
    assert given is not None
    assert (given.reward, given.seconds) == (1.0, 3.0)
    assert person.asked == [PROMPT, PROMPT]
    assert words in person.said[-1]


def test_chinese() -> None:
    person = Conversation("好", "", "5", language="zh")
    assert person.terminal.score(7, "质量", "很好") is None
    assert person.said == [
        "[7] 提示：质量",
        "    回答：很好",
        "好 不是数字，请输入 -2.0 到 2.0 之间的数字。",
        "请输入 -2.0 到 2.0 之间的数字。",
        "5 超出范围 -2.0 ~ 2.0，请重新输入。",
        "",
        "正在保存；再次运行同一命令即可继续。",
    ]


def test_answers_cannot_take_over_the_terminal() -> None:
    person = Conversation("0")
    conversation = [{"role": "user", "content": "a\x1b]0;owned\x07"}]
    person.terminal.score(1, conversation, "tab\tline\nred \x1b[31m\u202eright to left 😀")
    assert person.said[0] == "[1] Prompt: user: a\\x1b]0;owned\\x07"
    assert person.said[1] == "    Answer: tab\tline\nred \\x1b[31m\\x202eright to left 😀"
    assert shown("\ud83d") == "\\xd83d"


def test_an_empty_answer_is_said_to_be_empty() -> None:
    person = Conversation("0")
    person.terminal.score(1, "p", " \n")
    assert person.said[1] == "    Answer: (nothing)"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_while_asking(number: signal.Signals) -> None:
    def ask(prompt: str) -> str:
        os.kill(os.getpid(), number)
        raise AssertionError("the signal did not come through")

    before = signal.getsignal(number)
    said: list[str] = []
    assert ScoringTerminal(-2, 2, ask=ask, say=said.append).score(1, "p", "a") is None
    assert said[-1] == "Saving; the same command goes on from here."
    assert signal.getsignal(number) == before


def test_in_another_thread_no_handler_is_touched() -> None:
    before = signal.getsignal(signal.SIGINT)
    found: list[object] = []

    def work() -> None:
        with interruptible():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]
    assert issubclass(InputInterrupted, Exception)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    """From a real standard input: a mistake like any other, and the next line is read."""
    script = (
        "from rlhf_ray.feedback.terminal import ScoringTerminal\nprint(ScoringTerminal(-2.0, 2.0).score(1, 'p', 'a'))"
    )
    done = subprocess.run([sys.executable, "-X", "utf8", "-c", script], input=b"\xff\xfe\n1.5\n", capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"is not a number" in done.stdout
    assert b"Score(reward=1.5" in done.stdout


def test_what_is_typed_before_an_answer_is_shown_is_not_its_score() -> None:
    script = (
        "import os, sys\n"
        "from rlhf_ray.feedback.terminal import ScoringTerminal\n"
        "terminal = ScoringTerminal(-2.0, 2.0)\n"
        "print('scored', terminal.score(1, 'p', 'first').reward)\n"
        "print('learning')\n"
        "os.read(int(sys.argv[1]), 1)\n"
        "print('scored', terminal.score(2, 'p', 'second').reward)\n"
    )
    person, terminal = pty.openpty()
    learned, learning = os.pipe()
    command = [sys.executable, "-uc", script, str(learned)]
    done = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, pass_fds=[learned])
    os.close(terminal)

    def wait_for(text: bytes) -> None:
        seen = b""
        while text not in seen:
            seen += os.read(person, 1000)

    try:
        wait_for(b"Reward")
        os.write(person, b"1\n")
        wait_for(b"learning")
        os.write(person, b"2\n2\n")
        wait_for(b"2\r\n2\r\n")
        os.write(learning, b".")
        wait_for(b"Reward")
        os.write(person, b"-1\n")
        wait_for(b"scored -1.0")
        assert done.wait(30) == 0
    finally:
        done.kill()
        for end in (person, learned, learning):
            os.close(end)
