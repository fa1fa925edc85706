"""The embedded data set `shapes`: drawings with five genuinely different labels on one shared image.

A sample is a pure function of (seed, index). The first numbers of its Philox stream decide the labels and which of
them are missing, the following ones the drawing, so that a change of style never changes a label. Geometry is planned
on a 64 x 64 frame whatever the size drawn.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from cv2.typing import MatLike

from mtl.data.manifest import Label

COLOURS = ("red", "yellow", "green", "cyan", "blue", "magenta")  # hues 0, 60, ... 300 degrees
COUNTS = ("1", "2", "3", "4")

Points: TypeAlias = npt.NDArray[np.float64]  # [N, 2]: x to the right, y down
Pixels: TypeAlias = npt.NDArray[np.uint8]
Value: TypeAlias = int | float | None

_FRAME = 64
_SHIFT = 4  # fractional bits of the coordinates given to OpenCV
_FINE = 4  # drawn at this multiple of the final resolution, then averaged: anti-aliasing
_RADII = ((10.0, 16.0), (10.0, 16.0), (10.0, 13.0), (9.0, 11.5))  # by count - 1: four large objects would not fit
_GAP_PX = 3.0  # between outlines that do not touch; the rim drawn on each takes half a pixel of it
_OVERLAP = (0.04, 0.25)  # of the smaller object, where two touch: enough to be seen, little enough to count
_COVERED = 0.15  # the most that foreground clutter may hide of an object
_ANGLES = 3600  # rotation comes in steps of 0.1 degree, so that float32 keeps it below 2 pi
_MISSING = 0.1  # probability, for each label by itself
_TOUCHING = 0.45  # probability, where there is more than one object


@dataclass(frozen=True, eq=False)
class Sample:
    """One drawing.

    image: RGB, [size_px, size_px, 3]. labels: value per label, None where missing. truth: the same before deletion;
    only the rotation of a disc is None. outlines: one polygon per object on the 64 x 64 frame, later ones in front.
    """

    image: Pixels
    labels: dict[str, Value]
    truth: dict[str, Value]
    outlines: tuple[Points, ...]


def draw(index: int, *, seed: int = 0, size_px: int = 64) -> Sample:
    """Sample `index` of the endless sequence `seed`; both are in [0, 2^64)."""
    rng = _generator(index, seed)
    truth, labels = _labelled(rng)
    objects = _arrange(rng, truth)
    image = _paint(rng, objects, truth, size_px)
    return Sample(image, labels, dict(vars(truth)), tuple(each.body for each in objects))


def labels(index: int, *, seed: int = 0) -> dict[str, Value]:
    """The labels of sample `index`, without drawing it."""
    return _labelled(_generator(index, seed))[1]


def outline(shape: str, rotation: float, centre: tuple[float, float], radius: float) -> Points:
    """The polygon of `shape`, turned clockwise by `rotation` radians, inside the circle (`centre`, `radius`)."""
    return _turned(_UPRIGHT[shape], rotation, centre, radius)


def _turned(upright: Points, rotation: float, centre: tuple[float, float], radius: float) -> Points:
    cos, sin = np.cos(rotation), np.sin(rotation)
    return upright @ np.array([[cos, sin], [-sin, cos]]) * radius + centre


class _Object(NamedTuple):
    body: Points
    tail: Points  # the part that is darker: with it, upright and upside down differ in more than their outline


@dataclass(frozen=True)
class _Truth:
    shape: int
    colour: int
    count: int  # an id: one less than the number of objects
    rotation: float | None
    touching: int


def _generator(index: int, seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))


def _labelled(rng: np.random.Generator) -> tuple[_Truth, dict[str, Value]]:
    truth = _truth(rng)
    deleted = rng.random(len(LABELS)) < _MISSING
    values = zip(vars(truth).items(), deleted, strict=True)
    return truth, {name: None if gone else value for (name, value), gone in values}


def _truth(rng: np.random.Generator) -> _Truth:
    shape, colour, count, angle = (int(rng.integers(n)) for n in (len(SHAPES), len(COLOURS), len(COUNTS), _ANGLES))
    touching = int(rng.random() < _TOUCHING and count > 0)
    rotation = None if SHAPES[shape] == "disc" else angle * 2 * np.pi / _ANGLES
    return _Truth(shape, colour, count, rotation, touching)


def _arrange(rng: np.random.Generator, truth: _Truth) -> tuple[_Object, ...]:
    """The objects, all inside the frame; the first two overlap if `touching`, all others keep the gap."""
    while True:
        objects = _try_to_arrange(rng, truth)
        if objects is not None:
            return objects


def _try_to_arrange(rng: np.random.Generator, truth: _Truth) -> tuple[_Object, ...] | None:
    shape, rotation = SHAPES[truth.shape], truth.rotation or 0.0
    radii = rng.uniform(*_RADII[truth.count], size=truth.count + 1)
    reach = 2 * int(_GAP_PX * _FINE) + 1
    objects: list[_Object] = []
    taken = blocked = _blank()
    for i, radius in enumerate(radii):
        overlaps = truth.touching and i == 1
        for _ in range(20):
            centre = tuple(rng.uniform(radius + 1, _FRAME - radius - 1, size=2))
            points = outline(shape, rotation, centre, radius)
            mask = _blank()
            cv2.fillPoly(mask, [_fixed(points, _FINE)], 255, shift=_SHIFT)
            if overlaps:
                smaller = min(cv2.countNonZero(mask), cv2.countNonZero(taken))
                accepted = _OVERLAP[0] <= cv2.countNonZero(cv2.bitwise_and(mask, taken)) / smaller <= _OVERLAP[1]
            else:
                accepted = not cv2.bitwise_and(mask, blocked).any()
            if accepted:
                objects.append(_Object(points, _turned(_TAIL[shape], rotation, centre, radius)))
                taken = cv2.bitwise_or(taken, mask)
                blocked = cv2.bitwise_or(blocked, cv2.dilate(mask, np.ones((reach, reach), np.uint8)))
                break
        else:
            return None
    return tuple(objects)


def _paint(rng: np.random.Generator, objects: tuple[_Object, ...], truth: _Truth, size_px: int) -> Pixels:
    colour, fine = truth.colour, size_px * _FINE
    canvas = cv2.resize(_background(rng, colour), (fine, fine), interpolation=cv2.INTER_CUBIC)
    scale = fine / _FRAME
    for _ in range(rng.integers(1, 4)):
        points, thickness = _clutter(rng)
        _stroke(canvas, points, thickness, scale, _other_colour(rng, colour))
    for body, tail in objects:
        fill = np.array(_rgb(rng, colour))
        cv2.fillPoly(canvas, [_fixed(body, scale)], tuple(fill), shift=_SHIFT)
        if truth.rotation is not None:
            cv2.fillPoly(canvas, [_fixed(tail, scale)], tuple(0.6 * fill), shift=_SHIFT)
        cv2.polylines(canvas, [_fixed(body, scale)], True, tuple(0.3 * fill), max(1, round(scale)), shift=_SHIFT)
    for points, thickness in _foreground(rng, objects):
        _stroke(canvas, points, thickness, scale, _other_colour(rng, colour))
    return _photograph(rng, cv2.resize(canvas, (size_px, size_px), interpolation=cv2.INTER_AREA))


def _background(rng: np.random.Generator, colour: int) -> Pixels:
    """[64, 64, 3]: a base colour unlike the objects', low-frequency noise and stripes."""
    base = np.array(_other_colour(rng, colour, saturation=(0.1, 0.5)))
    cells = int(rng.integers(3, 9))
    noise = rng.uniform(-40, 40, size=(cells, cells, 3)).astype(np.float32)
    texture = cv2.resize(noise, (_FRAME, _FRAME), interpolation=cv2.INTER_CUBIC)
    direction, waves = rng.uniform(0, np.pi), rng.uniform(2, 9)
    along = (_Y * np.cos(direction) + _X * np.sin(direction)) / _FRAME
    stripes = np.sin(2 * np.pi * (waves * along + rng.random())).astype(np.float32)[..., None]
    tint = rng.uniform(-15, 15, size=3).astype(np.float32)
    return np.clip(texture + stripes * tint + base.astype(np.float32), 0, 255).astype(np.uint8)


