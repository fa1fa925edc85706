"""Progressive resizing, on the device: training begins with shrunken images, which grow to their full size.

Small images cost in proportion to their area, and teach the early part of training as much. They grow linearly with
the samples seen, as in the fast.ai entries of DAWNBench (J. Howard, 2018), and stay at full size for the last fifth,
as Composer's progressive resizing does, so that features end on the sizes that evaluation has.
"""

from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.config import Augment

_GROWN = 0.8  # share of the training after which images have their full size


@final
class Growth:
    """The side of training images by step: multiples of 32 px (4 px where images are below 128) above the first.

    Args:
        augment: `size_px`, and `grow_from_px`; None leaves images as they are.
        steps: of the whole training.
    """

    def __init__(self, augment: Augment, steps: int) -> None:
        self._full = augment.size_px
        self._first = self._full if augment.grow_from_px is None else augment.grow_from_px
        self._by = 32 if self._full >= 128 else 4
        self._growing = _GROWN * steps

    def side_px(self, step: int) -> int:
        """At this step, from 0."""
        if step >= self._growing:
            return self._full
        grown = (self._full - self._first) * step / self._growing
        return self._first + int(grown // self._by) * self._by

    def area(self, steps: range) -> float:
        """Pixels of an image over those of a full one, as a mean over these steps."""
        if self._first == self._full or not steps:
            return 1.0
        return sum((self.side_px(step) / self._full) ** 2 for step in steps) / len(steps)


def shrunk(images: Tensor, side_px: int) -> Tensor:
    """[n, 3, H, W] as [n, 3, side, side], bilinear; below half the side each pixel is a mean over all that it covers.

    Down to a half plain interpolation skips no pixel, and on a CPU takes a thirtieth of the time.
    """
    full_px = images.shape[-1]
    if full_px == side_px:
        return images
    small = F.interpolate(images, size=(side_px, side_px), mode="bilinear", antialias=2 * side_px < full_px)
    return small.contiguous(memory_format=torch.channels_last)
