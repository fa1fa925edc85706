"""Metrics of an order by score, of one class: no sums give them, they are exact only from every score at once."""

import torch
from torch import Tensor

_NOT_DEFINED = float("nan")


def auroc(score: Tensor, positive: Tensor) -> float:
    """Chance that a positive scores above a negative, ties counting half. Arguments [n]; NaN without both."""
    hits, misses = _steps(score, positive)
    positives, negatives = hits.sum(), misses.sum()
    if not positives or not negatives:
        return _NOT_DEFINED
    above = hits.cumsum(0) - hits
    return ((misses * (above + hits / 2)).sum() / (positives * negatives)).item()


def average_precision(score: Tensor, positive: Tensor) -> float:
    """Precision at each distinct score, weighted by the recall that it adds. Arguments [n]; NaN without positives."""
    hits, misses = _steps(score, positive)
    positives = hits.sum()
    if not positives:
        return _NOT_DEFINED
    taken = hits.cumsum(0)
    return ((taken / (taken + misses.cumsum(0)) * hits).sum() / positives).item()


def _steps(score: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """How many positives and negatives have each distinct score, from the highest down: float64."""
    values, at = torch.unique(score, return_inverse=True)
    yes = torch.bincount(at, positive.double(), len(values)).double()
    return yes.flip(0), (torch.bincount(at, minlength=len(values)) - yes).flip(0)
