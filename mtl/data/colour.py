"""The last part of the input, on the device: colour augmentation and standardisation of a uint8 batch."""

from typing import final

import torch
from torch import Tensor

from mtl.config import Augment
from mtl.data.manifest import Statistics

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@final
class Standardise:
    """uint8 [n, H, W, 3] to `dtype` [n, 3, H, W] in channels-last memory, with the data set's statistics.

    Args:
        statistics: per-channel mean and standard deviation of the training images.
        augment: which colour changes are switched on; None for evaluation.
    """

    def __init__(
        self, statistics: Statistics, augment: Augment | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._dtype = dtype
        # A channel that is constant in all images has no deviation; one step of uint8 stands for it.
        self._scale = (torch.tensor(statistics.std, device=device, dtype=dtype) * 255).clamp(min=1).view(1, 3, 1, 1)
        self._shift = (torch.tensor(statistics.mean, device=device, dtype=dtype) * 255).view(1, 3, 1, 1)
        self._luma = torch.tensor(_LUMA, device=device, dtype=dtype).view(1, 3, 1, 1)
        self._brightness = augment is not None and augment.brightness > 0
        self._contrast = augment is not None and augment.contrast > 0
        self._saturation = augment is not None and augment.saturation > 0

    def __call__(self, images: Tensor, colour: Tensor) -> Tensor:
        """`colour` [n, 3] holds the factors of brightness, contrast and saturation; results are clamped to [0, 1]."""
        x = images.permute(0, 3, 1, 2).to(self._dtype)
        brightness, contrast, saturation = colour.to(self._dtype).view(-1, 3, 1, 1, 1).unbind(1)
        if self._brightness:
            x = (x * brightness).clamp_(0, 255)
        if self._contrast:
            middle = self._grey(x).mean((1, 2, 3), keepdim=True)
            x = (middle + (x - middle) * contrast).clamp_(0, 255)
        if self._saturation:
            grey = self._grey(x)
            x = (grey + (x - grey) * saturation).clamp_(0, 255)
        return ((x - self._shift) / self._scale).contiguous(memory_format=torch.channels_last)

    def _grey(self, x: Tensor) -> Tensor:
        return (x * self._luma).sum(1, keepdim=True)
