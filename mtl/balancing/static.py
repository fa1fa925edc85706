"""Fixed weights: the baseline that is hard to beat once they are tuned (Kurin et al. 2022, Xin et al. 2022)."""

from collections.abc import Sequence
from typing import Any, final

import torch

from mtl.balancing.base import TaskStats


@final
class Static:
    """The configured weights, at every step."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = torch.tensor(weights, dtype=torch.float32)

    def weights(self, stats: TaskStats) -> torch.Tensor:
        """The weights, [K]."""
        return self._weights

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the configuration holds the weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
