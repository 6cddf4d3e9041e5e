"""The procedural video world of the LTX pair: small, sharp, and full of random detail.

The scenes, words and captions are those of the first world (`..world`); what differs is that everything carries random
detail with a power-law spectrum, as natural video does. Detail of every scale means that a trajectory has something
to decide at every noise level, and not only where the layout is decided.

Everything follows from a `numpy.random.Generator`; the same seed gives the same scene on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..world import (
    COLOURS,
    MIN_VISIBLE_FRACTION,
    MOTIONS,
    PALETTES,
    SHAPES,
    TEXTURES,
    Background,
    Scene,
    SceneObject,
    Video,
    World,
    coverage,
    dark_fraction,
    distance,
    square_wave,
    visible_fractions,
)

SIZE = 32
NUM_FRAMES = 5
RADIUS = 7.0
SPEED = 1.0
GRID = 4
"""Objects stand on a grid of 4 pixels and move 1 a frame: a quarter of a latent cell a latent frame."""

BACKGROUNDS = ("gradient", "stripes", "checkers", "blobs")
DETAIL_EXPONENT = 1.25
"""Amplitude of a component of the detail falls with its frequency to this power (natural images: about 1)."""

DETAIL_AMPLITUDE = 0.1
"""Root mean square of the detail, of RGB values in 0..1."""

_TORUS = 64


def power_law_field(rng: np.random.Generator, exponent: float, size: int = _TORUS) -> NDArray[np.float32]:
    """A random periodic field ``[size, size]`` of mean 0 and variance 1, with amplitudes ``frequency ** -exponent``."""
    frequency = np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size)[None] ** 2
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * frequency ** (-exponent / 2.0)
    field = np.fft.irfft2(spectrum, s=(size, size))
    return (field / field.std()).astype(np.float32)


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
        texture_period=7.0,
        texture_angle=float(rng.choice((np.pi / 4.0, -np.pi / 4.0))),
    )


def _sample_background(rng: np.random.Generator) -> Background:
    pan = ((0, 0), (0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))[int(rng.integers(6))]
    return Background(
        kind=str(rng.choice(BACKGROUNDS)),
        colours=PALETTES[int(rng.integers(len(PALETTES)))],
        period=12.0,
        phase=(int(rng.integers(4)) / 4.0, int(rng.integers(4)) / 4.0),
        angle=np.pi / 4.0 * int(rng.integers(4)),
        pan=(float(pan[0]), float(pan[1])),
    )


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene of one or two objects, each of which can be seen (`MIN_VISIBLE_FRACTION`)."""
    while True:
        shapes = rng.permutation(SHAPES)[: int(rng.integers(1, 3))]
        scene = Scene(
            objects=tuple(_sample_object(rng, str(shape)) for shape in shapes),
            background=_sample_background(rng),
            detail_seed=int(rng.integers(2**31)),
        )
        if min(visible_fractions(scene, SIZE)) >= MIN_VISIBLE_FRACTION:
            return scene


def _moved(field: NDArray[np.float32], motion: tuple[float, float]) -> NDArray[np.float32]:
    """A window of a periodic field that moves by whole pixels a frame: ``[F, H, W]``."""
    dx, dy = int(motion[0]), int(motion[1])
    half = NUM_FRAMES // 2
    frames = [np.roll(field, ((frame - half) * dy, (frame - half) * dx), (0, 1)) for frame in range(NUM_FRAMES)]
    return np.stack(frames)[:, :SIZE, :SIZE]


def _render_background(scene: Scene, rng: np.random.Generator) -> NDArray[np.float32]:
    background = scene.background
    axis = np.arange(_TORUS, dtype=np.float32) + 0.5
    x, y = np.meshgrid(axis, axis)
    cos, sin = np.float32(np.cos(background.angle)), np.float32(np.sin(background.angle))
    along, across = cos * x + sin * y, cos * y - sin * x
    period, (phase_u, phase_v) = background.period, background.phase
    if background.kind == "gradient":
        slope = np.sin(along * np.float32(np.pi / SIZE) + np.float32(2.0 * np.pi * phase_u))
        mix = 0.5 + 0.5 * slope
    elif background.kind == "stripes":
        mix = 0.5 + 0.5 * square_wave(along, period, phase_u)
    elif background.kind == "checkers":
        mix = 0.5 + 0.5 * square_wave(along, period, phase_u) * square_wave(across, period, phase_v)
    else:
        mix = coverage(-6.0 * power_law_field(rng, 2.5))
    first, second = (np.array(colour, dtype=np.float32) for colour in background.colours)
    texture = np.float32(DETAIL_AMPLITUDE) * power_law_field(rng, DETAIL_EXPONENT)
    picture = first + mix[..., None].astype(np.float32) * (second - first) + texture[..., None]
    return np.stack([_moved(picture[..., channel], background.pan) for channel in range(3)], axis=-1)


def render(scene: Scene) -> Video:
    """Draw a scene: ``[NUM_FRAMES, SIZE, SIZE, 3]`` float32 in 0..1, anti-aliased."""
    rng = np.random.default_rng(scene.detail_seed)
    video = _render_background(scene, rng)
    axis = np.arange(SIZE, dtype=np.float32) + 0.5
    x, y = (part[None] for part in np.meshgrid(axis, axis))
    frames = (np.arange(NUM_FRAMES, dtype=np.float32) - NUM_FRAMES // 2)[:, None, None]
    for item in scene.objects:
        direction = tuple(item.speed * part for part in MOTIONS[item.motion])
        u = x - np.float32(item.centre[0]) - frames * np.float32(direction[0])
        v = y - np.float32(item.centre[1]) - frames * np.float32(direction[1])
        ink = np.asarray(dark_fraction(item, u, v), dtype=np.float32)[..., None]
        shade = _moved(power_law_field(rng, DETAIL_EXPONENT), (direction[0], direction[1]))[..., None]
        colour = np.array(COLOURS[item.colour], dtype=np.float32) * (0.9 - 0.55 * ink)
        video += coverage(distance(item, u, v))[..., None] * (colour + np.float32(DETAIL_AMPLITUDE) * shade - video)
    return np.clip(video, 0.0, 1.0).astype(np.float32)


LTX_WORLD = World(sample_scene=sample_scene, render=render)
"""The world of the LTX pair: 5 frames of 32x32."""
