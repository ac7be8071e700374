"""The picture of the curves."""

import math
import os
import threading
import time
import warnings

import pytest

from rlhf_ray.tracking import curves
from rlhf_ray.tracking.curves import draw_curves
from rlhf_ray.tracking.history import History
from rlhf_ray.tracking.pictures import PictureWriter

PIL = pytest.importorskip("PIL.Image")


def run_history(steps=50):
    history = History()
    for step in range(steps):
        history.add(step, {"reward": math.sin(step), "objective/kl": step, "time/train": 1.0, "time/idle": 0.2})
        history.add(step, {"rewards/情感_$x^$/mean": step, "rewards/_hidden/mean": 1.0, "grad_norm": 10.0**-step})
    return history


def colours(path):
    with PIL.open(path) as image:
        image.verify()
    with PIL.open(path) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}


@pytest.mark.parametrize("chinese_font", [True, False])
def test_the_picture_is_drawn_without_a_warning(chinese_font, tmp_path, monkeypatch):
    if not chinese_font:
        monkeypatch.setattr(curves, "_families", lambda: ["DejaVu Sans"])
    curves._characters.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_curves({"运行_$1": run_history()}, tmp_path / "curves.png")
    curves._characters.cache_clear()
    # Blue and orange of the curves and of the times.
    assert {(0x25, 0x63, 0xEB), (0xEA, 0x58, 0x0C)} <= colours(tmp_path / "curves.png")
    assert os.listdir(tmp_path) == ["curves.png"]


def test_an_empty_run_and_several_runs_are_drawn(tmp_path):
    draw_curves({"empty": History()}, tmp_path / "empty.png")
    assert len(colours(tmp_path / "empty.png")) > 1
    draw_curves({"one": run_history(), "two": run_history(1)}, tmp_path / "two.png")
    assert (0xEA, 0x58, 0x0C) in colours(tmp_path / "two.png")


@pytest.mark.parametrize("count", [2, 6, 30])
@pytest.mark.parametrize("name", ["a", "a run with a name that is longer than a legend's line", "名字很长的一次运行"])
def test_a_legend_leaves_most_of_the_panel_to_the_curves(name, count, tmp_path, monkeypatch):
    drawn = []
    draw = curves._draw_panel
    monkeypatch.setattr(curves, "_draw_panel", lambda axis, panel: (draw(axis, panel), drawn.append((axis, panel))))
    draw_curves({f"{name} {number}": run_history(9) for number in range(count)}, tmp_path / "curves.png")
    assert drawn
    for axis, panel in drawn:
        transform = axis.yaxis.get_transform().transform
        low, high = transform(axis.get_ylim())
        values = transform([value for line in panel.lines for value in line.values])
        assert low <= values.min(), panel.title
        assert high > low, "upside down"
        if values.max() > values.min():
            assert (values.max() - values.min()) / (high - low) > 0.45, panel.title


def test_a_reader_never_sees_half_a_picture(tmp_path):
    path = tmp_path / "curves.png"
    draw_curves({"run": run_history(5)}, path)
    stop, broken = threading.Event(), []

    def read():
        while not stop.is_set():
            content = path.read_bytes()
            if not (content.startswith(b"\x89PNG") and content.endswith(b"IEND\xaeB`\x82")):
                broken.append(len(content))
            time.sleep(0.001)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(3):
        draw_curves({"run": run_history(5)}, path)
    stop.set()
    reader.join()
    assert not broken


def test_a_failed_drawing_keeps_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    draw_curves({"run": run_history(5)}, path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="No space"):
        draw_curves({"run": run_history(9)}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["curves.png"]


def test_drawing_takes_a_small_share_of_a_run_and_never_holds_it_up(tmp_path):
    now, drawn, said = [0.0], [], []

    def slow(folder, history):
        now[0] += 3.0
        drawn.append(history.last_step())

    writer = PictureWriter(tmp_path, said.append, slow, lambda: now[0])
    for step in range(1, 1001):
        writer.log(step, {"reward": 1.0})
        if writer._thread is not None:
            writer._thread.join()
        now[0] += 1.0
    # A drawing of 3 s may come every 150 s.
    assert 5 <= len(drawn) <= 8
    writer.close("finished")
    assert drawn[-1] == 1000
    assert said == []


def test_a_drawing_that_hangs_does_not_hold_up_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_ray.tracking.pictures.LAST_DRAWING_SECONDS", 0.1)
    said: list[str] = []
    writer = PictureWriter(tmp_path, said.append, lambda *_: threading.Event().wait(600))
    began = time.perf_counter()
    for step in range(100):
        writer.log(step, {"reward": 1.0})
    writer.close("finished")
    assert time.perf_counter() - began < 5
    assert "rlhf plot" in said[0]
