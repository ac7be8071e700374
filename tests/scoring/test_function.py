"""Reward functions in a process of their own."""

import math
import os
import re
import signal
import time

import pytest

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.rewards import FunctionReward
from rlhf_ray.scoring.function import FunctionScorer
from rlhf_ray.scoring.source import Scores

GOOD = """
import numpy
import os
import time
from neighbour import BONUS

print("a function may print")

def length(prompts, completions, **columns):
    return [float(len(c)) + BONUS for c in completions]

def answers(completions, prompts, answer):
    return [None if a is None else c == a for c, a in zip(completions, answer)]

def array(prompts, completions):
    return numpy.arange(len(completions), dtype=numpy.float32)

async def awaited(prompts, completions, **columns):
    return [1] * len(completions)

def roles(prompts, completions, **columns):
    return [float(c[0]["role"] == "assistant") for c in completions]

def where(prompts, completions, **columns):
    return [os.getpid()] * len(completions)

def maybe(prompts, completions, **columns):
    if completions[0] == "hang":
        time.sleep(600)
    if completions[0] == "die":
        os._exit(3)
    if completions[0] == "kill":
        os.kill(os.getpid(), 9)
    if completions[0] == "raise":
        raise KeyError("no such thing")
    return [1.0] * len(completions)

def once(prompts, completions):
    marker = os.path.join(prompts[0], "came before")
    if not os.path.exists(marker):
        open(marker, "w").close()
        os._exit(1)
    return [2.0]

def forking(prompts, completions):
    return [float(completions[0]) + (0 if os.fork() else 100)]

def leaving(prompts, completions):
    if os.fork():
        os._exit(1)
    time.sleep(600)
"""
RAISING_LINE = GOOD[: GOOD.index("raise KeyError")].count("\n") + 1


@pytest.fixture
def scorer(tmp_path):
    """Makes scorers of the functions above, and closes them."""
    (tmp_path / "rewards.py").write_text(GOOD)
    (tmp_path / "neighbour.py").write_text("BONUS = 0.5\n")
    made = []

    def make(name, timeout_seconds=30.0):
        made.append(
            FunctionScorer(FunctionReward(function=f"{tmp_path}/rewards.py:{name}", timeout_seconds=timeout_seconds))
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_values_of_every_shape(scorer):
    assert scorer("length").score(["p", "q"], ["好看", "a"], {"other": [1, 2]}).values == [2.5, 1.5]
    assert scorer("answers").score(
        ["p"] * 3, ["4", "5", "6"], {"answer": ["4", "4", None], "id": [1, 2, 3]}
    ).values == [
        1.0,
        0.0,
        None,
    ]
    assert scorer("array").score(["p"] * 3, ["a", "b", "c"], {}).values == [0.0, 1.0, 2.0]
    assert scorer("awaited").score(["p"], ["a"], {}).values == [1.0]
    assert scorer("roles").score([[{"role": "user", "content": "hi"}]], ["a"], {}).values == [1.0]
    assert scorer("length").score([], [], {}).values == []


def test_runs_in_another_process_and_leaves_none_behind(scorer):
    one = scorer("where")
    [pid] = one.score(["p"], ["c"], {}).values
    assert pid == one.pid != os.getpid()
    one.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("hang", "hung", "did not return within timeout_seconds 1"),
        ("die", "died", "its process ended with code 3"),
        ("kill", "died", "its process was ended by SIGKILL"),
        ("raise", "raised", rf"rewards.py:{RAISING_LINE}: KeyError: 'no such thing'"),
    ],
)
def test_a_failure_is_typed_and_the_next_batch_is_scored(scorer, text, kind, message):
    one = scorer("maybe", timeout_seconds=1)
    before = one.pid
    began = time.monotonic()
    scores = one.score(["p", "q"], [text, "b"], {})
    assert time.monotonic() - began < 60, "the function hangs for longer"
    assert all(math.isnan(value) for value in scores.values), "a failure is never a zero"
    [failure] = scores.failures
    assert failure.kind == kind
    assert failure.rows == (0, 1)
    assert re.search(message, failure.message), failure.message
    assert one.score(["p"], ["fine"], {}).values == [1.0]
    assert (one.pid == before) == (kind == "raised"), "a process that hung or died is replaced, any other kept"


def test_a_process_that_died_between_batches_is_noticed_and_replaced(scorer):
    """Where a step is one batch, its loss would end the run."""
    one = scorer("maybe")
    os.kill(one.pid, signal.SIGKILL)
    assert one.score(["p"], ["fine"], {}) == Scores([1.0])


def test_a_batch_that_its_process_did_not_live_to_answer_is_asked_again(scorer, tmp_path):
    one = scorer("once")
    assert one.score([str(tmp_path)], ["c"], {}) == Scores([2.0])


def test_a_child_of_the_function_answers_nothing_and_reads_nothing(scorer):
    """It returns from the function like its parent, and would take turns with it from then on."""
    one = scorer("forking")
    answers = [one.score(["p"], [str(number)], {}).values for number in range(1, 7)]
    assert answers == [[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]]


def test_the_end_of_a_process_is_seen_while_a_child_holds_its_connection(scorer):
    one = scorer("leaving", timeout_seconds=60)
    began = time.monotonic()
    [failure] = one.score(["p"], ["c"], {}).failures
    assert failure.kind == "died"
    assert time.monotonic() - began < 55, "its limit"


def test_a_file_that_is_gone_at_the_restart_is_a_failure(scorer, tmp_path):
    one = scorer("maybe", timeout_seconds=1)
    one.score(["p"], ["die"], {})
    (tmp_path / "rewards.py").unlink()
    [failure] = one.score(["p"], ["fine"], {}).failures
    assert failure.kind == "died"
    assert "did not start again" in failure.message


def test_missing_file_is_found_before_a_process_starts(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        FunctionScorer(FunctionReward(function=f"{tmp_path}/none.py:reward"))
