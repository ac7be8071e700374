"""Runs of the command that fail, and what holds of each of them."""

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray import cli
from tests.jobs.ppo_runs import write_config

LIMIT_SECONDS = 60.0
"""Each case ends within this time, on a busy machine too."""

Settings = dict[str, Any]


def fails(
    verb: str,
    settings: Settings,
    changes: dict[str, Any],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    code: int,
) -> str:
    """Run a verb with keys changed; returns its message, after checks that hold of every failure."""
    settings = json.loads(json.dumps(settings))
    for key, value in changes.items():
        *outer, last = key.split(".")
        section: Any = settings
        for name in outer:
            section = section[int(name) if isinstance(section, list) else name]
        section[last] = value
    config = write_config(folder / "config.yaml", settings)
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    began = time.monotonic()
    assert cli.main([verb, str(config)]) == code
    assert time.monotonic() - began < LIMIT_SECONDS
    assert sorted(folder.rglob("*")) == before, "nothing is left behind"
    message = capsys.readouterr().err
    said = "\n".join(line for line in message.splitlines() if line.startswith("rlhf: "))
    assert said
    assert "Traceback" not in message
    return said


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let this process write no file larger than `size` bytes, as on a full disk or at the end of a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
