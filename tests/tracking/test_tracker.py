"""One call reaches every place; a resumed run has each step once."""

import math
import subprocess
import sys

import pytest

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.tracking.records import read_records
from rlhf_ray.tracking.run_record import RunRecord
from rlhf_ray.tracking.tracker import Tracker

SAMPLE = {"prompt": "刚收到货，感觉", "response": "很好", "rewards": {"sentiment": 0.9, "length": None}, "kl": 0.1}


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return events


def test_a_run_leaves_all_its_files(open_tracker, tmp_path, shown):
    with open_tracker(tensorboard=True) as tracker:
        for step in range(1, 4):
            tracker.progress(step, "generate", 1, 2, 10)
            tracker.log(step, {"reward": step / 2, "loss": math.nan})
            tracker.samples(step, [SAMPLE] * 9)
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        "metrics.jsonl",
        "samples.jsonl",
        "run.json",
        "curves.png",
        "report.html",
        "tensorboard",
    }
    assert [row["reward"] for row in read_records(run / "metrics.jsonl")] == [0.5, 1.0, 1.5]
    # Four samples a step, by the config's default.
    assert sum(1 for _ in read_records(run / "samples.jsonl")) == 12
    assert [(event.step, event.value) for event in scalars(run).Scalars("reward")] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert b"sentiment" in scalars(run).Tensors("samples/train")[-1].tensor_proto.string_val[0]
    record = RunRecord.read(run)
    assert record is not None
    assert (record.status, record.run_id, record.total_steps) == ("stopped", tracker.run_id, 10)
    assert "warning" not in shown.getvalue()
    assert shown.getvalue().count("很好") == 3


def test_resume_cuts_steps_after_the_checkpoint_everywhere_and_says_so(open_tracker, shown, tmp_path):
    first = open_tracker(tensorboard=True)
    for step in range(1, 6):
        first.log(step, {"reward": 1.0})
        first.samples(step, [SAMPLE])
    first.close("stopped")
    second = open_tracker(first.run_id, tensorboard=True)
    second.resume_after(3, "run/checkpoints/step_3")
    assert "going on after step 3 of 10, from run/checkpoints/step_3\n" in shown.getvalue()
    for step in range(4, 7):
        second.log(step, {"reward": 2.0})
        second.samples(step, [SAMPLE])
    second.close()
    run = tmp_path / "run"
    expected = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]
    assert [(row["step"], row["reward"]) for row in read_records(run / "metrics.jsonl")] == expected
    assert [row["step"] for row in read_records(run / "samples.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert [(event.step, event.value) for event in scalars(run).Scalars("reward")] == expected
    assert second.run_id == first.run_id


def test_a_new_run_drops_what_an_attempt_without_checkpoint_left_and_says_so(open_tracker, shown, tmp_path):
    lost = open_tracker()
    lost.log(1, {"reward": 1.0})
    lost.close("failed")
    assert "anew" not in shown.getvalue()
    anew = open_tracker()
    assert "the earlier start came to step 1, but saved no checkpoint: beginning anew\n" in shown.getvalue()
    anew.log(1, {"reward": 2.0})
    anew.close()
    assert [row["reward"] for row in read_records(tmp_path / "run" / "metrics.jsonl")] == [2.0]
    assert anew.run_id != lost.run_id


def test_a_block_that_reached_its_last_step_is_finished(open_tracker, tmp_path):
    with open_tracker() as tracker:
        tracker.log(10, {"reward": 1.0})
    record = RunRecord.read(tmp_path / "run")
    assert record is not None
    assert record.status == "finished"
    # A finished run that is started again has nothing left to do.
    with open_tracker(tracker.run_id) as again:
        again.truncate_after(10)
    record = RunRecord.read(tmp_path / "run")
    assert record is not None
    assert record.status == "finished"


def test_an_error_in_the_block_marks_the_run_failed(open_tracker, tmp_path):
    with pytest.raises(ZeroDivisionError), open_tracker():
        _ = 1 / 0
    record = RunRecord.read(tmp_path / "run")
    assert record is not None
    assert record.status == "failed"


def test_a_broken_writer_is_one_warning_a_broken_record_is_an_error(open_tracker, shown, monkeypatch):
    tracker = open_tracker()

    class Broken:
        def __getattr__(self, name):
            raise OSError("gone")

    tracker._writers["pictures"] = Broken()
    for step in range(5):
        tracker.log(step, {"reward": 1.0})
    assert shown.getvalue().count("warning: pictures: OSError: gone; training goes on") == 1

    def full(row):
        raise RlhfError("cannot write metrics.jsonl")

    monkeypatch.setattr(tracker._metrics, "append", full)
    with pytest.raises(RlhfError, match="cannot write"):
        tracker.log(6, {"reward": 1.0})
    tracker.close("failed")


def test_evaluation_samples_are_all_kept(open_tracker, tmp_path):
    with open_tracker(samples_per_step=0) as tracker:
        tracker.samples(1, [SAMPLE] * 3)
        tracker.samples(1, [SAMPLE] * 30, "evaluation")
    assert [row["kind"] for row in read_records(tmp_path / "run" / "samples.jsonl")] == ["evaluation"] * 30


def test_importing_the_tracker_is_light():
    heavy = "wandb matplotlib torch tensorboard jinja2 rich ray numpy"
    program = (
        "import sys, rlhf_ray.tracking.tracker, rlhf_ray.jobs.tools.plot\n"
        f"print([name for name in {heavy!r}.split() if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_closing_twice_is_closing_once(open_tracker, tmp_path):
    tracker: Tracker = open_tracker()
    tracker.close("stopped")
    tracker.close("failed")
    record = RunRecord.read(tmp_path / "run")
    assert record is not None
    assert record.status == "stopped"


def test_what_the_person_should_know_of_a_start_is_said_first(open_tracker, shown):
    open_tracker(notes=["seed: 1 -> 2", "steps: 3 -> 4"]).close()
    assert shown.getvalue().splitlines()[:2] == ["seed: 1 -> 2", "steps: 3 -> 4"]


def test_the_sample_of_a_step_shows_what_the_user_said_last(open_tracker, shown):
    prompt = [
        {"role": "system", "content": "You are a patient assistant who answers at length. " * 3},
        {"role": "user", "content": "an earlier question"},
        {"role": "assistant", "content": "an earlier answer"},
        {"role": "user", "content": "How far is the moon?"},
    ]
    with open_tracker() as tracker:
        tracker.samples(1, [{"prompt": prompt, "response": "384,400 km", "rewards": {}}])
    assert "    How far is the moon? > 384,400 km" in shown.getvalue()
