"""Metrics of numbers and angles, from sums of errors."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtl.metrics.ratio import count, ratio

_ROUNDING = 1e-12  # of a difference of sums of squares, relative to them


def angular_sums(predicted: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Sums for `angular`; both arguments in radians, float64 [n]."""
    apart = torch.remainder(predicted - label + torch.pi, 2 * torch.pi) - torch.pi
    return {"absolute": apart.abs().sum(), "within_15": (apart.abs() <= torch.pi / 12).sum(), "n": count(label)}


def angular(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean absolute error on the circle in degrees, and the share of errors within 15 degrees."""
    return {
        "error_degrees": torch.rad2deg(ratio(sums["absolute"], sums["n"])).item(),
        "within_15_degrees": ratio(sums["within_15"], sums["n"]).item(),
    }


def regression_sums(predicted: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Sums for `regression`, over samples: both arguments float64 [n] or [n, D], in the label's own units; NaN labels
    do not count."""
    known = ~label.isnan()
    label = torch.where(known, label, 0.0)
    error = torch.where(known, predicted - label, 0.0)
    return {
        "absolute": error.abs().sum(0),
        "squared": error.square().sum(0),
        "label": label.sum(0),
        "label_squared": label.square().sum(0),
        "n": known.sum(0),
    }


def regression(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean absolute error, root mean squared error, and R2 (0 where the labels do not vary).

    Of vectors: the means of those over the components that have labels.
    """
    labelled = sums["n"].reshape(-1) > 0
    return {name: values[labelled].mean().nan_to_num().item() for name, values in _components(sums).items()}


def regression_each(sums: Mapping[str, Tensor], components: Sequence[str]) -> dict[str, float]:
    """The metrics of each component."""
    return {
        f"{name}[{component}]": value
        for name, values in _components(sums).items()
        for component, value in zip(components, values.tolist(), strict=True)
    }


def _components(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    sums = {name: sums[name].reshape(-1) for name in ("absolute", "squared", "label", "label_squared", "n")}
    n = sums["n"]
    spread = sums["label_squared"] - ratio(sums["label"].square(), n)
    varies = spread > (_ROUNDING * sums["label_squared"]).clamp(min=torch.finfo(torch.float64).tiny)
    return {
        "mae": ratio(sums["absolute"], n),
        "rmse": ratio(sums["squared"], n).sqrt(),
        "r2": torch.where(varies, 1 - ratio(sums["squared"], spread), 0.0),
    }
