"""Metrics of classes, from counts: confusion matrices, and yes or no for each class by itself."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtl.metrics.ratio import count, ratio


def confusion(label: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Counts [classes, classes] int64: rows are labels, columns predictions. Both arguments int64 [n]."""
    return torch.bincount(label * classes + predicted, minlength=classes * classes).view(classes, classes)


def multiclass(counts: Tensor) -> dict[str, float]:
    """Accuracy, and macro precision, recall and F1 over the classes that occur as a label or as a prediction.

    Zero divided by zero counts as zero, as in scikit-learn and torchmetrics.
    """
    counts = counts.double()
    hit, labelled, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    return {"accuracy": ratio(hit.sum(), counts.sum()).item(), **_macro(hit, labelled, predicted)}


def multiclass_each(counts: Tensor, classes: Sequence[str]) -> dict[str, float]:
    """Precision, recall and F1 of each class."""
    counts = counts.double()
    return _each(counts.diagonal(), counts.sum(1), counts.sum(0), classes)


def binary(counts: Tensor) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 of the answer yes; `counts` [2, 2]."""
    (tn, fp), (fn, tp) = counts.double()
    return {
        "accuracy": ratio(tp + tn, counts.sum().double()).item(),
        "precision": ratio(tp, tp + fp).item(),
        "recall": ratio(tp, tp + fn).item(),
        "f1": ratio(2 * tp, 2 * tp + fp + fn).item(),
    }


def ordinal(counts: Tensor) -> dict[str, float]:
    """Of ordered classes: mean distance, accuracy, share within one class, and quadratic weighted kappa (Cohen 1968).

    kappa is 0 where chance explains everything: where labels and predictions are one and the same class.
    """
    counts = counts.double()
    at = torch.arange(len(counts), dtype=torch.float64, device=counts.device)
    apart, n = (at[:, None] - at[None, :]).abs(), counts.sum()
    chance = ratio(counts.sum(1)[:, None] * counts.sum(0)[None, :], n)
    wrong, expected = (counts * apart.square()).sum(), (chance * apart.square()).sum()
    return {
        "mae": ratio((counts * apart).sum(), n).item(),
        "accuracy": ratio(counts.diagonal().sum(), n).item(),
        "within_1": ratio((counts * (apart <= 1)).sum(), n).item(),
        "kappa": (1 - ratio(wrong, expected)).item() if expected > 0 else 0.0,
    }


def entry_sums(predicted: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Sums for `multilabel`, of each class: int64 [C]. Arguments [n, C]: bool, and int64 with -1 for unknown."""
    yes, no = label == 1, label == 0
    return {
        "hit": (predicted & yes).sum(0),
        "yes": yes.sum(0),
        "predicted": (predicted & (yes | no)).sum(0),
        "right": ((predicted & yes) | (~predicted & no)).sum(0),
        "known": (yes | no).sum(0),
    }


def multilabel(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Macro precision, recall and F1 over the classes that occur as a label or a prediction; F1 and accuracy of all
    entries taken together."""
    hit, yes, predicted = (sums[name].double() for name in ("hit", "yes", "predicted"))
    return {
        **_macro(hit, yes, predicted),
        "f1_micro": ratio(2 * hit.sum(), yes.sum() + predicted.sum()).item(),
        "accuracy": ratio(sums["right"].sum(), sums["known"].sum()).item(),
    }


def multilabel_each(sums: Mapping[str, Tensor], classes: Sequence[str]) -> dict[str, float]:
    """Precision, recall, F1 and accuracy of each class."""
    accuracy = ratio(sums["right"], sums["known"]).tolist()
    return {
        **_each(sums["hit"].double(), sums["yes"].double(), sums["predicted"].double(), classes),
        **{f"accuracy[{name}]": value for name, value in zip(classes, accuracy, strict=True)},
    }


def top(output: Tensor, label: Tensor, k: int) -> dict[str, Tensor]:
    """Sums for the share of samples whose class is among the `k` highest outputs; of equal ones the first is higher."""
    own = output.gather(1, label[:, None])
    before = torch.arange(output.shape[1], device=label.device)[None, :] < label[:, None]
    rank = ((output > own) | ((output == own) & before)).sum(1)
    return {f"top{k}": (rank < k).sum(), f"top{k}_n": count(label)}


def severity(counts: Tensor, heights: Tensor) -> float:
    """Mean height of the lowest common ancestor of true and predicted class, of mistakes (Bertinetto et al. 2020)."""
    counts = counts.double()
    wrong = counts.sum() - counts.diagonal().sum()
    return ratio((counts * heights.to(counts.device)).sum(), wrong).item()


def _macro(hit: Tensor, labelled: Tensor, predicted: Tensor) -> dict[str, float]:
    occurs = (labelled + predicted) > 0
    return {
        "precision": ratio(hit, predicted)[occurs].mean().nan_to_num().item(),
        "recall": ratio(hit, labelled)[occurs].mean().nan_to_num().item(),
        "f1": ratio(2 * hit, labelled + predicted)[occurs].mean().nan_to_num().item(),
    }


def _each(hit: Tensor, labelled: Tensor, predicted: Tensor, classes: Sequence[str]) -> dict[str, float]:
    values = {
        "precision": ratio(hit, predicted),
        "recall": ratio(hit, labelled),
        "f1": ratio(2 * hit, labelled + predicted),
    }
    return {
        f"{metric}[{name}]": value
        for metric, column in values.items()
        for name, value in zip(classes, column.tolist(), strict=True)
    }
