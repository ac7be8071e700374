"""wandb may fail in any way: training goes on at full speed, and says so once."""

import sys
import threading
import time
import types
from typing import Any

import pytest

from rlhf_ray.config.run import TrackingConfig
from rlhf_ray.tracking import wandb_writer
from rlhf_ray.tracking.records import read_records
from rlhf_ray.tracking.wandb_writer import wandb_mode
from tests.planted_secrets import commands_watched, leaks_in

KEY = "0123456789abcdef0123456789abcdef01234567"
STEPS = 50


class FakeRun:
    """What our writer uses of a wandb run; `act` is called first in log."""

    def __init__(self, act: Any) -> None:
        self.act = act
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None

    def define_metric(self, name: str, **options: Any) -> None: ...

    def log(self, row: dict[str, Any]) -> None:
        self.act()
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def fake_wandb(
    monkeypatch: pytest.MonkeyPatch, init: Any = lambda: None, log: Any = lambda: None
) -> types.SimpleNamespace:
    made = types.SimpleNamespace(run=FakeRun(log), options={})

    def start(**options: Any) -> FakeRun:
        made.options = options
        init()
        return made.run

    module = types.SimpleNamespace(
        init=start, Settings=lambda **settings: settings, Table=lambda columns, data: (columns, data)
    )
    monkeypatch.setitem(sys.modules, "wandb", module)  # type: ignore[arg-type]
    monkeypatch.setitem(wandb_writer.CLOSE_SECONDS, "offline", 0.3)
    monkeypatch.setitem(wandb_writer.CLOSE_SECONDS, "online", 0.3)
    return made


def raises(error: BaseException) -> Any:
    def act() -> None:
        raise error

    return act


def hangs() -> None:
    # Longer than any test; the thread is a daemon.
    threading.Event().wait(600)


def train(tracker: Any) -> float:
    began = time.perf_counter()
    for step in range(STEPS):
        tracker.log(step, {"reward": 0.1 * step})
        tracker.samples(step, [{"prompt": "p", "response": "r", "rewards": {"a": 1.0}}])
    return time.perf_counter() - began


@pytest.mark.parametrize(
    ("init", "log"),
    [
        (raises(ConnectionError("no network")), lambda: None),
        (raises(SystemExit(1)), lambda: None),
        (hangs, lambda: None),
        (lambda: None, raises(RuntimeError("lost"))),
        (lambda: None, hangs),
    ],
    ids=["init raises", "login exits", "init hangs", "log raises", "log hangs"],
)
def test_a_broken_wandb_neither_kills_nor_slows_training(init, log, monkeypatch, open_tracker, shown, tmp_path):
    fake_wandb(monkeypatch, init, log)
    tracker = open_tracker(wandb="offline")
    assert train(tracker) < 5
    began = time.perf_counter()
    tracker.close()
    assert time.perf_counter() - began < 15
    assert [row["step"] for row in read_records(tmp_path / "run" / "metrics.jsonl")] == list(range(STEPS))
    assert shown.getvalue().count("warning") == shown.getvalue().count("warning: wandb") == 1


def test_a_missing_module_is_one_warning(monkeypatch, open_tracker, shown):
    monkeypatch.setitem(sys.modules, "wandb", None)  # type: ignore[arg-type]
    with open_tracker(wandb="offline") as tracker:
        train(tracker)
    assert shown.getvalue().count("warning: wandb") == 1


def test_the_key_is_never_shown_nor_sent(monkeypatch, open_tracker, shown):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    made = fake_wandb(monkeypatch, raises(PermissionError(f"key {KEY} refused by https://me:{KEY}@api.example")))
    config = {
        "rewards": [{"api_key": "plain", "path": f"https://me:pass@host/{KEY}"}],
        "password": "x",
        "max_tokens": 5,
    }
    with open_tracker(wandb="auto", config=config) as tracker:
        train(tracker)
    assert "refused" in shown.getvalue()
    assert KEY not in shown.getvalue()
    assert made.options["mode"] == "online"
    sent = made.options["config"]
    assert KEY not in str(sent)
    assert sent["rewards"][0] == {"api_key": "[hidden]", "path": "https://[hidden]@host/[hidden]"}
    assert sent["password"] == "[hidden]"
    assert sent["max_tokens"] == 5


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": KEY}, "online"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "off"),
        ("off", {"WANDB_API_KEY": KEY}, "off"),
        ("online", {}, "online"),
    ],
)
def test_mode(mode, environment, expected, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(TrackingConfig(wandb=mode)) == expected


def test_a_resumed_run_keeps_its_id_and_its_steps(monkeypatch, open_tracker):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    first = fake_wandb(monkeypatch)
    tracker = open_tracker(wandb="online")
    tracker.log(1, {"reward": 1.0})
    tracker.close("stopped")
    assert first.options["resume"] is None
    assert first.run.rows == [{"step": 1, "reward": 1.0}]
    assert first.run.exit_code == 0
    again = fake_wandb(monkeypatch)
    resumed = open_tracker(tracker.run_id, wandb="online")
    resumed.log(2, {"reward": 2.0})
    resumed.close("failed")
    assert again.options["id"] == first.options["id"] == tracker.run_id
    assert again.options["resume"] == "allow"
    assert again.run.rows == [{"step": 2, "reward": 2.0}]
    assert again.run.exit_code == 1


@pytest.mark.parametrize(("has", "given"), [(1, [2, 3, 4]), (2, [3, 4]), (3, [4])])
def test_a_resumed_run_gives_each_step_once(has, given, monkeypatch, open_tracker):
    """Whether a kill took steps from wandb that a checkpoint holds, or wandb has steps that are made again."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    first = open_tracker()
    for step in (1, 2, 3):
        first.log(step, {"reward": float(step)})
    first.close("stopped")
    made = fake_wandb(monkeypatch)
    made.run.summary["step"] = has
    resumed = open_tracker(first.run_id, wandb="online")
    resumed.truncate_after(2)
    for step in (3, 4):
        resumed.log(step, {"eval_score": 0.5})
        resumed.log(step, {"reward": float(step)})
    resumed.close()
    assert [row["step"] for row in made.run.rows] == given
    assert [row["reward"] for row in made.run.rows] == [float(step) for step in given]
    assert all("eval_score" in row for row in made.run.rows if row["step"] > 2), "a step is one row"


def test_a_step_that_is_made_again_within_a_start_is_given_once(monkeypatch, open_tracker):
    made = fake_wandb(monkeypatch)
    tracker = open_tracker(wandb="offline")
    for after, steps in ((0, (1, 2, 3)), (1, (2, 3, 4)), (-1, (1, 5))):
        tracker.truncate_after(after)
        for step in steps:
            tracker.log(step, {"reward": float(after)})
    tracker.close()
    assert [(row["step"], row["reward"]) for row in made.run.rows] == [(1, 0), (2, 0), (3, 0), (4, 1), (5, -1)]


def test_real_wandb_offline_hides_the_key(open_tracker, shown, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker = open_tracker(wandb="offline", config={"url": f"https://me:{KEY}@host"})
    with commands_watched((KEY.encode(),)) as commands:
        train(tracker)
        tracker.samples(STEPS, [{"prompt": f"the key is {KEY}", "response": KEY, "rewards": {"r": 1.0}}])
        tracker.close("stopped")
    assert leaks_in(tmp_path, needles=(KEY.encode(),)) == commands == []
    assert "wandb" not in shown.getvalue()
