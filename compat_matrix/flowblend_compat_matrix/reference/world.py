"""The procedural video world the reference pair is trained on.

One or two textured objects move over a background that may pan. A caption names some attributes of one of them and
leaves the rest to chance, so that a caption has many right answers, as real ones do. What is left to chance is mostly
*discrete* (how many objects, where on a grid, which palette, which phase): only between answers that exclude each
other does a trajectory have to decide, and only a model that has learnt the answers decides sharply.

Everything follows from a `numpy.random.Generator`; the same seed gives the same scene on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Video = NDArray[np.float32]
"""``[frames, height, width, 3]``, RGB in 0..1."""

Field = NDArray[np.floating]
"""A number for every pixel of every frame."""

SIZE = 64
NUM_FRAMES = 9

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.93, 0.16, 0.14),
    "green": (0.12, 0.75, 0.22),
    "blue": (0.14, 0.28, 0.95),
    "yellow": (0.98, 0.88, 0.12),
    "purple": (0.68, 0.20, 0.85),
    "white": (0.97, 0.97, 0.97),
}
TEXTURES = ("plain", "striped", "dotted")
MOTIONS: dict[str, tuple[float, float]] = {
    "still": (0.0, 0.0),
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}
BACKGROUNDS = ("gradient", "stripes", "checkers", "blobs")

PALETTES: tuple[tuple[tuple[float, float, float], tuple[float, float, float]], ...] = (
    ((0.13, 0.17, 0.25), (0.40, 0.48, 0.58)),  # slate
    ((0.20, 0.13, 0.10), (0.58, 0.47, 0.36)),  # earth
    ((0.10, 0.20, 0.12), (0.42, 0.56, 0.38)),  # moss
    ((0.22, 0.11, 0.22), (0.60, 0.40, 0.52)),  # heather
    ((0.09, 0.20, 0.22), (0.38, 0.58, 0.57)),  # lagoon
    ((0.16, 0.16, 0.16), (0.56, 0.55, 0.50)),  # ash
)
"""The two colours of a background, the dark one first; weakly saturated, so that no object is mistaken for one."""

RADIUS = 13.0
SPEED = 2.0
GRID = 8
"""Objects stand on a grid of 8 pixels and move 2 a frame: one latent cell, and one latent cell a latent frame."""

MIN_VISIBLE_FRACTION = 0.6
"""An object that shows less of itself than this, averaged over the video, makes the scene be drawn again."""


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One object of a scene. Lengths in pixels, speed in pixels per frame, angles in radians, phases in 0..1."""

    shape: str
    colour: str
    texture: str
    motion: str
    radius: float
    speed: float
    centre: tuple[float, float]  # (x, y) in the middle frame
    texture_period: float
    texture_angle: float


@dataclass(frozen=True, kw_only=True)
class Background:
    """Background behind the objects: two dark, weakly saturated colours in a pattern, panning by ``pan`` a frame."""

    kind: str
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    period: float
    phase: tuple[float, float]
    angle: float
    pan: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that decides one video. Objects are in depth order, the farthest first."""

    objects: tuple[SceneObject, ...]
    background: Background
    detail_seed: int = 0
    """Seed of random detail, in worlds that draw any."""


@dataclass(frozen=True)
class Attribute:
    """One thing a caption says: ``subject`` is a shape or ``"background"``, ``name`` what is said of it.

    For a shape, ``name`` is ``present`` (value ``"yes"``), ``colour``, ``texture`` or ``motion``; for the background
    it is ``kind``.
    """

    subject: str
    name: str
    value: str


@dataclass(frozen=True)
class Caption:
    """A caption and what it names."""

    text: str
    attributes: tuple[Attribute, ...]


def _sample_background(rng: np.random.Generator) -> Background:
    kind = str(rng.choice(BACKGROUNDS))
    angle = np.pi / 4.0 * int(rng.integers(2 if kind == "checkers" else 4))
    smooth = kind in ("gradient", "blobs")
    phase = (rng.random(), rng.random()) if smooth else (int(rng.integers(4)) / 4.0, int(rng.integers(4)) / 4.0)
    direction = float(rng.choice((0.0, 0.0, 1.0, -1.0)))  # along the pattern, so that panning changes its phase only
    return Background(
        kind=kind,
        colours=PALETTES[int(rng.integers(len(PALETTES)))],
        period=16.0,
        phase=phase,
        angle=angle,
        pan=(direction * float(np.cos(angle)), direction * float(np.sin(angle))),
    )


def _sample_object(rng: np.random.Generator, shape: str) -> SceneObject:
    motion = str(rng.choice(list(MOTIONS)))
    centre = []
    for direction in MOTIONS[motion]:
        first = 3 if direction else 2  # a moving object needs a cell more at either end of its path
        centre.append(float(GRID * rng.integers(first, SIZE // GRID - first + 1)))
    return SceneObject(
        shape=shape,
        colour=str(rng.choice(list(COLOURS))),
        texture=str(rng.choice(TEXTURES)),
        motion=motion,
        radius=RADIUS,
        speed=0.0 if motion == "still" else SPEED,
        centre=(centre[0], centre[1]),
        texture_period=8.0,
        texture_angle=float(rng.choice((np.pi / 4.0, -np.pi / 4.0))),
    )


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene in which every object can be seen (`MIN_VISIBLE_FRACTION`)."""
    while True:
        num_objects = int(rng.integers(1, 3))
        shapes = rng.permutation(SHAPES)[:num_objects]
        scene = Scene(
            objects=tuple(_sample_object(rng, str(shape)) for shape in shapes), background=_sample_background(rng)
        )
        if min(visible_fractions(scene)) >= MIN_VISIBLE_FRACTION:
            return scene


