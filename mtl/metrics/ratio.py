"""Division that knows of empty data."""

import torch
from torch import Tensor


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """float64; 0 where nothing was counted."""
    return torch.where(denominator > 0, numerator.double() / denominator.double(), 0.0)


def count(label: Tensor) -> Tensor:
    """The number of labels, int64."""
    return torch.tensor(label.numel(), dtype=torch.int64, device=label.device)
