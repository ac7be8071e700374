"""The script of `make gpu-test` where no GPU is: its calls fit what is installed, and a run goes on where it was."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import dry_run, outcome
from benchmarks.gpu.machine import peaks_of
from benchmarks.gpu.outcome import FAILED, PASSED, SKIPPED, Outcome
from benchmarks.gpu.parts import PARTS, Part

ROOT = Path(__file__).parents[2]

SOURCE = """
import json as format
from typing import TYPE_CHECKING
from pathlib import Path
from tests.benchmarks.test_gpu_parts import Thing, make

if TYPE_CHECKING:
    from fractions import Fraction

class Holder:
    def __init__(self, thing: "Thing") -> None:
        self._thing = thing

    @property
    def other(self) -> "Thing": ...

    def use(self, many: list[int], one: Thing | None) -> None:
        {call}
"""
RIGHT = [
    "format.dumps({}, indent=1)",
    "self._thing.go(1, fast=True)",
    "self.other.go(1)",
    "self.use(many, one=None)",
    "one.go(*many)",
    "make().go(1)",
    "Thing.build(3).go(1)",
    "many.anything(1, 2)",
]
WRONG = {
    "format.dumps({}, indention=1, cls=None, skipkeys=3, obj=3)": "multiple values for argument 'obj'",
    "self._thing.go(1, quick=True)": "unexpected keyword argument 'quick'",
    "self.other.go()": "missing a required argument: 'where'",
    "self.use(many, other=None)": "missing a required argument: 'one'",
    "one.go(*many, quick=True)": "unexpected keyword argument 'quick'",
    "thing = make(); thing.go(1, 2, 3)": "too many positional arguments",
    "Thing.build()": "missing a required argument: 'size'",
    "Thing(3)": "too many positional arguments",
}


class Thing:
    """What the source above calls."""

    def go(self, where: int, fast: bool = False) -> None: ...

    @classmethod
    def build(cls, size: int) -> "Thing": ...


def make() -> Thing: ...


@pytest.mark.parametrize("call", [*RIGHT, *WRONG])
def test_a_call_that_does_not_fit_is_found(call: str) -> None:
    module, source = ModuleType("made"), SOURCE.replace("{call}", call)
    exec(source, vars(module))
    found = dry_run.check_calls(module, source)
    assert len(found.problems) == (call in WRONG)
    assert WRONG.get(call, "") in "".join(found.problems)
    assert (found.checked == 0) == (call == RIGHT[-1])


def test_every_call_of_every_part_fits_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--dry-run"]) == 0, capsys.readouterr().out
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if "calls fit" in line] == [part.name for part in PARTS]


def test_parts_name_what_is_there() -> None:
    for part in PARTS:
        assert bool(part.function) != bool(part.tests)
        for test in part.tests:
            path, _, name = test.partition("::")
            assert f"def {name}" in (ROOT / path).read_text()
    assert len({part.name for part in PARTS}) == len(PARTS)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    """Parts that need no GPU; the runner finds them in this module."""
    runner = outcome.RUNNER.replace("benchmarks.gpu.{module}", "tests.benchmarks.{module}")
    monkeypatch.setattr(outcome, "RUNNER", runner)
    monkeypatch.setattr(command, "gpu_names", lambda: ["NVIDIA H200"])
    plain = Part("good", "", "gpu_part_functions:good", aims={"share": (0.5, 1)}, needs=())
    return [
        plain,
        replace(plain, name="low", function="gpu_part_functions:low"),
        replace(plain, name="raises", function="gpu_part_functions:raises"),
        replace(plain, name="hangs", function="gpu_part_functions:hangs", seconds=2),
        replace(plain, name="more", gpus=2),
        replace(plain, name="without", needs=("no_such_library",)),
    ]


def test_parts_pass_fail_or_are_skipped_and_a_second_run_goes_on(
    parts: list[Part], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run_parts(parts, tmp_path, again=False) == 1
    found = {part.name: Outcome.read(tmp_path, part) for part in parts}
    told = {name: (one.status, one.why) for name, one in found.items() if one is not None}
    assert {name: status for name, (status, _) in told.items()} == {
        "good": PASSED,
        "low": FAILED,
        "raises": FAILED,
        "hangs": FAILED,
        "more": SKIPPED,
        "without": SKIPPED,
    }
    assert told["low"][1] == "share is 0.25, not 0.5 to 1"
    assert "ValueError: out of order" in told["raises"][1]
    assert "not done within 2 s" in told["hangs"][1]
    assert (told["more"][1], told["without"][1]) == ("needs 2 GPUs", "no no_such_library")
    assert found["good"].figures == {"share": 0.75}  # type: ignore[union-attr]
    capsys.readouterr()
    kept = json.loads((tmp_path / "good.json").read_text())
    assert command.run_parts(parts[:1], tmp_path, again=False) == 0
    assert "from an earlier run" in capsys.readouterr().out
    assert command.run_parts(parts[:1], tmp_path, again=True) == 0
    assert "from an earlier run" not in capsys.readouterr().out
    assert json.loads((tmp_path / "good.json").read_text())["figures"] == kept["figures"]


def test_peaks_are_those_of_the_device() -> None:
    assert peaks_of("NVIDIA H200").bandwidth == 4800
    assert peaks_of("NVIDIA H100 80GB HBM3").tflops == 989
    with pytest.raises(LookupError, match="add them to PEAKS"):
        peaks_of("Abacus 3")
