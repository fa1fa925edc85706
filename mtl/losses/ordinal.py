"""Losses of one of K ordered classes. Outputs [n, K - 1] are logits of "above class k", made to fall with k.

The first number of a head is the first logit; each later one lies below the one before it by the softplus of its
number. Probabilities of classes are therefore never negative, whatever the head says: the consistency that CORAL (Cao,
Mirjalili and Raschka 2020, theorem 1) gets from sharing one weight vector. Unlike there, and unlike in McCullagh's
proportional odds (1980), distances between thresholds may depend on the image.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl.losses.base import Criterion


def above(output: Tensor) -> Tensor:
    """Logits of "above class k" for k = 0 .. K - 2, falling along the row: [n, K - 1]."""
    return output[:, :1] - F.pad(F.softplus(output[:, 1:]), (1, 0)).cumsum(1)


def cumulative() -> Criterion:
    """-log of the probability of the true class: of "above k - 1" less "above k" (McCullagh 1980, section 2)."""

    def each(output: Tensor, label: Tensor) -> Tensor:
        logits = above(output)
        # log(s(a) - s(b)) = log s(a) + log s(-b) + log(1 - e^(b - a)) for a > b; the ends have only one of them.
        low = F.pad(F.logsigmoid(logits), (1, 0)).gather(1, label[:, None])[:, 0]
        high = F.pad(F.logsigmoid(-logits), (0, 1)).gather(1, label[:, None])[:, 0]
        gap = F.softplus(output[:, 1:]).clamp(min=torch.finfo(output.dtype).tiny)
        between = F.pad(torch.log(-torch.expm1(-gap)), (1, 1)).gather(1, label[:, None])[:, 0]
        return -(low + high + between)

    return Criterion(each)


def coral() -> Criterion:
    """Sum over k of the binary cross-entropy of "above class k" (Cao, Mirjalili and Raschka 2020, equation 4)."""

    def each(output: Tensor, label: Tensor) -> Tensor:
        logits = above(output)
        truth = (label[:, None] > torch.arange(logits.shape[1], device=label.device)).to(output.dtype)
        return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(1)

    return Criterion(each)
