"""K scalars that a balancer learns with an optimizer of its own: they are no parameters of the model."""

from typing import Any, final

import torch
from torch import Tensor

_BETA_1, _BETA_2, _EPS = 0.9, 0.999, 1e-8


@final
class Learned:
    """Scalars [K] under Adam (Kingma and Ba 2015, algorithm 1), each with a step count of its own, so that a task
    without labels neither moves nor ages.

    Args:
        start: their first value.
        lr: learning rate.
        decay: of L2 regularisation, added to the gradient.
    """

    def __init__(self, tasks: int, *, start: float, lr: float, decay: float = 0.0) -> None:
        self._lr, self._decay = lr, decay
        self.value = torch.full((tasks,), start, dtype=torch.float64)
        self._mean, self._square, self._steps = (torch.zeros(tasks, dtype=torch.float64) for _ in range(3))

    def at(self, present: Tensor) -> Tensor:
        """The scalars of the present tasks, [P], on the device of `present`."""
        self._to(present.device)
        return self.value[present]

    def step(self, gradient: Tensor, present: Tensor) -> None:
        """One step down the gradient [P] of the present tasks."""
        self._to(gradient.device)
        gradient = gradient + self._decay * self.value[present]
        steps = self._steps[present] + 1
        mean = torch.lerp(gradient, self._mean[present], _BETA_1)
        square = torch.lerp(gradient.square(), self._square[present], _BETA_2)
        unbiased = (square / (1 - _BETA_2**steps)).sqrt()
        moved = self.value[present] - self._lr * mean / (1 - _BETA_1**steps) / (unbiased + _EPS)
        self._steps, self._mean, self._square, self.value = (
            old.index_copy(0, present, new)
            for old, new in (
                (self._steps, steps),
                (self._mean, mean),
                (self._square, square),
                (self.value, moved),
            )
        )

    def _to(self, device: torch.device) -> None:
        self.value, self._mean, self._square, self._steps = (
            tensor.to(device) for tensor in (self.value, self._mean, self._square, self._steps)
        )

    def state_dict(self) -> dict[str, Any]:
        """The scalars and Adam's moments, as lists."""
        return {
            "value": self.value.tolist(),
            "mean": self._mean.tolist(),
            "square": self._square.tolist(),
            "steps": self._steps.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.value, self._mean, self._square, self._steps = (
            torch.tensor(state[name], dtype=torch.float64) for name in ("value", "mean", "square", "steps")
        )
