"""The seam between the training step and the balancing methods."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class TaskStats:
    """What a step knows of its K tasks before its backward; identical on every rank.

    counts float64 [K]: valid labels of the global batch. step: number of the step.
    """

    counts: Tensor
    step: int


class Balancer(Protocol):
    """A method of weighting K losses. All of its state is in `state_dict`, as plain JSON values."""

    def weights(self, stats: TaskStats) -> Tensor:
        """One weight for each task, float32 [K]. Proposes; changes nothing."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        ...
