"""A reward file that cannot work is refused before anything starts; one that may work never is."""

import re

import pytest

from rlhf_ray.config.checks.functions import check_function
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.rewards import FunctionReward

REFUSED = {
    "syntax error": ("def reward(prompts, completions)\n    pass", r"r\.py:1: SyntaxError: expected ':'"),
    "null byte": ("x = 1\x00", r"r\.py.*: (Syntax|Value)Error: .*null bytes"),
    "import that is missing": ("\nimport no_such_library", r"r\.py:2: imports no_such_library, which is not installed"),
    "a part of it": ("from no_such_library.part import reward", r"r\.py:1: imports no_such_library"),
    "no such function": ("def rewrad(prompts, completions): ...", r"r\.py has no function reward; it defines: rewrad"),
    "nothing in it": ("", r"has no function reward; it defines: none"),
}

ACCEPTED = {
    "a function": "def reward(prompts, completions): ...",
    "an async one": "async def reward(prompts, completions): ...",
    "another's": "from json import dumps as reward",
    "a neighbour's": "from neighbour import reward",
    "whatever another has": "from json import *",
    "made": "import functools\nreward = functools.partial(print)",
    "made under a condition": "try:\n    import no_such_library\nexcept ImportError:\n    reward = print",
    "put in place by name": "globals()['reward'] = print",
    "an object": "class reward:\n    def __new__(cls, prompts, completions): ...",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused(tmp_path, case):
    content, message = REFUSED[case]
    (tmp_path / "r.py").write_text(content)
    with pytest.raises(BadInput) as caught:
        check_function(f"{tmp_path}/r.py:reward")
    assert re.search(message, str(caught.value)), caught.value


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(BadInput, match=r"cannot read .*: Is a directory"):
        check_function(f"{tmp_path}:reward")


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_may_work_is_accepted(tmp_path, case):
    (tmp_path / "neighbour.py").write_text("def reward(prompts, completions): ...")
    (tmp_path / "r.py").write_text(ACCEPTED[case])
    check_function(f"{tmp_path}/r.py:reward")
    assert list(FunctionReward(function=f"{tmp_path}/r.py:reward").missing()) == []
