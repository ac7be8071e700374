"""Commands really run, each in a process of its own, with the numbers of configs and options made small."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from rlhf_ray.config.jobs.labelling import FeedbackPageConfig
from rlhf_ray.config.reading.verbs import load_job
from tests.docs.clone import Clone, NotHere, file_of, not_here
from tests.docs.reading import LEFT_BY

SMALL = {"steps": 2, "epochs": 1, "rounds": 1, "prompts_per_step": 8, "prompts_per_round": 8, "answers": 2}
"""Numbers of a job's config, and options of commands, at most."""
SCALES = ("--scale 0.02", "--rounds 6 --seeds [0]")
"""Options that make an example small, where it has them."""
TYPED = "1.0\n-1.0\n"
"""What a person types at `rlhf feedback` before Ctrl-D."""
SECONDS = 900
"""A command that takes longer hangs, also on a busy machine."""


class Runner(Clone):
    """Run the commands of pages."""

    def __init__(self, folder: Path, model: Path, kept: dict[str, Path]) -> None:
        """Keep what modules leave in folders that `kept` names by command, for other clones."""
        super().__init__(folder, model)
        self.kept = kept
        self.before: list[str] = []
        commands = folder / ".commands"
        commands.mkdir()
        for name, module in (("rlhf", "-m rlhf_ray.cli"), ("python", "")):
            script = commands / name
            script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module} "$@"\n')
            script.chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{commands}:{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "HF_HUB_OFFLINE": "1",
            "TERM": "dumb",
        }
        make_small(folder)

    def tool(self, words: list[str], file: str | None) -> None:
        printed = self._run(["rlhf", *words], code={0, 1} if words[0] == "plan" else {0})
        if words[0] == "init":
            make_small(self.cwd / words[1])
        if file is not None:
            (self.cwd / file).write_text(printed)

    def job(self, verb: str, arguments: list[str]) -> None:
        words = ["rlhf", verb, *smaller(arguments)]
        with contextlib.chdir(self.cwd):
            config = load_job(verb, arguments, check_files=False)
            lacking = not_here(config)
        if lacking is not None:
            raise NotHere(lacking)
        if isinstance(config, FeedbackPageConfig) and config.export is None:
            self._open([*words, "--port"])
        else:
            self._run(words, TYPED if verb == "feedback" else "")

    def module(self, name: str, arguments: list[str]) -> None:
        if "people" in arguments:
            raise NotHere("people who choose")
        words = ["python", "-m", name, *arguments]
        folder, left = LEFT_BY.get(name, ("outputs", ()))
        kept = self.kept.get(shlex.join(words))
        if kept is not None:
            shutil.copytree(kept, self.cwd / "outputs", dirs_exist_ok=True)
            return
        is_alone = not (self.cwd / "outputs").exists()
        said = self._run([*words[:3], "--help"])
        self._run([*words, *(word for scale in SCALES if scale.split()[0] in said for word in scale.split())])
        missing = [path for path in left if not (self.cwd / folder / path).exists()]
        assert not missing, f"{name} left no {missing} in {folder}"
        if is_alone:
            kept = self.root / f".kept_{len(self.kept)}"
            shutil.copytree(self.cwd / "outputs", kept)
            self.kept[shlex.join(words)] = kept

    def python(self, text: str) -> None:
        file = file_of(text)
        if file is not None:
            (self.cwd / file).write_text(text)
            return
        # Jobs that have run return their results at once.
        self.before.append(re.sub(r'"(\w+)": (\d+)', lambda found: f'"{found[1]}": {small(found[1], found[2])}', text))
        self._run(["python", "-c", "\n".join(self.before)])

    def _run(self, words: list[str], typed: str = "", code: set[int] | None = None) -> str:
        done = subprocess.run(
            words,
            cwd=self.cwd,
            env=self.environment,
            input=typed,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode in (code or {0}), (
            f"{words}: {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        return done.stdout

    def _open(self, words: list[str]) -> None:
        """Start a page for people, wait until it answers, and press Ctrl-C."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        page = subprocess.Popen(
            [*words, str(port)],
            cwd=self.cwd,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert page.stdout is not None
        said = []
        for line in page.stdout:
            said.append(line)
            if f":{port}" in line:
                break
        assert said, "".join(said)
        assert f":{port}" in said[-1], "".join(said)
        page.send_signal(signal.SIGINT)
        rest = page.communicate(timeout=SECONDS)[0]
        assert page.returncode in {0, 130}, "".join(said) + rest


def make_small(folder: Path) -> None:
    """Lower the numbers of all configs in a folder that need no GPU, as those that do are not run."""
    for path in folder.rglob("*.yaml"):
        if "outputs" in path.parts or path.is_relative_to(folder / "tests"):
            continue
        text = path.read_text(encoding="utf-8")
        if "gpus_per_node" in text:
            continue
        lower = re.sub(
            r"^(\w+): (\d+)(?=\s|$)", lambda found: f"{found[1]}: {small(found[1], found[2])}", text, flags=re.MULTILINE
        )
        path.write_text(lower, encoding="utf-8")


def small(key: str, value: str) -> str:
    """Return a number as it is, or as it is here where that is lower."""
    return str(min(int(value), SMALL.get(key, int(value))))


def smaller(arguments: list[str]) -> list[str]:
    """Lower the numbers of options."""
    options = [word.removeprefix("--") for word in ["", *arguments]]
    return [small(key, value) if value.isdigit() else value for key, value in zip(options, arguments, strict=False)]
