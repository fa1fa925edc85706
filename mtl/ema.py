"""An exponential moving average of a model's weights, over samples rather than steps."""

import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn

from mtl.checkpoint import refuse_differences


@final
class Ema:
    """The average of a model's parameters and floating-point buffers, beside the model.

    After b more samples the old average counts exp(-b / horizon), so the average spans the same samples whatever the
    batch. While fewer than a horizon have been seen it is their plain mean, and initial weights do not linger in it.
    Buffers of running statistics are exponential averages themselves, so averaging them is sound; counters are copied.

    Attributes:
        buffers: the averages of floating-point buffers, which are each rank's own.

    Args:
        model: whose weights are averaged; it must not gain, lose or replace any.
        horizon_samples: the span of the average.
    """

    def __init__(self, model: nn.Module, horizon_samples: float) -> None:
        if horizon_samples <= 0:
            raise ValueError(f"horizon_samples must be above zero, got {horizon_samples}")
        self._horizon, self.samples = horizon_samples, 0
        self._live: dict[str, Tensor] = model.state_dict()
        self._average = {name: tensor.clone() for name, tensor in self._live.items()}
        own = dict(model.named_buffers())
        self.buffers = [mean for name, mean in self._average.items() if name in own and mean.is_floating_point()]

    @torch.no_grad()
    def update(self, samples: int) -> None:
        """Take in the model as it is after a step on `samples`, over all ranks. Not for skipped steps."""
        self.samples += samples
        share = max(-math.expm1(-samples / self._horizon), samples / self.samples)
        pairs = [(self._average[name], tensor) for name, tensor in self._live.items()]
        floating = [(mean, now) for mean, now in pairs if mean.is_floating_point()]
        lerp = torch._foreach_lerp_  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        lerp([mean for mean, _ in floating], [now for _, now in floating], share)
        for mean, now in pairs:
            if not mean.is_floating_point():
                mean.copy_(now)

    @contextmanager
    def applied(self) -> Generator[None]:
        """Within, the model holds the average; afterwards, to the bit, what it held before.

        What is done to the weights within is done to the average: averaging buffers over ranks, for one.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The average by name, not copied, under the names of the model's state_dict; and the rest, for JSON."""
        return self._average, {"samples": self.samples}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], rest: Mapping[str, int]) -> None:
        """Take back what `state` gave.

        Raises:
            CheckpointError: names or shapes differ. The average is unchanged.
        """
        own = self._average
        shapes = [name for name in own if name in tensors and tensors[name].shape != own[name].shape]
        refuse_differences(
            "The checkpoint's average belongs to another model.",
            {
                "missing": [name for name in own if name not in tensors],
                "unexpected": [name for name in tensors if name not in own],
                "other shapes": shapes,
            },
        )
        for name, mean in own.items():
            mean.copy_(tensors[name])
        self.samples = rest["samples"]

    @torch.no_grad()
    def _swap(self) -> None:
        for name, tensor in self._live.items():
            held = tensor.clone()
            tensor.copy_(self._average[name])
            self._average[name].copy_(held)
