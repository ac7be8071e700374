"""Names are described, and curves come together on the panels where a reader looks for them."""

import math
import random
from pathlib import Path

import pytest

from rlhf_ray.tracking.charts import MOST_POINTS, make_chart, shorten, time_bars, time_shares
from rlhf_ray.tracking.history import History
from rlhf_ray.tracking.names import METRICS, PANELS, describe, metrics_page
from rlhf_ray.tracking.panels import (
    make_panels,
    short_number,
    smooth,
    step_times,
    tick_labels,
    worth_drawing,
)


def history(**series):
    made = History()
    for name, values in series.items():
        for step, value in enumerate(values):
            made.add(step, {name.replace("__", "/"): value})
    return made


def test_the_table_of_names_is_whole():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    assert all(metric.meaning for metric in METRICS)
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert page.read_text(encoding="utf-8") == metrics_page(), "run `make docs`"
    assert metrics_page().count("\n| `") == len(names)
    # One scale a panel: metrics with different units cannot share it.
    for title in PANELS:
        assert len({metric.unit for metric in METRICS if metric.panel == title}) == 1


def test_every_metric_of_the_table_is_written_by_some_job():
    package = Path(__file__).parents[2] / "rlhf_ray"
    jobs = "".join(file.read_text(encoding="utf-8") for file in package.rglob("*.py") if file.parent.name != "tracking")
    # These are put together of a subject and a part of its own.
    put_together = ("val/cost_", "loss/cost_", "time/", "sync/", "learning_rate/", "grad_norm/")
    for metric in METRICS:
        named = metric.name.partition("*")[0]
        if named.startswith(put_together):
            named = named.removeprefix(next(one for one in put_together if named.startswith(one)))
        assert named in jobs, metric.name


@pytest.mark.parametrize(
    ("name", "panel", "label"),
    [
        ("reward", "Reward", "reward"),
        ("eval_reward", "Reward", "reward"),
        ("rewards/情感/mean", "Reward by source", "情感"),
        ("rewards/a/b/std", "Reward spread", "a/b"),
        ("rewards/margins", "Margin", "margin"),
        ("grad_norm/value", "Gradient norm", "value"),
        ("my/own", "my/own", "my/own"),
        ("episode", "", "samples"),
    ],
)
def test_describe(name, panel, label):
    known = describe(name)
    assert (known.name, known.panel, known.label) == (name, panel, label)


def test_panels_hold_metric_and_evaluation_together_in_the_order_of_the_table():
    panels = make_panels(
        {"run": history(zzz=[1.0], loss__value_avg=[1.0], eval_reward=[0.5], reward=[0.1, 0.2], episode=[3])}
    )
    assert [panel.title for panel in panels] == ["Reward", "Value loss", "zzz"]
    held_out, training = panels[0].lines
    assert (held_out.held_out, training.held_out) == (True, False)
    assert held_out.colour == training.colour


def test_runs_laid_over_one_another_have_a_panel_a_metric_and_a_colour_a_run():
    one, two = history(reward=[1.0, 2.0], objective__scores=[1.0]), history(reward=[2.0])
    panels = make_panels({"one": one, "two": two})
    assert [panel.title for panel in panels] == ["Reward", "Reward: score"]
    assert [line.label for line in panels[0].lines] == ["one", "two"]
    assert len({line.colour for line in panels[0].lines}) == 2


def test_values_that_are_no_numbers_are_gaps():
    panels = make_panels({"run": history(reward=[1.0, math.nan, math.inf, 2.0], kl=[math.nan])})
    (panel,) = panels
    assert (panel.lines[0].steps, panel.lines[0].values) == ([0, 3], [1.0, 2.0])


def test_smoothing_takes_noise_away_without_lag():
    ramp = [float(step) for step in range(400)]
    smoothed = smooth(ramp)
    middle = slice(100, 300)
    assert max(abs(a - b) for a, b in zip(ramp[middle], smoothed[middle], strict=True)) < 0.5
    assert smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    noise = random.Random(0)
    noisy = make_panels({"run": history(reward=[noise.gauss(0, 1) for _ in range(400)], lr=ramp)})
    by_title = {panel.title: panel.lines[0] for panel in noisy}
    assert by_title["Reward"].faint is not None
    assert max(map(abs, by_title["Reward"].values)) < 1
    # A schedule has no noise, also one with a steep warm-up: it is drawn as it is.
    assert by_title["Learning rate"].faint is None
    (warmed_up,) = make_panels({"run": history(learning_rate=[1e-4 * step for step in range(10)] + [1e-6] * 200)})
    assert warmed_up.lines[0].faint is None


