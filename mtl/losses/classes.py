"""Losses of one class out of C, and of a distribution over classes. Outputs [n, C] are logits."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.losses.base import Constant, Criterion


def balanced(counts: Sequence[int]) -> list[float]:
    """Weights that make every class count the same: rows / (classes * rows of the class); 1 for a class without any."""
    rows = sum(counts)
    return [rows / (len(counts) * count) if count else 1.0 for count in counts]


def cross_entropy(weights: Sequence[float] | None, smoothing: float) -> Criterion:
    """Cross-entropy with `label_smoothing` (Szegedy et al. 2016, section 7), exactly as torch weighs and smooths it."""
    if weights is None:
        return Criterion(
            lambda output, label: F.cross_entropy(output, label, reduction="none", label_smoothing=smoothing)
        )
    constant = Constant(torch.tensor(weights, dtype=torch.float64))

    def each(output: Tensor, label: Tensor) -> Tensor:
        weight = constant.on(output.device, output.dtype)
        return F.cross_entropy(output, label, weight, reduction="none", label_smoothing=smoothing)

    return Criterion(each, lambda label: constant.on(label.device)[label])


def focal(weights: Sequence[float] | None, gamma: float) -> Criterion:
    """-(1 - p)^gamma log p, p being the probability of the true class (Lin et al. 2017, equation 4)."""
    constant = None if weights is None else Constant(torch.tensor(weights, dtype=torch.float64))

    def each(output: Tensor, label: Tensor) -> Tensor:
        sure = output.log_softmax(1).gather(1, label[:, None])[:, 0]
        # -expm1 is 1 - p without the rounding that makes it 0 and the gradient of a power of it infinite.
        loss = -power(-torch.expm1(sure), gamma) * sure
        return loss if constant is None else loss * constant.on(output.device, output.dtype)[label]

    return Criterion(each, None if constant is None else lambda label: constant.on(label.device)[label])


def power(base: Tensor, exponent: float) -> Tensor:
    """base^exponent for a base in [0, 1], with a finite gradient at 0 too, where an exponent below 1 has none."""
    return base.clamp(min=torch.finfo(base.dtype).tiny) ** exponent if exponent else torch.ones_like(base)


def kl() -> Criterion:
    """Kullback-Leibler divergence from the label's class probabilities [n, C] to the predicted ones (Hinton 2015)."""

    def each(output: Tensor, label: Tensor) -> Tensor:
        return F.kl_div(output.log_softmax(1), label.to(output.dtype), reduction="none").sum(1)

    return Criterion(each, whole=True)
