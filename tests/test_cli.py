"""The command as a user meets it, in a process of its own."""

import subprocess
import sys

import pytest

from rlhf_ray import cli
from rlhf_ray.config.errors import Interrupted, RlhfError
from rlhf_ray.config.reading.schema import describe
from rlhf_ray.config.reading.verbs import SCHEMAS, import_schema

HEAVY = ("torch", "vllm", "ray", "deepspeed", "transformers", "datasets", "wandb", "matplotlib")
IMPORTED = """
import sys
from rlhf_ray.cli import main
code = main({arguments!r})
print(code, [name for name in {heavy!r} if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["ppo", "--help"], ["plot", "--help"], ["plan", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = IMPORTED.format(arguments=arguments, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "0 []"


def test_overview_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    named = {line.split()[0] for line in lines if line.startswith("  ")}
    assert named == {*cli.JOBS, *cli.TOOLS}


@pytest.mark.parametrize("verb", cli.JOBS)
def test_help_of_a_job_shows_every_field_with_its_documentation(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for field in describe(import_schema(SCHEMAS[verb])):
        assert f"--{field.path} (" in shown
        assert field.doc in shown


def test_every_verb_has_a_schema_and_a_module() -> None:
    import importlib.util

    assert set(cli.JOBS) == set(SCHEMAS)
    for verb in (*cli.JOBS.values(), *cli.TOOLS.values()):
        assert importlib.util.find_spec(verb.module), f"{verb.module} does not exist"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rlhf_ray ")


class _Module:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error
        self.seen: list[object] = []

    def run(self, config: object) -> None:
        self.seen.append(config)
        if self.error:
            raise self.error


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (None, 0, ""),
        (RlhfError("the disk is full"), 1, "rlhf: the disk is full\n"),
        (KeyboardInterrupt(), 130, "rlhf: interrupted\n"),
        (Interrupted("interrupted before the first step"), 130, "rlhf: interrupted before the first step\n"),
    ],
)
def test_exit_codes(
    error: BaseException | None,
    code: int,
    shown: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = _Module(error)
    monkeypatch.setitem(sys.modules, "rlhf_ray.jobs.tools.doctor", module)  # type: ignore[arg-type]
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr().err == shown
    assert len(module.seen) == 1


def test_unexpected_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rlhf_ray.jobs.tools.doctor", _Module(ZeroDivisionError()))  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_console_script_is_installed() -> None:
    command = [f"{sys.prefix}/bin/rlhf", "ppo", "nowhere.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "rlhf: nowhere.yaml: no such file\n"


def test_a_verb_of_another_system_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["grpo", "x.yaml"]) == 2
    assert capsys.readouterr().err == ("rlhf: unknown verb 'grpo': it is `rlhf ppo` with algorithm.advantages: grpo\n")


def test_algorithms_named_in_the_hint_exist() -> None:
    from typing import get_args

    from rlhf_ray.config.algorithm import AlgorithmConfig
    from rlhf_ray.config.preferences import LossType

    assert set(cli.ALGORITHMS["ppo"]) < set(get_args(AlgorithmConfig.model_fields["advantages"].annotation))
    assert set(cli.ALGORITHMS["dpo"]) < set(get_args(LossType))


def test_a_reader_that_has_enough_gets_no_traceback() -> None:
    command = f"{sys.executable} -m rlhf_ray.cli ppo --help | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.startswith("usage: rlhf ppo")
    assert done.stderr == ""
