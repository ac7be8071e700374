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


def test_real_wandb_offline_takes_two_starts_of_one_run(open_tracker, shown, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    tracker = open_tracker(wandb="offline", config={"url": f"https://me:{KEY}@host"})
    with commands_watched((KEY.encode(),)) as commands:
        train(tracker)
        tracker.samples(STEPS, [{"prompt": f"the key is {KEY}", "response": KEY, "rewards": {"r": 1.0}}])
        tracker.close("stopped")
    assert leaks_in(tmp_path, needles=(KEY.encode(),)) == commands == []
    # Folders are named by the second.
    time.sleep(1)
    again = open_tracker(tracker.run_id, wandb="offline")
    again.truncate_after(10)
    train(again)
    again.close()
    folders = [folder.name for folder in (tmp_path / "run" / "wandb").glob("offline-run-*")]
    assert len(folders) == 2
    assert all(name.endswith(f"-{tracker.run_id}") for name in folders)
    assert "wandb" not in shown.getvalue()
