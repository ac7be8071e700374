"""What a user's reward file can do wrong: each time a message that names file and line and says what to do."""

import math
import re

import pytest

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.rewards import FunctionReward
from rlhf_ray.scoring.function import FunctionScorer

UNUSABLE = {
    "syntax error": ("def reward(prompts, completions)\n    pass", r"r\.py:1: SyntaxError: expected ':'"),
    "import that is missing": ("\nimport no_such_library", r"r\.py:2: ModuleNotFoundError: .*no_such_library"),
    "error on import": ("x = 1\ny = 1 / 0", r"r\.py:2: ZeroDivisionError"),
    "no such function": ("def rewrad(prompts, completions): ...", r"has no function reward; it defines: rewrad"),
    "nothing in it": ("", r"has no function reward; it defines: none"),
    "no function": ("reward = 3", r"reward in .*r\.py is no function but int"),
    "exit on import": ("import os\nos._exit(4)", r"r\.py: on import its process ended with code 4"),
}

WRONG = {
    "raises": ("x = [][1]", "raised", r"r\.py:2: IndexError"),
    "refuses its arguments": (None, "raised", r"TypeError: .*missing 1 required positional argument: 'answer'"),
    "too few": ("return [1.0]", "wrong count", r"r\.py:reward returned 1 scores for 3 completions"),
    "too many": ("return [1.0] * 4", "wrong count", r"returned 4 scores for 3 completions"),
    "one number": ("return 1.0", "wrong type", r"returned float; return a list with a score for each completion"),
    "nothing": ("pass", "wrong type", r"returned NoneType; return a list"),
    "a dictionary": ("return {'a': 1}", "wrong type", r"returned dict; return a list"),
    "texts": ("return ['1', '2', '3']", "wrong type", r"returned str for completion 0; return a number or None"),
    "a nested list": ("return [[1], [2], [3]]", "wrong type", r"returned list for completion 0"),
    "an error that cannot be told": (
        "class Mute(Exception):\n        def __str__(self): raise ValueError\n    raise Mute",
        "raised",
        r"r\.py:4: Mute \(its message cannot be read: ValueError\)",
    ),
    "a list that breaks": (
        "class Odd(list):\n        def __iter__(self): raise KeyError('odd')\n    return Odd([1, 2, 3])",
        "wrong type",
        r"cannot be read as a list: KeyError: 'odd'",
    ),
    "a generator": ("yield 1", "wrong type", r"returned generator; return a list"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_files_stop_the_job_before_it_starts(tmp_path, case):
    content, message = UNUSABLE[case]
    (tmp_path / "r.py").write_text(content)
    with pytest.raises(BadInput) as caught:
        FunctionScorer(FunctionReward(function=f"{tmp_path}/r.py:reward"))
    assert re.search(message, str(caught.value)), caught.value


@pytest.mark.parametrize("case", WRONG)
def test_wrong_results_fail_the_batch(tmp_path, case):
    body, kind, message = WRONG[case]
    head = "def reward(prompts, completions" + (", answer):\n    " if body is None else ", **columns):\n    ")
    (tmp_path / "r.py").write_text(head + (body or "return [0] * 3"))
    scorer = FunctionScorer(FunctionReward(function=f"{tmp_path}/r.py:reward", timeout_seconds=20))
    try:
        scores = scorer.score(["p"] * 3, ["a", "b", "c"], {})
    finally:
        scorer.close()
    [failure] = scores.failures
    assert failure.kind == kind
    assert failure.rows == (0, 1, 2)
    assert re.search(message, failure.message), failure.message
    assert all(math.isnan(value) for value in scores.values)


ODD = {
    "nan": ("float('nan')", "not a number", "returned nan for completion 1; return a finite number, or None"),
    "infinite": ("float('-inf')", "not a number", "returned -inf for completion 1; return a finite number"),
    "too large": ("10 ** 400", "wrong type", "returned int for completion 1, which is no number: OverflowError"),
    "complex": ("3j", "wrong type", "returned complex for completion 1; return a number or None"),
    "text": ("'3'", "wrong type", "returned str for completion 1; return a number or None"),
    "an array": ("numpy.ones(2)", "wrong type", "returned ndarray for completion 1, which is no number: ValueError"),
    "a number that breaks": (
        "Broken(1)",
        "wrong type",
        "returned Broken for completion 1, which is no number: KeyError",
    ),
    "a date": ("numpy.datetime64('2026-01-01')", "wrong type", "returned date for completion 1; return a number"),
}


@pytest.mark.parametrize("case", ODD)
def test_a_single_score_that_is_no_number_fails_alone(odd_scorer, case):
    value, kind, message = ODD[case]
    scores = odd_scorer.score(["p"] * 4, ["1.0", value, "None", "numpy.float32(2)"], {})
    assert [scores.values[0], *scores.values[2:]] == [1.0, None, 2.0]
    assert math.isnan(scores.values[1])
    [failure] = scores.failures
    assert (failure.kind, failure.rows) == (kind, (1,))
    assert message in failure.message


@pytest.fixture(scope="module")
def odd_scorer(tmp_path_factory):
    """Its scores are what the completions say."""
    file = tmp_path_factory.mktemp("odd") / "r.py"
    file.write_text(
        "import numpy\nclass Broken(int):\n    def __float__(self): raise KeyError('broken')\n"
        "def reward(completions, **_):\n    return [eval(c) for c in completions]"
    )
    scorer = FunctionScorer(FunctionReward(function=f"{file}:reward"))
    yield scorer
    scorer.close()