def _grid(step: int = 1, size: int = SIZE) -> tuple[Video, Video]:
    axis = np.arange(0, size, step, dtype=np.float32) + 0.5
    x, y = np.meshgrid(axis, axis)
    return x[None], y[None]


def _local(item: SceneObject, x: Video, y: Video, frames: NDArray[np.float32]) -> tuple[Field, Field]:
    """Coordinates from the object's centre, ``[F, H, W]`` pixels."""
    direction_x, direction_y = MOTIONS[item.motion]
    moved = (frames - (NUM_FRAMES - 1) / 2.0)[:, None, None] * np.float32(item.speed)
    dx = x - np.float32(item.centre[0]) - direction_x * moved
    dy = y - np.float32(item.centre[1]) - direction_y * moved
    return dx, dy


def distance(item: SceneObject, u: Video, v: Video) -> Field:
    """Signed distance to the shape's edge in pixels (a bound where exactness costs more), negative inside."""
    r = item.radius
    if item.shape == "circle":
        return np.sqrt(u * u + v * v) - r
    if item.shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.88 * r
    if item.shape == "triangle":
        return np.maximum(0.866 * np.abs(u) - 0.5 * v, v) - 0.66 * r
    if item.shape == "cross":
        wide, thin = 1.05 * r, 0.38 * r
        along = np.maximum(np.abs(u) - wide, np.abs(v) - thin)
        across = np.maximum(np.abs(u) - thin, np.abs(v) - wide)
        return np.minimum(along, across)
    if item.shape == "ring":
        return np.abs(np.sqrt(u * u + v * v) - 0.78 * r) - 0.27 * r
    raise ValueError(f"no shape is called {item.shape!r}; there are {', '.join(SHAPES)}")


def coverage(signed_distance: Field) -> Field:
    """Anti-aliased share of a pixel that lies inside."""
    return np.clip(0.5 - signed_distance, 0.0, 1.0)


def square_wave(position: Video, period: float, phase: float) -> Video:
    """A square wave in -1..1 whose flanks are one pixel wide."""
    angle = position * np.float32(2.0 * np.pi / period) + np.float32(2.0 * np.pi * phase)
    return np.clip(np.sin(angle) * np.float32(period / np.pi), -1.0, 1.0)


def dark_fraction(item: SceneObject, u: Video, v: Video) -> Field | np.float32:
    """Share of a pixel that carries the texture's dark ink."""
    if item.texture == "plain":
        return np.float32(0.0)
    cos, sin = np.float32(np.cos(item.texture_angle)), np.float32(np.sin(item.texture_angle))
    along, across = cos * u + sin * v, cos * v - sin * u
    period = item.texture_period
    if item.texture == "striped":
        return 0.5 + 0.5 * square_wave(along, period, 0.0)
    cell_u = along % period - period / 2.0
    cell_v = across % period - period / 2.0
    return coverage(np.sqrt(cell_u * cell_u + cell_v * cell_v) - 0.33 * np.float32(period))