def _foreground(rng: np.random.Generator, objects: tuple[_Object, ...]) -> list[tuple[Points, float]]:
    """Strokes and blobs to draw over the objects, as far as they hide little of any of them."""
    masks = [cv2.fillPoly(_blank(), [_fixed(each.body, _FINE)], 255, shift=_SHIFT) for each in objects]
    covered = _blank()
    chosen: list[tuple[Points, float]] = []
    for _ in range(rng.integers(1, 4)):
        points, thickness = _clutter(rng)
        trial = covered.copy()
        _stroke(trial, points, thickness, _FINE, (255.0, 255.0, 255.0))
        hidden = (cv2.countNonZero(cv2.bitwise_and(mask, trial)) / cv2.countNonZero(mask) for mask in masks)
        if max(hidden) <= _COVERED:
            covered = trial
            chosen.append((points, thickness))
    return chosen


def _clutter(rng: np.random.Generator) -> tuple[Points, float]:
    """A bent stroke, or a short one so thick that it is a blob: its points and thickness on the frame."""
    thickness, length = ((1.0, 2.5), 16.0) if rng.random() < 0.6 else ((3.0, 6.0), 2.0)
    steps = rng.uniform(-length, length, size=(3, 2))
    return rng.uniform(0, _FRAME, size=2) + np.cumsum(steps, axis=0), rng.uniform(*thickness)


