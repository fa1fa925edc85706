"""From encoded images to the square uint8 view that the model sees. Geometry here, on the CPU; colour in `colour`.

Every random number is a function of (seed, epoch, position): the same pixels whichever worker or thread makes them.
A view works on the samples of a chunk together, in two stages:

    render    each encoded image into its place: decoded, and cropped or resized
    finish    what is random about views of which `fixed` is true, for the whole chunk in a few calls: shift, mirror

So what such a view renders can be kept and finished again in the next epoch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import cv2
import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from mtl.config import Augment
from mtl.data.image import BadImage, Found, decode, decode_into, examine
from mtl.data.keyed import key, uniforms

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Refused = dict[int, str]
"""Why images could not be decoded, by the sample's place in its chunk."""

_ATTEMPTS = 10
_COLOUR, _FLIP, _SHIFT, _CROP = slice(0, 3), 3, slice(4, 6), slice(6, 6 + 4 * _ATTEMPTS)
_COLUMNS = {"none": _FLIP + 1, "padded": _SHIFT.stop, "resized": _CROP.stop}
_SHRINKS = (8, 4, 2)

cv2.setNumThreads(1)  # the loader's threads are the parallelism


@dataclass(frozen=True)
class Draws:
    """The random numbers of n samples, each row keyed by its position.

    `numbers` float64 [n, k] in [0, 1), k as the view needs; `flip` bool [n]; `colour` float32 [n, 3]: factors of
    brightness, contrast and saturation.
    """

    numbers: F64
    flip: npt.NDArray[np.bool_]
    colour: npt.NDArray[np.float32]


@final
class TrainView:
    """The training view: crop or shift, mirror, resize to [size, size, 3]."""

    def __init__(self, augment: Augment, seed: int) -> None:
        self.size_px, self._augment, self._seed = augment.size_px, augment, seed
        self._fast = augment.pixels == "fast"
        self.fixed = augment.crop != "resized"

    def draw(self, epoch: int, positions: I64) -> Draws:
        """The random numbers for `positions` [n] of `epoch`."""
        augment = self._augment
        numbers = uniforms(key("augment", self._seed, epoch), positions, _COLUMNS[augment.crop])
        spread = np.array([augment.brightness, augment.contrast, augment.saturation])
        return Draws(
            numbers,
            flip=numbers[:, _FLIP] < augment.flip,
            colour=(1 + (2 * numbers[:, _COLOUR] - 1) * spread).astype(np.float32),
        )

    def render(self, data: Sequence[memoryview], out: U8, draws: Draws, at: Sequence[int]) -> Refused:
        """Decode `data` into `out` [n, size, size, 3], the k-th as sample `at[k]` of `draws`; says which it could not.

        What was refused is left undefined in `out`.
        """
        if self.fixed:
            return _each(data, at, lambda image, i: _whole(image, out[i], self._fast))
        headers: dict[int, tuple[memoryview, Found]] = {}

        def look(image: memoryview, i: int) -> None:
            headers[i] = image, examine(image)

        refused = _each(data, at, look)
        sound = [*headers]
        shapes = np.array([(found.height, found.width) for _, found in headers.values()], np.int64).reshape(-1, 2)
        numbers = draws.numbers[sound, _CROP]
        boxes = dict(zip(sound, crop_boxes(shapes, numbers, self._augment).tolist(), strict=True))

        def show(image: memoryview, i: int) -> None:
            _part(image, headers[i][1], boxes[i], out[i], self._fast)
            if draws.flip[i]:
                cv2.flip(out[i], 1, dst=out[i])  # at once, while it is in the cache

        return refused | _each([image for image, _ in headers.values()], sound, show)

    def finish(self, out: U8, draws: Draws) -> None:
        """Shift and mirror the rendered samples `out` [n, size, size, 3] in place, if that was left to do."""
        if not self.fixed:
            return
        if self._augment.crop == "padded":
            pad = self._augment.crop_pad_px
            _shift(out, (draws.numbers[:, _SHIFT] * (2 * pad + 1)).astype(np.int64), pad)
        _mirror(out, draws.flip)


