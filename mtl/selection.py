"""Which evaluation was the best so far, and whether enough have passed without a better one."""

import math
from collections.abc import Mapping
from typing import Any, final


@final
class Selection:
    """Watches one metric of the validation split. It is told the same on every rank, and so decides alike.

    Args:
        metric: TASK/METRIC; None watches nothing.
        larger: whether larger is better.
        patience: evaluations in a row without a better one after which it is enough; None never is.
        view: what the images are like that it is measured on: values on others are not compared.
    """

    def __init__(self, metric: str | None, *, larger: bool, patience: int | None, view: str = "") -> None:
        self._metric, self._sign, self._patience, self._view = metric, 1.0 if larger else -1.0, patience, view
        self.best: float | None = None
        self.since = 0

    def tell(self, metrics: Mapping[str, Mapping[str, float]]) -> bool:
        """Take in an evaluation; whether it is better than all before. What is not finite never is."""
        if self._metric is None:
            return False
        task, _, name = self._metric.rpartition("/")
        value = metrics[task][name]
        better = math.isfinite(value) and (self.best is None or self._sign * (value - self.best) > 0)
        self.best, self.since = (value, 0) if better else (self.best, self.since + 1)
        return better

    @property
    def enough(self) -> bool:
        """Whether training shall end."""
        return self._patience is not None and self.since >= self._patience

    def state(self) -> dict[str, Any]:
        """For JSON."""
        return {"metric": self._metric, "view": self._view, "best": self.best, "since": self.since}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave; nothing if it watched another metric, or on images of another size."""
        if (state["metric"], state.get("view", self._view)) == (self._metric, self._view):
            self.best, self.since = state["best"], state["since"]
