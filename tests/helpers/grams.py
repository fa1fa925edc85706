"""Families of Gram matrices, and the statistics of a step made of them."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from mtl.balancing.base import TaskStats

FAMILIES = ("plain", "scales", "dependent", "aligned", "opposed", "zero", "twins", "stationary")


def jacobian(family: str, tasks: int, seed: int, width: int = 12) -> Tensor:
    """Gradients of K tasks, float64 [K, width]."""
    draws = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64)

    rows = normal(tasks, width)
    match family:
        case "scales":
            rows *= torch.logspace(-2, 2, tasks, dtype=torch.float64)[:, None]
        case "dependent":
            rows = normal(tasks, max(1, tasks // 2)) @ normal(max(1, tasks // 2), width)
        case "aligned":
            rows = rows + 3 * normal(1, width)
        case "opposed":
            rows[0] = -rows[-1]
        case "zero":
            rows[tasks // 2] = 0
        case "twins":
            rows[0] = rows[-1]
        case "stationary":  # a positive combination vanishes
            rows[0] = -(rows[1:] * (0.5 + torch.rand(tasks - 1, 1, generator=draws, dtype=torch.float64))).sum(0)
        case _:
            assert family == "plain", family
    return rows


def families(*names: str) -> st.SearchStrategy[Tensor]:
    """Gradients [K, 12] of 2 to 6 tasks."""
    return st.builds(jacobian, st.sampled_from(names or FAMILIES), st.integers(2, 6), st.integers(0, 10_000))


def stats(
    gram: Tensor | None,
    losses: Tensor | None = None,
    *,
    counts: Tensor | None = None,
    step: int = 0,
    epoch: int = 0,
    tasks: int = 3,
) -> TaskStats:
    """A step's statistics; every task present, and losses of one, unless told otherwise."""
    tasks = len(gram) if gram is not None else len(losses) if losses is not None else tasks
    ones = torch.ones(tasks, dtype=torch.float64)
    return TaskStats(
        counts=ones if counts is None else counts,
        step=step,
        losses=ones if losses is None else losses.double(),
        gram=torch.eye(tasks, dtype=torch.float64) if gram is None else gram,
        kinds=("multiclass",) * tasks,
        epoch=epoch,
    )
