"""Losses as users write them."""

from torch import Tensor


def own(output: Tensor, label: Tensor, power: int) -> Tensor:
    """One loss a sample."""
    return (output[:, 0] - label).abs() ** power


def unfinished(output: Tensor, label: Tensor) -> Tensor:
    """Summed too early."""
    return (output[:, 0] - label).sum()
