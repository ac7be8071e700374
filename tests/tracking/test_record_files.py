"""The records survive what happens to machines: kills, full disks, resumes."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.tracking.records import RecordFile, holds_evaluation, read_records

ROWS = [{"step": step, "reward": step / 3, "文": "评论\n" * step} for step in range(6)]


def written(path: Path) -> bytes:
    file = RecordFile(path)
    for row in ROWS:
        file.append(row)
    file.close()
    return path.read_bytes()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_file_torn_at_any_byte_keeps_its_whole_rows_and_goes_on(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("torn") / "metrics.jsonl"
    content = written(path)
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = ROWS[: content[:cut].count(b"\n")]
    # A last line that lost nothing but its newline is whole to a reader.
    assert list(read_records(path))[: len(whole)] == whole
    file = RecordFile(path)
    file.append({"step": 99})
    file.close()
    assert list(read_records(path)) == [*whole, {"step": 99}]
    assert all(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def test_a_line_longer_than_the_search_block_is_dropped_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "text": "' + b"x" * 200_000)
    RecordFile(path).close()
    assert path.read_bytes() == b'{"step": 1}\n'


def test_rows_are_on_disk_when_the_process_is_killed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    program = (
        "import sys; from pathlib import Path; from rlhf_ray.tracking.records import RecordFile\n"
        f"file = RecordFile(Path({str(path)!r})); step = 0\n"
        "while True:\n    file.append({'step': step, 'pad': 'x' * 5000}); step += 1; print(step, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = 0
        while acknowledged < 200:
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    steps = [row["step"] for row in read_records(path)]
    assert steps[:acknowledged] == list(range(acknowledged))
    assert steps == list(range(len(steps)))


def test_truncation_drops_later_steps_and_nothing_else(tmp_path):
    path = tmp_path / "metrics.jsonl"
    written(path)
    file = RecordFile(path)
    file.truncate_after(3)
    file.append({"step": 4, "again": True})
    file.close()
    assert list(read_records(path)) == [*ROWS[:4], {"step": 4, "again": True}]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_numbers_are_valid_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = RecordFile(path)
    file.append(
        {"step": 1, "a": math.nan, "b": np.float32(0.5), "c": np.arange(2), "d": {"e": math.inf}, "f": "\ud800"}
    )
    file.close()
    (line,) = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1,
        "a": None,
        "b": 0.5,
        "c": [0, 1],
        "d": {"e": None},
        "f": "?",
    }


def test_a_full_disk_is_a_clear_error_and_leaves_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from pathlib import Path; from rlhf_ray.tracking.records import RecordFile\n"
        "from rlhf_ray.config.errors import RlhfError\n"
        f"file = RecordFile(Path({str(path)!r}))\n"
        "try:\n    for step in range(100): file.append({'step': step, 'pad': 'x' * 60})\n"
        "except RlhfError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert str(path) in said
    assert "resume" in said
    content = path.read_bytes()
    assert content.endswith(b"}\n")
    assert [row["step"] for row in read_records(path)] == list(range(content.count(b"\n")))


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RlhfError, match="cannot write"):
        RecordFile(tmp_path / "file" / "metrics.jsonl")


def test_appending_is_cheap(tmp_path):
    file = RecordFile(tmp_path / "metrics.jsonl")
    row = {"step": 1} | {f"metric_{index}": 0.1 * index for index in range(60)}
    began = time.perf_counter()
    for _ in range(200):
        file.append(row)
    file.close()
    # 60 metrics a step: about 0.1 ms on one core.
    assert (time.perf_counter() - began) / 200 < 0.01


def test_an_evaluation_is_known_by_its_metrics(tmp_path):
    assert not holds_evaluation(tmp_path, 2)
    rows = [{"step": 1, "eval_reward": 0.5}, {"step": 2, "reward": 0.5}, {"step": 3, "loss": 1.0, "eval_loss": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [holds_evaluation(tmp_path, step) for step in (0, 1, 2, 3)] == [False, True, False, True]
