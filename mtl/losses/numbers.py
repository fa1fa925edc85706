"""Losses of numbers: of each output against a label of the same shape, both in the output's units."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.losses.base import Criterion


def l2() -> Criterion:
    """Squared error."""
    return Criterion(lambda output, label: (output - label).square())


def l1() -> Criterion:
    """Absolute error."""
    return Criterion(lambda output, label: (output - label).abs())


def huber(delta: float) -> Criterion:
    """Half the squared error up to `delta`, linear beyond (Huber 1964)."""
    return Criterion(lambda output, label: F.huber_loss(output, label, reduction="none", delta=delta))


def pointer() -> Criterion:
    """Half the squared distance of the output [n, 2] to the point (sin, cos) of an angle [n]."""

    def each(output: Tensor, label: Tensor) -> Tensor:
        label = label.to(output.dtype)
        return 0.5 * (output - torch.stack([label.sin(), label.cos()], 1)).square().sum(1)

    return Criterion(each)
