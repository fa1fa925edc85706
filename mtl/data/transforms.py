"""From an encoded image to the square uint8 view that the model sees. Geometry here, on the CPU; colour in `colour`.

Every random number is a function of (seed, epoch, position): the same pixels whichever worker or thread makes them.
"""

import math
from dataclasses import dataclass
from typing import final

import cv2
import numpy as np
import numpy.typing as npt

from mtl.config import Augment
from mtl.data.image import decode, decode_into
from mtl.data.keyed import key, uniforms

U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]

_ATTEMPTS = 10
_COLOUR, _FLIP, _SHIFT, _CROP = slice(0, 3), 3, slice(4, 6), slice(6, 6 + 4 * _ATTEMPTS)
_COLUMNS = {"none": _FLIP + 1, "padded": _SHIFT.stop, "resized": _CROP.stop}

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

    def draw(self, epoch: int, positions: npt.NDArray[np.int64]) -> Draws:
        """The random numbers for `positions` [n] of `epoch`."""
        augment = self._augment
        numbers = uniforms(key("augment", self._seed, epoch), positions, _COLUMNS[augment.crop])
        spread = np.array([augment.brightness, augment.contrast, augment.saturation])
        return Draws(
            numbers,
            flip=numbers[:, _FLIP] < augment.flip,
            colour=(1 + (2 * numbers[:, _COLOUR] - 1) * spread).astype(np.float32),
        )

    def render(self, data: memoryview, out: U8, draws: Draws, at: int) -> None:
        """Decode `data` into `out` [size, size, 3] as sample `at` of `draws`."""
        augment = self._augment
        if augment.crop == "resized":
            image = decode(data)
            shape = image.shape[0], image.shape[1]
            top, left, height, width = crop_box(shape, draws.numbers[at, _CROP], augment.crop_scale, augment.crop_ratio)
            _resize(image[top : top + height, left : left + width], out)
        else:
            _whole(data, out)
        if augment.crop == "padded":
            pad, size = augment.crop_pad_px, self.size_px
            top, left = (int(number * (2 * pad + 1)) for number in draws.numbers[at, _SHIFT])
            wide = cv2.copyMakeBorder(out, pad, pad, pad, pad, cv2.BORDER_REFLECT_101)
            out[:] = wide[top : top + size, left : left + size]
        if draws.flip[at]:
            cv2.flip(out, 1, dst=out)


@final
class EvalView:
    """The evaluation view: the centre, as resizing the short side and cropping would show it. Nothing is random."""

    def __init__(self, augment: Augment) -> None:
        self.size_px, self._share = augment.size_px, augment.size_px / augment.eval_resize_px

    def draw(self, epoch: int, positions: npt.NDArray[np.int64]) -> Draws:
        """Neutral numbers: no mirror, factors of one."""
        n = len(positions)
        return Draws(np.zeros((n, 0)), np.zeros(n, np.bool_), np.ones((n, 3), np.float32))

    def render(self, data: memoryview, out: U8, draws: Draws, at: int) -> None:
        """Decode `data` into `out` [size, size, 3]."""
        if self._share == 1 and decode_into(data, out):
            return
        image = decode(data)
        height, width = image.shape[:2]
        side = max(1, round(min(height, width) * self._share))
        top, left = (height - side) // 2, (width - side) // 2
        _resize(image[top : top + side, left : left + side], out)


View = TrainView | EvalView


def crop_box(
    shape: tuple[int, int], numbers: F64, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part of an image (Szegedy et al. 2015).

    Args:
        shape: height and width of the image.
        numbers: four in [0, 1) for each proposal; the first proposal that fits counts, else the middle square.
        scale, ratio: ranges of the part's share of the area, and of its width over its height.
    """
    height, width = shape
    for area, aspect, down, right in numbers.reshape(-1, 4).tolist():
        pixels = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        stretch = ratio[0] * (ratio[1] / ratio[0]) ** aspect  # uniform in its logarithm
        w, h = round(math.sqrt(pixels * stretch)), round(math.sqrt(pixels / stretch))
        if 1 <= w <= width and 1 <= h <= height:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def _whole(data: memoryview, out: U8) -> None:
    if not decode_into(data, out):
        _resize(decode(data), out)


def _resize(image: U8, out: U8) -> None:
    if image.shape == out.shape:
        out[:] = image
        return
    shrinks = image.shape[0] > out.shape[0] and image.shape[1] > out.shape[1]
    cv2.resize(image, out.shape[1::-1], dst=out, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
