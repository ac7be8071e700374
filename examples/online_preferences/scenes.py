"""Clips as small pictures that move: SVG, animated by its own elements, so that a browser needs nothing else."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray

SIZE = 240
"""Width and height of a picture, in its own units."""


@dataclass(frozen=True)
class Part:
    """A drawn part that moves as a whole."""

    shape: str
    """SVG of the part, around its own origin."""
    places: Sequence[tuple[float, float]]
    """Where the origin is in each frame."""
    degrees: Sequence[float]
    """How far it is turned clockwise in each frame."""


@dataclass(frozen=True)
class Scene:
    """Parts of a picture, those that stand still and those that move."""

    ground: str
    parts: Sequence[Part]


def pendulum(observations: Array) -> Scene:
    """Draw a rod that hangs on a pin; observations are cosine, sine and speed of its angle, 0 upright."""
    degrees = np.degrees(np.arctan2(observations[:, 1], observations[:, 0]))
    middle = SIZE / 2
    rod = '<rect x="-7" y="-92" width="14" height="99" rx="7" fill="#c2410c"/><circle r="14" cy="-88" fill="#9a3412"/>'
    ground = (
        f'<circle cx="{middle}" cy="{middle}" r="92" fill="none" stroke="#e2e8f0" stroke-width="2"/>'
        f'<path d="M{middle} 14 v14" stroke="#94a3b8" stroke-width="3"/>'
    )
    # The environment counts angles against the clock.
    moving = Part(rod, [(middle, middle)] * len(degrees), (-np.asarray(degrees)).tolist())
    pin = Part('<circle r="5" fill="#0f172a"/>', [(middle, middle)] * len(degrees), [0.0] * len(degrees))
    return Scene(ground, [moving, pin])


def cartpole(observations: Array) -> Scene:
    """Draw a cart on a rail with a pole on it; observations are place, speed, angle of the pole, its speed."""
    reach = SIZE / 2 - 30
    places = [(SIZE / 2 + float(place) / 2.4 * reach, 170.0) for place in observations[:, 0]]
    ground = (
        f'<path d="M10 186 H{SIZE - 10}" stroke="#94a3b8" stroke-width="3"/>'
        f'<path d="M{SIZE / 2} 180 v12" stroke="#94a3b8" stroke-width="3"/>'
    )
    cart = Part('<rect x="-24" y="-13" width="48" height="26" rx="4" fill="#334155"/>', places, [0.0] * len(places))
    pole = Part(
        '<rect x="-5" y="-120" width="10" height="124" rx="5" fill="#c2410c"/>',
        places,
        [math.degrees(float(angle)) for angle in observations[:, 2]],
    )
    return Scene(ground, [cart, pole])


def animated_svg(scene: Scene, frames_per_second: float) -> str:
    """Draw the scene as an SVG that plays for ever, with a bar below it that shows how far the clip is."""
    frames = len(scene.parts[0].degrees)
    seconds = frames / frames_per_second
    moving = "".join(_moving(part, seconds) for part in scene.parts)
    bar = (
        f'<rect y="{SIZE - 5}" height="5" width="{SIZE}" fill="#2563eb" transform="scale(0 1)">'
        f'<animateTransform attributeName="transform" type="scale" values="0 1;1 1" dur="{seconds:g}s" '
        'repeatCount="indefinite"/></rect>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}" width="{SIZE}" height="{SIZE}">'
        f'<rect width="{SIZE}" height="{SIZE}" fill="#f8fafc"/>{scene.ground}{moving}{bar}</svg>'
    )


def _moving(part: Part, seconds: float) -> str:
    """Put a part in two frames of reference, one that travels and one that turns: each is animated by itself."""
    travel = ";".join(f"{x:.1f} {y:.1f}" for x, y in part.places)
    turn = ";".join(f"{degrees:.1f}" for degrees in part.degrees)
    first_x, first_y = part.places[0]
    return (
        f'<g transform="translate({first_x:.1f} {first_y:.1f})">{_animation("translate", travel, seconds)}'
        f'<g transform="rotate({part.degrees[0]:.1f})">{_animation("rotate", turn, seconds)}{part.shape}</g></g>'
    )


def _animation(kind: str, values: str, seconds: float) -> str:
    # From frame to frame at once: a pendulum that passes from 179 to -179 degrees must not swing all the way back.
    return (
        f'<animateTransform attributeName="transform" type="{kind}" values="{values}" dur="{seconds:g}s" '
        'calcMode="discrete" repeatCount="indefinite"/>'
    )
