"""Losses of a yes or no: of each logit against a label of the same shape, 0 or 1."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.losses.base import Constant, Criterion
from mtl.losses.classes import power


def balanced(yes: Sequence[int], known: Sequence[int]) -> list[float]:
    """Weights of a yes that make yes and no count the same: rows that say no / rows that say yes; 1 without a yes."""
    return [(total - count) / count if count else 1.0 for count, total in zip(yes, known, strict=True)]


def bce(pos_weight: Sequence[float] | None) -> Criterion:
    """Binary cross-entropy; a yes counts `pos_weight` times. As in torch, the mean is over entries, not weights."""
    constant = None if pos_weight is None else Constant(torch.tensor(pos_weight, dtype=torch.float64))

    def each(output: Tensor, label: Tensor) -> Tensor:
        weight = None if constant is None else constant.on(output.device, output.dtype)
        return F.binary_cross_entropy_with_logits(output, label.to(output.dtype), reduction="none", pos_weight=weight)

    return Criterion(each)


def focal(gamma: float, alpha: float | None) -> Criterion:
    """-a (1 - p)^gamma log p, p being the probability of the true answer (Lin et al. 2017, equation 5).

    a is `alpha` for a yes and 1 - alpha for a no; 1 where alpha is None.
    """

    def each(output: Tensor, label: Tensor) -> Tensor:
        yes = label.to(output.dtype)
        sure = F.logsigmoid(output * (2 * yes - 1))
        loss = -power(-torch.expm1(sure), gamma) * sure
        return loss if alpha is None else loss * (alpha * yes + (1 - alpha) * (1 - yes))

    return Criterion(each)


def asymmetric(positive: float, negative: float, margin: float) -> Criterion:
    """Asymmetric loss (Ridnik et al. 2021, equations 4 to 7).

    A yes costs -(1 - p)^positive log p, a no -q^negative log(1 - q) with q = max(p - margin, 0). The gradient goes
    through the focusing factors too, as in the paper's formula.
    """

    def each(output: Tensor, label: Tensor) -> Tensor:
        yes = -power(torch.sigmoid(-output), positive) * F.logsigmoid(output)
        shifted = (torch.sigmoid(output) - margin).clamp(min=0)
        # With a margin log(1 - q) is finite for every p; without one it is taken from the logit, for the same reason.
        no = -power(shifted, negative) * (torch.log1p(-shifted) if margin else F.logsigmoid(-output))
        return torch.where(label > 0, yes, no)

    return Criterion(each)
