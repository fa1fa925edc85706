"""The runtime of one Ray Train worker."""

import os
from typing import Any, final

import ray.train
import torch
from torch import Tensor, nn

from mtl.on_ray.channel import Channel, StopWatch
from mtl.runtime import Group, Pending


@final
class RayRuntime:
    """A rank inside `ray.train`; the process group is Ray's.

    Args:
        device: from `ray.train.torch.get_device()`.
        threads: threads of torch's operators; Ray would leave one to workers with a GPU.
        channel: to the driver.
    """

    def __init__(self, device: torch.device, threads: int, channel: Channel) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device = device
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        self._group = Group(self.rank, self.world_size, device)
        self._channel, self._stopping = channel, StopWatch(channel)

    def control(self, values: Tensor) -> Pending:
        """Begin a sum over all ranks."""
        return self._group.control(values)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks."""
        return self._group.sum(values)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model with averaged gradients."""
        return self._group.parallel(model)

    def stop_requested(self) -> bool:
        """Whether the driver was told to stop; rank 0 asks for all."""
        return self.rank == 0 and self._stopping()

    def emit(self, event: dict[str, Any]) -> None:
        """Send the event to the driver, from rank 0."""
        if self.rank == 0:
            self._channel.put(event)

    def report(self, metrics: dict[str, float]) -> None:
        """Metrics only: Ray never sees a checkpoint."""
        ray.train.report(metrics)
