"""Losses of classes that form a tree (Bertinetto et al. 2020): a mistake costs less the closer it is.

The tree enters as the height of the lowest common ancestor of each pair of classes, int64 [C, C]; see mtl/tree.py.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtl.losses.base import Constant, Criterion


def hierarchical(heights: npt.NDArray[np.int64], alpha: float) -> Criterion:
    """Hierarchical cross-entropy (section 3.1, equations 3 and 4).

    The sum over nodes on the way from the class to the root of -e^(-alpha height) log p(node | its parent), where a
    node's probability is the sum over its classes. alpha = 0 is cross-entropy.
    """
    coefficient = Constant(_coefficients(heights, alpha))
    height = Constant(torch.from_numpy(heights))

    def each(output: Tensor, label: Tensor) -> Tensor:
        sure = output.log_softmax(1)
        factor, apart = coefficient.on(output.device, output.dtype)[label], height.on(output.device)[label]
        loss = factor[:, 0] * sure.gather(1, label[:, None])[:, 0]
        for level in range(1, factor.shape[1]):
            loss = loss + factor[:, level] * sure.masked_fill(apart > level, -torch.inf).logsumexp(1)
        return -loss

    return Criterion(each)


def _coefficients(heights: npt.NDArray[np.int64], alpha: float) -> Tensor:
    """What log p of the ancestor at each height below the root is multiplied by: float64 [C, height of the root].

    Each ancestor is the numerator of its own conditional probability and the denominator of the one below.
    """
    made = np.zeros((len(heights), max(1, int(heights.max()))))
    for row, own in zip(made, heights, strict=True):
        ancestors = np.unique(own)[:-1]  # the last is the root, which is certain
        fade = np.exp(-alpha * ancestors)
        row[ancestors] = np.diff(fade, prepend=0.0)
    return torch.from_numpy(made)


def tree_labels(heights: npt.NDArray[np.int64], beta: float) -> Criterion:
    """Cross-entropy with soft labels, proportional to e^(-beta d) (section 3.2, equation 5).

    d is the height of the lowest common ancestor over that of the tree. A large beta is cross-entropy.
    """
    distance = torch.from_numpy(heights).double() / max(1, int(heights.max()))
    target = Constant((-beta * distance).softmax(1))

    def each(output: Tensor, label: Tensor) -> Tensor:
        return -(target.on(output.device, output.dtype)[label] * output.log_softmax(1)).sum(1)

    return Criterion(each)
