"""Metrics as sums that are reduced once: exact for any split of a data set over batches and workers."""

from collections.abc import Mapping

import torch
from torch import Tensor

_ROUNDING = 1e-12  # of a difference of sums of squares, relative to them


def confusion(label: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts [classes, classes] int64: rows are labels, columns predictions. Both arguments int64 [n]."""
    return torch.bincount(label * classes + predicted, minlength=classes * classes).view(classes, classes)


def multiclass(counts: Tensor) -> dict[str, float]:
    """Accuracy, and macro precision, recall and F1 over the classes that occur as a label or as a prediction.

    Zero divided by zero counts as zero, as in scikit-learn and torchmetrics.
    """
    counts = counts.double()
    hit, labelled, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    occurs = (labelled + predicted) > 0
    return {
        "accuracy": _ratio(hit.sum(), counts.sum()).item(),
        "precision": _ratio(hit, predicted)[occurs].mean().nan_to_num().item(),
        "recall": _ratio(hit, labelled)[occurs].mean().nan_to_num().item(),
        "f1": _ratio(2 * hit, labelled + predicted)[occurs].mean().nan_to_num().item(),
    }


def binary(counts: Tensor) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 of the answer yes; `counts` [2, 2]."""
    (tn, fp), (fn, tp) = counts.double()
    return {
        "accuracy": _ratio(tp + tn, counts.sum().double()).item(),
        "precision": _ratio(tp, tp + fp).item(),
        "recall": _ratio(tp, tp + fn).item(),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn).item(),
    }


def angular_sums(predicted: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Sums for `angular`; both arguments in radians, float64 [n]."""
    apart = torch.remainder(predicted - label + torch.pi, 2 * torch.pi) - torch.pi
    return {"absolute": apart.abs().sum(), "within_15": (apart.abs() <= torch.pi / 12).sum(), "n": _count(label)}


def angular(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean absolute error on the circle in degrees, and the share of errors within 15 degrees."""
    return {
        "error_degrees": torch.rad2deg(_ratio(sums["absolute"], sums["n"])).item(),
        "within_15_degrees": _ratio(sums["within_15"], sums["n"]).item(),
    }


def regression_sums(predicted: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Sums for `regression`; both arguments float64 [n], in the label's own units."""
    error = predicted - label
    return {
        "absolute": error.abs().sum(),
        "squared": error.square().sum(),
        "label": label.sum(),
        "label_squared": label.square().sum(),
        "n": _count(label),
    }


def regression(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean absolute error, root mean squared error, and R2 (0 where the labels do not vary)."""
    n = sums["n"]
    spread = sums["label_squared"] - _ratio(sums["label"].square(), n)
    varies = bool(spread > (_ROUNDING * sums["label_squared"]).clamp(min=torch.finfo(torch.float64).tiny))
    return {
        "mae": _ratio(sums["absolute"], n).item(),
        "rmse": _ratio(sums["squared"], n).sqrt().item(),
        "r2": (1 - _ratio(sums["squared"], spread)).item() if varies else 0.0,
    }


def delta_m(metrics: Mapping[str, float], single: Mapping[str, float], larger_is_better: Mapping[str, bool]) -> float:
    """Mean relative gain of a multi-task model over single-task models (Maninis et al. 2019, equation 4).

    Args:
        metrics: one metric for each task.
        single: the same metric of a model trained on that task alone; not zero.
        larger_is_better: of each task's metric; where it is not, a fall counts as a gain.

    Returns:
        A fraction: 0.02 is two percent better than the single-task models on average, -0.02 two percent worse.
    """
    gains = [
        (value - single[task]) / abs(single[task]) * (1 if larger_is_better[task] else -1)
        for task, value in metrics.items()
    ]
    return sum(gains) / len(gains)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator.double() / denominator.double(), 0.0)


def _count(label: Tensor) -> Tensor:
    return torch.tensor(label.numel(), dtype=torch.int64, device=label.device)
