"""The runtime of one Ray Train worker."""

import os
import platform
import time
from typing import Any, final

import ray.train
import torch
from torch import Tensor, nn

from mtl.on_ray.channel import Channel, StopWatch
from mtl.on_ray.heart import Heart
from mtl.on_ray.preemption import Preemption, announced
from mtl.on_ray.pulse import Pulse
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
        self.lost = channel.loss() if self.rank == 0 else None
        self._signs = self._steps = self._forwards = 0
        self._forward_s = self._forward_began_s = 0.0
        self._pid, self._node = os.getpid(), ray.get_runtime_context().get_node_id()
        self._heart = Heart(channel, self._pulse)
        self._preemption = Preemption(announced, lambda text: self.emit({"kind": "note", "text": text}))

    def control(self, values: Tensor) -> Pending:
        """Begin a sum over all ranks."""
        self._signs += 1
        self._steps += 1
        return self._group.control(values)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks."""
        self._signs += 1
        return self._group.sum(values)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model with averaged gradients. Its forward passes, also those of evaluations, are signs of life."""
        model.register_forward_pre_hook(self._before_forward)
        model.register_forward_hook(self._after_forward)
        return self._group.parallel(model)

    def stop_requested(self) -> bool:
        """Whether the driver was told to stop; rank 0 asks for all."""
        return self.rank == 0 and self._stopping()

    def commit_requested(self) -> bool:
        """Whether a node that this group needs is about to go."""
        return self._preemption()

    def emit(self, event: dict[str, Any]) -> None:
        """Send the event to the driver, from rank 0."""
        self._signs += 1
        if event["kind"] == "commit":
            self._preemption.took(event["seconds"])
        if self.rank == 0:
            self._channel.put(event)

    def report(self, metrics: dict[str, float]) -> None:
        """Metrics only: Ray never sees a checkpoint."""
        self._signs += 1
        ray.train.report(metrics)

    def close(self) -> None:
        """Give no more signs of life."""
        self._heart.close()

    def _before_forward(self, *_: object) -> None:
        self._signs += 1
        self._forward_began_s = time.perf_counter()

    def _after_forward(self, *_: object) -> None:
        self._forwards += 1
        self._forward_s += time.perf_counter() - self._forward_began_s

    def _pulse(self) -> Pulse:
        return Pulse(
            rank=self.rank,
            pid=self._pid,
            node=self._node,
            host=platform.node(),
            signs=self._signs,
            steps=self._steps,
            forwards=self._forwards,
            forward_s=self._forward_s,
        )