@final
class EvalView:
    """The evaluation view: the centre, as resizing the short side and cropping would show it. Nothing is random."""

    fixed = True

    def __init__(self, augment: Augment) -> None:
        self.size_px = augment.evaluated_px
        self._share = self.size_px / augment.eval_resize_px
        self._fast = augment.pixels == "fast"

    def draw(self, epoch: int, positions: I64) -> Draws:
        """Neutral numbers: no mirror, factors of one."""
        n = len(positions)
        return Draws(np.zeros((n, 0)), np.zeros(n, np.bool_), np.ones((n, 3), np.float32))

    def render(self, data: Sequence[memoryview], out: U8, draws: Draws, at: Sequence[int]) -> Refused:
        """Decode `data` into `out` [n, size, size, 3], the k-th into place `at[k]`; says which it could not."""
        return _each(data, at, lambda image, i: self._centre(image, out[i]))

    def finish(self, out: U8, draws: Draws) -> None:
        """Nothing is left to do."""

    def _centre(self, data: memoryview, out: U8) -> None:
        if self._share == 1 and decode_into(data, out, fast=self._fast):
            return
        found = examine(data)
        side = max(1, round(min(found.height, found.width) * self._share))
        box = [(found.height - side) // 2, (found.width - side) // 2, side, side]
        _part(data, found, box, out, self._fast)


View = TrainView | EvalView


def crop_boxes(shapes: I64, numbers: F64, augment: Augment) -> I64:
    """Top, left, height and width [n, 4] of random parts of images (Szegedy et al. 2015).

    Args:
        shapes: height and width of the images [n, 2].
        numbers: in [0, 1), four for each proposal [n, 4 k]; the first that fits counts, else the middle square.
        augment: `crop_scale` and `crop_ratio`, ranges of the part's share of the area and of its width over its height.
    """
    height, width = shapes[:, 0], shapes[:, 1]
    (low, high), (narrow, wide) = augment.crop_scale, augment.crop_ratio
    area, aspect, down, right = numbers.reshape(len(shapes), numbers.shape[1] // 4, 4).transpose(2, 0, 1)
    pixels = (height * width)[:, None] * (low + (high - low) * area)
    stretch = narrow * (wide / narrow) ** aspect  # uniform in its logarithm
    w, h = np.rint(np.sqrt(pixels * stretch)), np.rint(np.sqrt(pixels / stretch))
    fits = (w >= 1) & (w <= width[:, None]) & (h >= 1) & (h <= height[:, None])
    first = (np.arange(len(shapes)), fits.argmax(1))
    w, h = w[first], h[first]
    top, left = np.floor(down[first] * (height - h + 1)), np.floor(right[first] * (width - w + 1))
    boxes = np.stack([top, left, h, w], axis=1).astype(np.int64)
    side = np.minimum(height, width)
    middle = np.stack([(height - side) // 2, (width - side) // 2, side, side], axis=1)
    return np.where(fits[first][:, None], boxes, middle)


def _each(data: Sequence[memoryview], at: Sequence[int], show: Callable[[memoryview, int], None]) -> Refused:
    refused: Refused = {}
    for image, i in zip(data, at, strict=True):
        try:
            show(image, i)
        except BadImage as error:
            refused[i] = str(error)
    return refused


def _whole(data: memoryview, out: U8, fast: bool) -> None:
    if not decode_into(data, out, fast=fast):
        found = examine(data)
        _part(data, found, [0, 0, found.height, found.width], out, fast)


def _part(data: memoryview, found: Found, box: list[int], out: U8, fast: bool) -> None:
    """The part `box` (top, left, height, width) of an image, resized to `out`.

    Fast pixels shrink by a power of two while they are decoded (JPEG), and by the rest, if it is less than two, with
    bilinear interpolation; exact ones are area means of the full image.
    """
    top, left, height, width = box
    shrink = 1
    if fast:
        within = min(height // out.shape[0], width // out.shape[1])
        shrink = next((by for by in _SHRINKS if by <= within), 1)
    image = decode(data, found, fast=fast, shrink=shrink)
    if image.shape[:2] != (found.height, found.width):  # shrunk, so the box is as well: to the nearest whole pixel
        bottom, right = round((top + height) / shrink), round((left + width) / shrink)
        top, left = round(top / shrink), round(left / shrink)
        height, width = bottom - top, right - left
    _resize(image[top : top + height, left : left + width], out, fast)


def _resize(image: U8, out: U8, fast: bool) -> None:
    if image.shape == out.shape:
        out[:] = image
        return
    (height, width), (tall, wide) = image.shape[:2], out.shape[:2]
    means = (height >= 2 * tall or width >= 2 * wide) if fast else (height > tall and width > wide)
    cv2.resize(image, (wide, tall), dst=out, interpolation=cv2.INTER_AREA if means else cv2.INTER_LINEAR)


def _shift(out: U8, by: I64, pad: int) -> None:
    """Move each sample of `out` [n, S, S, 3] within a border of `pad` mirrored pixels; `by` [n, 2] is in [0, 2 pad]."""
    n, size = out.shape[:2]
    if n == 0:
        return
    period = max(2 * (size - 1), 1)
    rows = (by[:, :1] - pad + np.arange(size)) % period
    tall = out[np.arange(n)[:, None], np.minimum(rows, period - rows) if size > 1 else rows]
    # Stacked, the samples are one image, and so get their left and right borders in one call.
    wide = cv2.copyMakeBorder(tall.reshape(n * size, size, 3), 0, 0, pad, pad, cv2.BORDER_REFLECT_101)
    line = wide.shape[1] * 3
    windows = as_strided(wide, (n, 2 * pad + 1, size, size * 3), (size * line, 3, line, 1))
    out.reshape(n, size, size * 3)[:] = windows[np.arange(n), by[:, 1]]


def _mirror(out: U8, flip: npt.NDArray[np.bool_]) -> None:
    """Mirror the chosen samples of `out` [n, S, S, 3]: stacked, they are one image."""
    chosen = np.flatnonzero(flip)
    if len(chosen):
        size = out.shape[1]
        out[chosen] = cv2.flip(out[chosen].reshape(-1, size, 3), 1).reshape(-1, size, size, 3)
