"""A tree of classes: how high the lowest common ancestor of any two of them stands."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Path: TypeAlias = tuple[str, ...]


def ancestor_heights(paths: Sequence[Path]) -> npt.NDArray[np.int64]:
    """Height of the lowest common ancestor of each pair of classes, int64 [C, C]; 0 on the diagonal.

    A class is a leaf, of height 0; another node is one higher than its highest child. Nodes with a single child are
    no levels of their own: they are merged with it.

    Args:
        paths: of each class the nodes above it, from the broadest down. A class with no path hangs from the root.
    """
    heights = np.zeros((len(paths), len(paths)), np.int64)
    _fill(heights, paths, list(range(len(paths))), 0)
    return heights


def _fill(heights: npt.NDArray[np.int64], paths: Sequence[Path], members: list[int], depth: int) -> int:
    """Fill in the node that `members` share down to `depth`; returns its height."""
    if len(members) == 1:
        return 0
    children: defaultdict[str, list[int]] = defaultdict(list)
    leaves: list[list[int]] = []
    for member in members:
        if len(paths[member]) > depth:
            children[paths[member][depth]].append(member)
        else:
            leaves.append([member])
    groups = [*children.values(), *leaves]
    if len(groups) == 1:
        return _fill(heights, paths, members, depth + 1)
    # The whole block is that of this node, less the blocks of its children.
    below = [_fill(heights, paths, group, depth + 1) for group in groups]
    height = 1 + max(below)
    owner = np.empty(len(paths), np.int64)
    for number, group in enumerate(groups):
        owner[group] = number
    apart = owner[members][:, None] != owner[members][None, :]
    rows, columns = np.nonzero(apart)
    at = np.array(members)
    heights[at[rows], at[columns]] = height
    return height
