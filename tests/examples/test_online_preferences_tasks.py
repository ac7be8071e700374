"""The tasks of the online preference loop, and the clips of them that people see."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from examples.online_preferences import scenes
from examples.online_preferences.agent import ActingRole
from examples.online_preferences.page import draw_clips
from examples.online_preferences.tasks import TASKS, Course


def test_episodes_have_one_length_whatever_the_environment_says() -> None:
    course = Course(TASKS["cartpole"], 3)
    push = np.ones(3, dtype=np.int64)
    found = course.walk(lambda seen: (push, np.tile([0.0, 1.0], (3, 1)), np.zeros(3)), [1])
    # Pushed to one side all the time, each of them falls many times in 200 steps.
    assert found.true_rewards.shape == (3, 200)
    assert ((found.true_rewards == -1).sum(1) > 10).all()
    assert (np.abs(found.observations[:, :, 2]) < 1.6).all()
    again = course.walk(lambda seen: (push, np.tile([0.0, 1.0], (3, 1)), np.zeros(3)), [1])
    np.testing.assert_array_equal(found.observations, again.observations)
    other = course.walk(lambda seen: (push, np.tile([0.0, 1.0], (3, 1)), np.zeros(3)), [2])
    assert (found.observations != other.observations).any()


@pytest.mark.parametrize("task", TASKS)
def test_clips_hold_what_happened(task: str) -> None:
    role = ActingRole(task, 0, 2, 2)
    clips = role.explore().clips
    assert clips.inputs.shape == (8, TASKS[task].clip_steps, len(TASKS[task].scale) + TASKS[task].actions)
    assert np.abs(clips.inputs).max() < 3
    if task == "pendulum":
        cosine, sine, speed = np.moveaxis(clips.observations, 2, 0)
        torque = clips.actions[..., 0] * 2
        cost = np.arctan2(sine, cosine) ** 2 + 0.1 * (8 * speed) ** 2 + 0.001 * torque**2
        np.testing.assert_allclose(clips.true_returns, -cost.sum(1), rtol=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_clips_are_drawn_frame_by_frame(task: str) -> None:
    known = TASKS[task]
    clips = ActingRole(task, 0, 1, 1).explore().clips.take([0])
    drawn = ET.fromstring(draw_clips(task)(clips))
    moving = [one for one in drawn.iter() if one.tag.endswith("animateTransform") and one.get("calcMode") == "discrete"]
    assert {len(one.get("values", "").split(";")) for one in moving} == {known.clip_steps}
    seconds = float(moving[0].get("dur", "").removesuffix("s"))
    assert seconds == pytest.approx(known.clip_steps / known.frames_per_second)
    assert not re.search(r"script|href|on\w+=", draw_clips(task)(clips))


def test_an_upright_pendulum_is_drawn_upright() -> None:
    angles = np.radians([0, 90, 180])
    scene = scenes.pendulum(np.stack([np.cos(angles), np.sin(angles), angles * 0], axis=1))
    # SVG turns with the clock, the environment against it.
    assert scene.parts[0].degrees == pytest.approx([0, -90, -180])