def test_long_curves_are_shortened_without_loss_of_their_mean():
    steps = list(range(10 * MOST_POINTS))
    short_steps, short_values = shorten(steps, [float(step % 7) for step in steps])
    assert len(short_steps) == len(short_values) == MOST_POINTS
    assert sum(short_values) / MOST_POINTS == pytest.approx(sum(step % 7 for step in steps) / len(steps))
    assert shorten([1, 2], [3.0, 4.0]) == ([1.0, 2.0], [3.0, 4.0])


@pytest.mark.parametrize(
    "values", [[0.0], [5.0, 5.0], [-1e9, 1e9], [1e-9, 1e-3], [float(step) for step in range(5000)]]
)
def test_charts_stay_within_their_frame(values):
    (panel,) = make_panels({"run": history(grad_norm=values)})
    chart = make_chart(panel)
    for point in chart.curves[0].points.split():
        x, y = map(float, point.split(","))
        assert 44 <= x <= 350
        assert 8 <= y <= 168
    assert chart.y_ticks
    assert all(8 <= tick.position <= 168 for tick in chart.y_ticks)


def test_times_add_up():
    run = history(time__train=[3.0, 1.0], time__generate=[1.0, 1.0], time__mystery=[0.0, 2.0], time__step=[4.0, 4.0])
    times = step_times(run)
    assert list(times.parts) == ["generate", "train", "mystery"]
    shares = time_shares(times)
    assert [share.share for share in shares] == [0.25, 0.5, 0.25]
    bars = time_bars(times, 100, 50)
    assert sum(bar.height for bar in bars if bar.x == 0) == pytest.approx(50)
    assert time_bars(step_times(History()), 100, 50) == []
    assert make_panels({"run": run}) == []


def test_short_number():
    shown = {0: "0", 12345: "12.3k", 2.5e6: "2.5M", 3e9: "3G", 0.052: "0.052", 0.0000034: "3.4e-06", -1.5: "-1.5"}
    assert {value: short_number(value) for value in shown} == shown


def test_smoothing_is_the_kernel_that_it_says():
    noise = random.Random(1)
    values = [noise.random() for _ in range(100)]
    # SMOOTH_SHARE of 100 points is 4, hence a decay of 3/4 a step.
    weights = [[0.75 ** abs(here - there) for there in range(100)] for here in range(100)]
    expected = [sum(w * value for w, value in zip(row, values, strict=True)) / sum(row) for row in weights]
    assert smooth(values) == pytest.approx(expected)


def test_curves_that_show_nothing_are_named_and_not_drawn():
    scores = [0.1, 0.2]
    panels = make_panels(
        {
            "run": history(
                objective__scores=scores,
                rewards__letters__mean=[0.1, 0.2 + 1e-7],
                learning_rate=[1e-5, 1e-5],
                grad_norm__value=[1.0, 1.0],
                grad_norm__policy=[2.0, 2.0 + 1e-12],
                eval_perplexity=[3.0],
                frac_reward_zero_std=[0, 0],
            )
        }
    )
    kept, left_out = worth_drawing(panels)
    assert [panel.title for panel in kept] == ["Reward"]
    assert "Reward by source as Reward" in left_out
    assert "Learning rate 1e-05 at every step" in left_out
    assert "Gradient norm value 1, policy 2 at every step" in left_out
    assert "Perplexity 3, measured once" in left_out
    assert len(left_out) == len(panels) - 1


def test_at_the_first_step_all_panels_are_drawn():
    panels = make_panels({"run": history(reward=[0.1], learning_rate=[1e-5])})
    assert worth_drawing(panels) == (panels, [])


def test_curves_on_one_another_are_one_with_both_names():
    deviations = [0.3, 0.2, 0.4]
    run = history(rewards__letters__std=deviations, reward_std=deviations, rewards__taste__std=[0.1] * 3)
    (panel,) = make_panels({"run": run})
    assert sorted(line.label for line in panel.lines) == ["letters and all sources", "taste"]
    overlaid = make_panels({"one": run, "two": run})
    assert all([line.label for line in panel.lines] == ["one", "two"] for panel in overlaid)


def test_no_two_ticks_have_one_label():
    assert tick_labels([9.8e-6, 1e-5, 1.02e-5]) == ["9.8e-06", "1e-05", "1.02e-05"]
    assert tick_labels([1.00001, 1.00002]) == ["1.00001", "1.00002"]
    assert tick_labels([12_340_000, 12_341_000]) == ["12.34M", "12.341M"]
    assert tick_labels([0.0, 0.5, 1.0]) == ["0", "0.5", "1"]
