"""`rlhf completion`: bash is asked as a user asks it, the others by what they are told."""

import shutil
import subprocess

import pytest

from rlhf_ray import cli
from rlhf_ray.jobs.tools.completion import render, verbs

ASK = """
{script}
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_rlhf
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def asked(*words: str) -> list[str]:
    script = ASK.format(script=render("bash"), words=" ".join(f"'{word}'" for word in ("rlhf", *words)))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_verbs_options_and_values_are_completed() -> None:
    assert asked("") == [*cli.JOBS, *cli.TOOLS, "--help", "--version"]
    assert asked("ge") == ["generate"]
    assert asked("ppo", "c.yaml", "--policy.learning_r") == ["--policy.learning_rate"]
    assert asked("ppo", "c.yaml", "--rewards.0.we") == ["--rewards.0.weight"]
    assert asked("ppo", "c.yaml", "--algorithm.advantages", "rl") == ["rloo"]
    assert asked("sft", "c.yaml", "--model.dtype", "") == ["float32", "bfloat16"]
    assert asked("plan", "pp") == ["ppo"]
    assert asked("plan", "ppo", "c.yaml", "--steps") == ["--steps"]
    assert asked("plan", "--gpu_g") == ["--gpu_gib"]


def test_files_are_completed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("files")
    (folder / "my config.yaml").touch()
    monkeypatch.chdir(folder)
    assert asked("sft", "my") == ["my", "config.yaml"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_option_is_in_every_script(shell: str) -> None:
    script = render(shell)
    for verb in verbs():
        assert verb.name in script
        for option in verb.options:
            assert (f"-l {option.name} " if shell == "fish" else f"--{option.name}") in script
    if shutil.which(shell):
        check = [shell, "--no-execute"] if shell == "fish" else [shell, "-n"]
        subprocess.run(check, input=script, text=True, check=True, capture_output=True)


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "tcsh"]) == 2
    assert capsys.readouterr().err == "rlhf: shell: input should be 'bash', 'zsh' or 'fish', not 'tcsh'\n"
