"""Progress is readable on a terminal and in a log."""

import io
import re
import unicodedata

from rlhf_ray.tracking.terminal import HEARTBEAT_SECONDS, Terminal, step_line
from rlhf_ray.tracking.text import harmless, one_line

STEP = {
    "reward": 1.25,
    "objective/kl": 3.2,
    "policy/entropy_avg": 2.5,
    "completions/mean_length": 63.6,
    "step_time": 12.34,
    "tokens_per_second": 4321.0,
}
HOSTILE = "\x1b[2J\x1b]0;title\x07 red \x1b[31m \u202etxt.exe\u202c \r\n\t\x00 👨‍👩‍👧 \ud800 مرحبا"


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_step_is_one_line_of_plain_words():
    line = step_line(3, 100, STEP)
    assert line == "step 3/100  reward 1.250  KL 3.200  entropy 2.50  length 64  12.3 s  4,321 tokens/s"
    assert step_line(3, None, {"loss": 0.5, "eval_loss": 0.6}) == "step 3  loss 0.5000  held out: loss 0.6000"
    assert step_line(3, None, {"sync/version": 1}) == ""


def test_a_log_holds_no_control_characters():
    log = io.StringIO()
    terminal = Terminal(10, log)
    for step in range(3):
        for done in range(5):
            terminal.progress(step, "generate", done, 5, 100)
        terminal.step(step, STEP)
        terminal.message(one_line(HOSTILE, 80))
    terminal.close()
    lines = log.getvalue().split("\n")
    assert len(lines) == 7
    assert not [letter for line in lines for letter in line if unicodedata.category(letter) in ("Cc", "Cs")]


def test_a_log_shows_life_during_a_long_part_only():
    log, now = io.StringIO(), [0.0]
    terminal = Terminal(10, log, clock=lambda: now[0])
    terminal.progress(2, "generate", 0, 64, 0)
    now[0] = HEARTBEAT_SECONDS / 2
    terminal.progress(2, "generate", 8, 64, 100)
    assert log.getvalue() == ""
    now[0] = HEARTBEAT_SECONDS + 1
    terminal.progress(2, "generate", 32, 64, 6100)
    terminal.progress(2, "generate", 33, 64, 6200)
    assert log.getvalue() == "step 2: generating 32 of 64, 61 s 100 tokens/s\n"
    terminal.progress(2, "train", 0, 4, None)
    assert log.getvalue().count("\n") == 1


def test_a_terminal_gets_bars_and_whole_lines(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = FakeTerminal()
    terminal = Terminal(10, screen)
    terminal.progress(1, "generate", 3, 8, 100)
    terminal.step(1, STEP)
    terminal.message("[not markup] :smile:")
    terminal.close()
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert "generating" in plain
    assert "step 1/10  reward 1.250" in plain
    assert "[not markup] :smile:" in plain
    assert "1/10" in plain


def test_a_dumb_terminal_gets_the_lines_of_a_log(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    screen, now = FakeTerminal(), [0.0]
    terminal = Terminal(10, screen, clock=lambda: now[0])
    terminal.progress(1, "generate", 3, 8, 100)
    now[0] = HEARTBEAT_SECONDS + 1
    terminal.progress(1, "generate", 5, 8, 6100)
    terminal.close()
    assert screen.getvalue() == "step 1: generating 5 of 8, 61 s 100 tokens/s\n"


def test_an_old_encoding_does_not_end_the_run():
    raw = io.BytesIO()
    terminal = Terminal(10, io.TextIOWrapper(raw, encoding="ascii"))
    terminal.message("质量 good")
    assert raw.getvalue() == b"?? good\n"


def test_hostile_text_is_harmless_and_kept_readable():
    shown = harmless(HOSTILE)
    assert "👨‍👩‍👧" in shown
    assert "مرحبا" in shown
    assert not set("\x1b\x00\x07\r\u202e\u202c\ud800") & set(shown)
    assert len(one_line("x" * 100_000, 80)) == 80
    assert one_line("a\n  b", 80) == "a b"
