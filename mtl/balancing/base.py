"""The seam between the training step and the balancing methods.

K tasks, of which P are present in a global batch: have a valid label in it. A method works on the P present ones; what
it remembers of the others stays as it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any, Protocol, final

import torch
from torch import Tensor

from mtl.data.keyed import key

_CPU = torch.device("cpu")


class Needs(Flag):
    """What a balancer must be told.

    LOSSES: `weights` looks at the losses of the step it weighs. HISTORY: `update` looks at the losses of the step.
    POST_STEP_LOSSES: `update` looks at the losses of the same batch after the step. GRAM: `weights` looks at the
    inner products of the task gradients.
    """

    NOTHING = 0
    LOSSES = auto()
    HISTORY = auto()
    POST_STEP_LOSSES = auto()
    GRAM = auto()


@dataclass(frozen=True)
class TaskStats:
    """What a step knows of its K tasks; identical on every rank.

    Attributes:
        counts: valid labels of the global batch, float64 [K] on the CPU.
        losses: means over the valid labels of the global batch, float64 [K] on the device; zero where there is none.
        gram: inner products of the gradients of these means, [K, K] on the device, in fp32 or better.
        exact: whether those gradients are the shared parameters' own, rather than a stand-in at the boundary.
        kinds: kinds of the tasks, as the configuration names them.
        step, epoch: both from 0.
        device: where losses and Gram matrix are.
        unbiased: the Gram matrix without what the noise of the batch adds to it, [K, K]; None where nobody measured it.
        own_counts: this rank's part of `counts`. For signals, which reduce what they make of it.
    """

    counts: Tensor
    step: int
    losses: Tensor | None = None
    gram: Tensor | None = None
    exact: bool = False
    kinds: tuple[str, ...] = ()
    epoch: int = 0
    device: torch.device = _CPU
    unbiased: Tensor | None = None
    own_counts: Callable[[], Tensor] | None = None

    def finite(self) -> Tensor:
        """Whether all that is known is finite: a bool on the device."""
        known = [tensor.isfinite().all() for tensor in (self.losses, self.gram) if tensor is not None]
        return torch.stack(known).all() if known else torch.tensor(True)

    def present(self) -> Tensor:
        """Which tasks have a label in this batch: int64 [P], on the device."""
        return (self.counts > 0).nonzero()[:, 0].to(self.device)


class Balancer(Protocol):
    """A method of weighting K losses, made by `Class(tasks, seed, **arguments)`: K, the run's seed, and what the
    configuration says. All of its state is in `state_dict`, as plain JSON values."""

    needs: Needs

    def weights(self, stats: TaskStats) -> Tensor:
        """One weight for each task, float64 [K]; zero for those without a label. Proposes; changes nothing."""
        ...

    def update(self, stats: TaskStats, post_losses: Tensor | None = None) -> None:
        """Learn from a step that was finite. `post_losses` [K]: on the same batch, after it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        ...


def spread(values: Tensor, present: Tensor, tasks: int) -> Tensor:
    """`values` [P] of the present tasks among zeros, [K]."""
    return values.new_zeros(tasks).index_copy(0, present, values)


def generator(seed: int, step: int) -> torch.Generator:
    """Randomness of a balancer at a step: the same on every rank, on every device, and in a resumed run."""
    return torch.Generator().manual_seed(key("balancer", seed, step) >> 1)


class Stateless:
    """For a method without memory."""

    @final
    def update(self, stats: TaskStats, post_losses: Tensor | None = None) -> None:
        """Nothing to learn."""

    @final
    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    @final
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class LossMethod(ABC):
    """A method that weighs the losses of the present tasks by their values.

    With one task, or with a loss that is not finite, every weight is one: plain training, and a step that its caller
    skips.
    """

    needs = Needs.LOSSES

    def __init__(self, tasks: int, seed: int) -> None:
        self.tasks, self.seed = tasks, seed

    @abstractmethod
    def weigh(self, losses: Tensor, stats: TaskStats) -> Tensor:
        """Weights [P] from the finite losses [P] of the present tasks, float64, P >= 2."""

    @final
    def weights(self, stats: TaskStats) -> Tensor:
        """The weights, [K]."""
        assert stats.losses is not None, "LOSSES"
        present = stats.present()
        return spread(_weighed(stats.losses[present].double(), lambda x: self.weigh(x, stats)), present, self.tasks)


class GramMethod(ABC):
    """A method that weighs the gradients of the present tasks by their inner products.

    With one task, or with a product that is not finite, every weight is one: plain training, and a step that its
    caller skips.
    """

    needs = Needs.GRAM

    def __init__(self, tasks: int, seed: int) -> None:
        self.tasks, self.seed = tasks, seed

    @abstractmethod
    def solve(self, gram: Tensor, stats: TaskStats) -> Tensor:
        """Weights [P] from the finite Gram matrix [P, P] of the present tasks, float64, P >= 2."""

    @final
    def weights(self, stats: TaskStats) -> Tensor:
        """The weights, [K]."""
        present = stats.present()
        gram = present_gram(stats)
        return spread(_weighed(gram, lambda x: self.solve(x, stats)), present, self.tasks)


def present_gram(stats: TaskStats) -> Tensor:
    """The Gram matrix of the present tasks, float64 [P, P]."""
    assert stats.gram is not None, "GRAM"
    present = stats.present()
    return stats.gram[present[:, None], present].double()


def _weighed(known: Tensor, method: Callable[[Tensor], Tensor]) -> Tensor:
    """What `method` makes of [P] losses or of a [P, P] Gram matrix; ones where that can not be."""
    ones = known.new_ones(len(known))
    if len(known) < 2:
        return ones
    # Some routines raise on what is not finite. A choice between tensors needs no answer from the device.
    finite = known.isfinite().all()
    found = method(torch.where(finite, known, torch.ones_like(known)))
    return torch.where(finite & found.isfinite().all(), found, ones)
