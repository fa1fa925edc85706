"""A small residual network for small images (32 to 64 px), after the nine-layer net of the DAWNBench CIFAR-10 entries
(D. Page, 2018): three stages that double the width and halve the image, two of them with a residual pair."""

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn


def resnet9(width: int = 32, norm: Literal["batch", "group"] = "batch", stem_stride: int = 1) -> nn.Module:
    """Images [n, 3, H, W] to features [n, 8 * width], by the stages stem, stage1, stage2, stage3 and pool.

    Args:
        width: channels of the stem, a multiple of 8.
        norm: batch norm trains faster; group norm does not depend on the batch.
        stem_stride: 2 for images of 64 px and more.
    """
    if norm not in ("batch", "group"):
        raise ValueError(f"norm must be batch or group, got {norm}")
    if width < 8 or width % 8:
        raise ValueError(f"width must be a multiple of 8, got {width}")

    def layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
        normalise = nn.BatchNorm2d(outputs) if norm == "batch" else nn.GroupNorm(outputs // 8, outputs)
        convolve = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        return nn.Sequential(convolve, normalise, nn.ReLU(inplace=True))

    def pair(channels: int) -> nn.Module:
        return _Residual(nn.Sequential(layer(channels, channels), layer(channels, channels)))

    stages: dict[str, nn.Module] = {
        "stem": layer(3, width, stem_stride),
        "stage1": nn.Sequential(layer(width, 2 * width), nn.MaxPool2d(2), pair(2 * width)),
        "stage2": nn.Sequential(layer(2 * width, 4 * width), nn.MaxPool2d(2)),
        "stage3": nn.Sequential(layer(4 * width, 8 * width), nn.MaxPool2d(2), pair(8 * width)),
        "pool": _GlobalMax(),
    }
    return nn.Sequential(OrderedDict(stages))


class _GlobalMax(nn.Module):
    """Unlike AdaptiveMaxPool2d, its backward is deterministic on GPUs too."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))


class _Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)
