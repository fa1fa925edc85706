"""Strong augmentation, on the device: random erasing, mixup and CutMix.

Everything random is a function of (seed, epoch, position), or of (seed, step, lane). Samples are mixed within their
lane, and a lane belongs to one rank, so a global batch is mixed alike whatever the number of workers. All samples of a
lane are mixed by one share and along one permutation: over the lane each label counts as much as unmixed, so means
over the counts of labels stay exact.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtl.config import Augment
from mtl.data.keyed import key, uniforms

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

_AREA, _ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # of an erased rectangle: Zhong et al. 2017, section 4.1
_PROPOSALS = 16  # of a Beta variate; of alpha 1, the worst, half are accepted


@dataclass(frozen=True)
class Blend:
    """How the n samples of a batch are mixed: sample i with sample `partner[i]`.

    `share` float64 [n] is what is left of i itself, of its labels too. `box` int64 [n, 4] (top, left, bottom, right) is
    where the partner replaces it (CutMix); empty where all pixels are averaged (mixup).
    """

    partner: I64
    share: F64
    box: I64


@final
class Strong:
    """What of it is switched on.

    Args:
        augment: `erase`, `mixup` and `cutmix`.
        lanes: of the order.
    """

    def __init__(self, augment: Augment, seed: int, lanes: int) -> None:
        self._seed, self._lanes, self._size_px = seed, lanes, augment.size_px
        self._erase, self._mixup, self._cutmix = augment.erase, augment.mixup, augment.cutmix

    def boxes(self, epoch: int, positions: I64) -> I64 | None:
        """Rectangles to erase: top, left, bottom, right, [n, 4], empty where there is none; None if that is off.

        Args:
            positions: [n], of samples in `epoch`.
        """
        if not self._erase:
            return None
        drawn, area, aspect, down, right = uniforms(key("erase", self._seed, epoch), positions, 5).T
        pixels = (_AREA[0] + (_AREA[1] - _AREA[0]) * area) * self._size_px**2
        stretch = _ASPECT[0] * (_ASPECT[1] / _ASPECT[0]) ** aspect
        sides = np.rint(np.sqrt(np.stack([pixels / stretch, pixels * stretch], 1))).astype(np.int64)
        sides = np.minimum(sides, self._size_px) * (drawn < self._erase)[:, None]
        corner = np.floor(np.stack([down, right], 1) * (self._size_px - sides + 1)).astype(np.int64)
        return np.concatenate([corner, corner + sides], 1)

    def blend(self, step: int, positions: I64) -> Blend | None:
        """How samples at `positions` [n], the whole of their lanes in `step`, are mixed; None if that is off.

        Where both are switched on, each takes every other lane and step, by chance.
        """
        if not (self._mixup or self._cutmix):
            return None
        lanes, place = np.unique(positions % self._lanes, return_inverse=True)
        draws = uniforms(key("blend", self._seed, step), lanes, 4 + 2 * _PROPOSALS)
        which, shift, down, right = draws[:, :4].T
        cuts = which * (bool(self._mixup) + bool(self._cutmix)) >= bool(self._mixup)
        share = np.where(cuts, *(beta(draws[:, 4:], alpha or 1.0) for alpha in (self._cutmix, self._mixup)))
        side = np.where(cuts, np.rint(self._size_px * np.sqrt(1 - share)), 0).astype(np.int64)
        corner = np.floor(np.stack([down, right], 1) * (self._size_px - side + 1)[:, None]).astype(np.int64)
        share = np.where(cuts, 1 - (side / self._size_px) ** 2, share)
        partner = np.arange(len(positions))
        for lane in range(len(lanes)):
            rows = np.flatnonzero(place == lane)
            if len(rows) > 1:
                partner[rows] = np.roll(rows, 1 + int(shift[lane] * (len(rows) - 1)))
        box = np.concatenate([corner, corner + side[:, None]], 1)
        return Blend(partner, share[place], box[place])


def beta(numbers: F64, alpha: float) -> F64:
    """Variates of Beta(alpha, alpha), alpha at most 1, from uniform `numbers` [n, 2 k]: [n] (Johnk 1964).

    The first of the k proposals that is accepted counts; without one, 1: nothing is mixed.
    """
    # In logarithms: with a small alpha both powers may underflow.
    x, y = np.log(np.maximum(numbers, 2.0**-54).reshape(len(numbers), -1, 2)).transpose(2, 0, 1) / alpha
    top = np.maximum(x, y)
    accepted = np.exp(x) + np.exp(y) <= 1
    first = (np.arange(len(numbers)), accepted.argmax(1))
    ratio = np.exp(x - top) / (np.exp(x - top) + np.exp(y - top))
    return np.where(accepted[first], ratio[first], 1.0)


def outside(boxes: I64, size_px: int, like: Tensor) -> Tensor:
    """1 outside of boxes [n, 4] and 0 within: [n, 1, size, size], of the dtype and device of `like`."""
    at = torch.arange(size_px, device=like.device)
    top, left, bottom, right = torch.from_numpy(boxes).to(like.device).T[:, :, None]
    rows, columns = (at >= top) & (at < bottom), (at >= left) & (at < right)
    return (~(rows[:, :, None] & columns[:, None, :]))[:, None].to(like.dtype)