def visible_fractions(scene: Scene, size: int = SIZE) -> list[float]:
    """Share of each object's full area that is in a picture of ``size`` pixels and not covered, over the video."""
    x, y = _grid(2, size)
    frames = np.array([0, (NUM_FRAMES - 1) / 2, NUM_FRAMES - 1], dtype=np.float32)
    masks = [distance(item, *_local(item, x, y, frames)) < 0 for item in scene.objects]
    margin = np.arange(-SIZE, SIZE, 2, dtype=np.float32) + 1.0
    wide_u, wide_v = np.meshgrid(margin, margin)
    fractions = []
    for index, (item, mask) in enumerate(zip(scene.objects, masks, strict=True)):
        covered = np.any(masks[index + 1 :], axis=0) if index + 1 < len(masks) else np.zeros_like(mask)
        whole = max(1, int(np.count_nonzero(distance(item, wide_u, wide_v) < 0))) * len(frames)
        fractions.append(float(np.count_nonzero(mask & ~covered)) / whole)
    return fractions


def _render_background(background: Background, x: Video, y: Video, frames: NDArray[np.float32]) -> Field:
    u = x - frames[:, None, None] * np.float32(background.pan[0])
    v = y - frames[:, None, None] * np.float32(background.pan[1])
    cos, sin = np.float32(np.cos(background.angle)), np.float32(np.sin(background.angle))
    along, across = cos * u + sin * v, cos * v - sin * u
    period, (phase_u, phase_v) = background.period, background.phase
    if background.kind == "gradient":
        mix = np.clip(0.5 + (along - SIZE / 2 * (cos + sin)) / SIZE + (phase_u - 0.5) * 0.4, 0.0, 1.0)
    elif background.kind == "stripes":
        mix = 0.5 + 0.5 * square_wave(along, period, phase_u)
    elif background.kind == "checkers":
        mix = 0.5 + 0.5 * square_wave(along, period, phase_u) * square_wave(across, period, phase_v)
    elif background.kind == "blobs":
        scale = np.float32(2.0 * np.pi / (1.3 * period))
        field = np.sin(scale * along + 6.28 * phase_u) + np.sin(scale * across * 0.8 + 6.28 * phase_v)
        field += np.sin(scale * (0.7 * along + 0.9 * across) + 6.28 * (phase_u + phase_v))
        mix = 0.5 + 0.5 * np.tanh(1.2 * field)
    else:
        raise ValueError(f"no background is called {background.kind!r}; there are {', '.join(BACKGROUNDS)}")
    first, second = (np.array(colour, dtype=np.float32) for colour in background.colours)
    return first + mix[..., None].astype(np.float32) * (second - first)


def render(scene: Scene) -> Video:
    """Draw a scene: ``[NUM_FRAMES, SIZE, SIZE, 3]`` float32 in 0..1, anti-aliased."""
    x, y = _grid()
    frames = np.arange(NUM_FRAMES, dtype=np.float32)
    video = _render_background(scene.background, x, y, frames)
    video = np.broadcast_to(video, (NUM_FRAMES, SIZE, SIZE, 3)).copy()
    for item in scene.objects:
        u, v = _local(item, x, y, frames)
        alpha = coverage(distance(item, u, v))[..., None]
        ink = np.asarray(dark_fraction(item, u, v), dtype=np.float32)[..., None]
        colour = np.array(COLOURS[item.colour], dtype=np.float32)
        video += alpha * (colour * (1.0 - 0.8 * ink) - video)
    return np.clip(video, 0.0, 1.0).astype(np.float32)


def caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """Say something true of the scene, and leave something out.

    One object is named by its shape, with some of colour, texture and motion; the background sometimes.
    """
    item = scene.objects[int(rng.integers(len(scene.objects)))]
    words = ["a"]
    attributes = [Attribute(item.shape, "present", "yes")]
    if rng.random() < 0.9:
        words.append(item.colour)
        attributes.append(Attribute(item.shape, "colour", item.colour))
    if rng.random() < 0.5:
        words.append(item.texture)
        attributes.append(Attribute(item.shape, "texture", item.texture))
    words.append(item.shape)
    if rng.random() < 0.5:
        words += ["standing", "still"] if item.motion == "still" else ["moving", item.motion]
        attributes.append(Attribute(item.shape, "motion", item.motion))
    if rng.random() < 0.4:
        words += ["over", scene.background.kind]
        attributes.append(Attribute("background", "kind", scene.background.kind))
    return Caption(" ".join(words), tuple(attributes))


FIELDS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "texture": TEXTURES,
    "motion": tuple(MOTIONS),
}
"""What a caption may say of an object. In labels, 0 is "not said" and value ``i`` is ``i + 1``."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Videos that a pair is trained and judged on: how scenes are drawn, and how a scene looks."""

    sample_scene: Callable[[np.random.Generator], Scene]
    render: Callable[[Scene], Video]


WORLD = World(sample_scene=sample_scene, render=render)
"""The world of the first pair: 9 frames of 64x64."""
