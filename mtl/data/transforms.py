"""From an encoded image to the square uint8 view that the model sees. Geometry here, on the CPU; colour in `colour`.

Every random number is a function of (seed, epoch, position): the same pixels whichever worker or thread makes them.
"""

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
_COLUMNS = _CROP.stop

cv2.setNumThreads(1)  # the loader's threads are the parallelism


@dataclass(frozen=True)
class Draws:
    """The random numbers of n samples, each row keyed by its position.

    `flip` bool [n]; `colour` float32 [n, 3]: factors of brightness, contrast and saturation.
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
        numbers = uniforms(key("augment", self._seed, epoch), positions, _COLUMNS)
        augment = self._augment
        spread = np.array([augment.brightness, augment.contrast, augment.saturation])
        return Draws(
            numbers,
            flip=numbers[:, _FLIP] < augment.flip,
            colour=(1 + (2 * numbers[:, _COLOUR] - 1) * spread).astype(np.float32),
        )

    def render(self, data: memoryview, out: U8, draws: Draws, at: int) -> None:
        """Decode `data` into `out` [size, size, 3] as sample `at` of `draws`; mirror and shift follow in `finish`."""
        if self._augment.crop != "resized":
            _whole(data, out)
            return
        image = decode(data)
        top, left, height, width = self._box(image.shape[0], image.shape[1], draws.numbers[at, _CROP])
        _resize(image[top : top + height, left : left + width], out)

    def finish(self, images: U8, draws: Draws) -> None:
        """Mirror, and shift for padded crops: in place, over all of `images` [n, size, size, 3] at once."""
        if self._augment.crop == "padded" and self._augment.crop_pad_px:
            pad, size = self._augment.crop_pad_px, self.size_px
            shift = np.floor(draws.numbers[:, _SHIFT] * (2 * pad + 1)).astype(np.int64) - pad
            rows = _reflect(np.arange(size)[None, :] + shift[:, :1], size)
            columns = _reflect(np.arange(size)[None, :] + shift[:, 1:], size)
            columns[draws.flip] = columns[draws.flip, ::-1]
            images[:] = images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
        elif draws.flip.any():
            images[draws.flip] = images[draws.flip, :, ::-1]

    def _box(self, height: int, width: int, numbers: F64) -> tuple[int, int, int, int]:
        """A random part of the image (Szegedy et al. 2015): the first of ten proposals that fits, else the middle."""
        (low, high), ratio = self._augment.crop_scale, np.log(self._augment.crop_ratio)
        area = height * width * (low + (high - low) * numbers[0::4])
        aspect = np.exp(ratio[0] + (ratio[1] - ratio[0]) * numbers[1::4])
        wide, tall = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        fits = np.flatnonzero((wide >= 1) & (wide <= width) & (tall >= 1) & (tall <= height))
        if not len(fits):
            side = min(height, width)
            return (height - side) // 2, (width - side) // 2, side, side
        first = fits[0]
        w, h = int(wide[first]), int(tall[first])
        top = int(numbers[2::4][first] * (height - h + 1))
        left = int(numbers[3::4][first] * (width - w + 1))
        return top, left, h, w


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

    def finish(self, images: U8, draws: Draws) -> None:
        """Nothing follows."""


View = TrainView | EvalView


def _whole(data: memoryview, out: U8) -> None:
    if not decode_into(data, out):
        _resize(decode(data), out)


def _resize(image: U8, out: U8) -> None:
    if image.shape == out.shape:
        out[:] = image
        return
    shrinks = image.shape[0] > out.shape[0] and image.shape[1] > out.shape[1]
    cv2.resize(image, out.shape[1::-1], dst=out, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _reflect(index: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    index = np.abs(index)
    return np.where(index >= size, 2 * (size - 1) - index, index)
