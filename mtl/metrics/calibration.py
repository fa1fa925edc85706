"""Expected calibration error (Guo et al. 2017, equation 3): how far confidence is from accuracy, over 15 bins."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mtl.metrics.ratio import ratio

BINS = 15


def calibration_sums(confidence: Tensor, right: Tensor) -> dict[str, Tensor]:
    """Sums for `calibration_error`, by bin. Arguments [n]: confidence in [0, 1], and whether it was right.

    Bins are open below and closed above, as in the paper; the first also holds 0.
    """
    confidence, right = confidence.double(), right.double()
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=confidence.device)
    at = (torch.bucketize(confidence, edges) - 1).clamp(0, BINS - 1)
    zeros = torch.zeros(BINS, dtype=torch.float64, device=confidence.device)
    return {
        "ece_confidence": zeros.index_add(0, at, confidence),
        "ece_right": zeros.index_add(0, at, right),
        "ece_n": torch.bincount(at, minlength=BINS),
    }


def calibration_error(sums: Mapping[str, Tensor]) -> float:
    """Mean over samples of |accuracy - confidence| of their bin."""
    return ratio((sums["ece_right"] - sums["ece_confidence"]).abs().sum(), sums["ece_n"].sum()).item()