def _photograph(rng: np.random.Generator, image: MatLike) -> Pixels:
    """`image` under a light that varies across it, with a tint and sensor noise."""
    size = image.shape[0]
    corners = rng.uniform(0.7, 1.15, size=(2, 2)).astype(np.float32)
    light = cv2.resize(corners, (size, size), interpolation=cv2.INTER_LINEAR)[..., None]
    tint = rng.uniform(0.92, 1.08, size=3).astype(np.float32)
    noise = rng.integers(0, 256, size=(2, *image.shape), dtype=np.uint8).astype(np.float32)
    grain = (noise[0] - noise[1]) * np.float32(rng.uniform(0.02, 0.09))
    return np.clip(image * (light * tint) + grain, 0, 255).astype(np.uint8)


def _rgb(
    rng: np.random.Generator,
    colour: int,
    saturation: tuple[float, float] = (0.5, 1.0),
    value: tuple[float, float] = (0.55, 1.0),
) -> tuple[float, float, float]:
    hue = (colour + rng.uniform(-0.25, 0.25)) / len(COLOURS)
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, rng.uniform(*saturation), rng.uniform(*value))
    return 255 * red, 255 * green, 255 * blue


def _other_colour(
    rng: np.random.Generator, colour: int, saturation: tuple[float, float] = (0.3, 1.0)
) -> tuple[float, float, float]:
    return _rgb(rng, colour + int(rng.integers(1, len(COLOURS))), saturation, value=(0.3, 0.95))


def _stroke(
    canvas: MatLike, points: Points, thickness: float, scale: float, colour: tuple[float, float, float]
) -> None:
    cv2.polylines(canvas, [_fixed(points, scale)], False, colour, max(1, round(thickness * scale)), shift=_SHIFT)


def _fixed(points: Points, scale: float) -> npt.NDArray[np.int32]:
    """`points` of the frame in OpenCV's fixed point, whose whole numbers are the centres of pixels."""
    return np.rint((points * scale - 0.5) * (1 << _SHIFT)).astype(np.int32)


def _blank() -> MatLike:
    return np.zeros((_FRAME * _FINE, _FRAME * _FINE), np.uint8)


_Y, _X = np.mgrid[0:_FRAME, 0:_FRAME]


def _arc(centre_y: float, radius: float, start: float, end: float) -> Points:
    """Points of a circle about (0, centre_y); angles in degrees, clockwise from the top."""
    angle = np.radians(np.linspace(start, end, 24))
    return np.stack([radius * np.sin(angle), centre_y - radius * np.cos(angle)], axis=1)


def _heart() -> Points:
    t = np.linspace(0, np.pi, 32)
    return np.stack([16 * np.sin(t) ** 3, 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t) - 13 * np.cos(t)], 1)


def _teardrop() -> Points:
    t = np.linspace(0, np.pi, 32)
    return np.stack([0.8 * np.sin(t) * np.sin(t / 2) ** 1.5, -np.cos(t)], axis=1)


# The right half of each upright shape, from the top of its axis of symmetry to the bottom. The axis is what makes
# a mirrored image one of the same shape at the negated angle.
_RIGHT_HALF: dict[str, Callable[[], Points]] = {
    "disc": lambda: _arc(0, 1, 0, 180),
    "arrow": lambda: np.array([[0, -1], [0.8, -0.1], [0.3, -0.1], [0.3, 1], [0, 1]]),
    "heart": _heart,
    "teardrop": _teardrop,
    "halfdisc": lambda: np.concatenate([_arc(0, 1, 0, 90), [[0.0, 0.0]]]),
    "crescent": lambda: np.concatenate([_arc(-0.45, 0.8, 180, 77.4), _arc(0, 1, 51.3, 180)]),
    "keyhole": lambda: np.concatenate([_arc(-0.45, 0.55, 0, 150), [[0.55, 1.0], [0.0, 1.0]]]),
    "dart": lambda: np.array([[0, -1], [0.75, 1], [0, 0.4]]),
}

SHAPES = tuple(_RIGHT_HALF)


def _whole(right: Points) -> Points:
    """The closed shape, moved along its axis and scaled to fill the unit circle."""
    points = np.concatenate([right, right[::-1] * [-1, 1]])
    points[:, 1] -= (points[:, 1].min() + points[:, 1].max()) / 2
    return points / np.hypot(points[:, 0], points[:, 1]).max()


def _below(points: Points) -> Points:
    """The part of a polygon with y >= 0."""
    kept: list[Points] = []
    for point, following in zip(points, np.roll(points, -1, axis=0), strict=True):
        if point[1] >= 0:
            kept.append(point)
        if (point[1] >= 0) != (following[1] >= 0):
            kept.append(point + (following - point) * point[1] / (point[1] - following[1]))
    return np.stack(kept)


_UPRIGHT = {shape: _whole(half()) for shape, half in _RIGHT_HALF.items()}
_TAIL = {shape: _below(points) for shape, points in _UPRIGHT.items()}

LABELS: dict[str, Label] = {
    "shape": Label(kind="class", classes=SHAPES),
    "colour": Label(kind="class", classes=COLOURS),
    "count": Label(kind="class", classes=COUNTS),
    "rotation": Label(kind="angle"),
    "touching": Label(kind="binary"),
}
