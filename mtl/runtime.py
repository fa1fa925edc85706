"""Where a training process finds itself: its rank, its peers, and the way to talk to them.

The loop knows only the `Runtime` protocol. `LocalRuntime` serves plain python and torchrun; mtl/on_ray has the other.
"""

import os
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from types import FrameType
from typing import Any, Protocol, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtl.errors import ResourceError


class Pending(Protocol):
    """A reduction under way."""

    def wait(self) -> Tensor:
        """The sum over all ranks."""
        ...


class Runtime(Protocol):
    """One rank of a group of workers."""

    rank: int
    world_size: int
    device: torch.device
    lost: dict[str, Any] | None
    """Cause and replayed_s of the restart that these workers came with; rank 0 only, None where there was none."""

    def control(self, values: Tensor) -> Pending:
        """Begin to sum `values` (on the CPU) over all ranks, beside whatever the device does."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values` (on the CPU) over all ranks."""
        ...

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over ranks in backward."""
        ...

    def stop_requested(self) -> bool:
        """Whether this process has been asked to commit and stop."""
        ...

    def commit_requested(self) -> bool:
        """Whether this process has been asked to commit and go on; rank 0 only."""
        ...

    def emit(self, event: dict[str, Any]) -> None:
        """Tell the person who waits; rank 0 only."""
        ...

    def report(self, metrics: dict[str, float]) -> None:
        """Tell a scheduler above; called by every rank."""
        ...


@final
class _Done:
    def __init__(self, values: Tensor) -> None:
        self._values = values

    def wait(self) -> Tensor:
        return self._values


@final
class _Reduction:
    def __init__(self, values: Tensor, work: dist.Work) -> None:
        self._values, self._work = values, work

    def wait(self) -> Tensor:
        self._work.wait()
        return self._values


@final
class Group:
    """Collectives of one rank: gloo for control, the device's own backend for gradients.

    Args:
        device: where the model lives. The default process group must exist unless `world_size` is 1.
    """

    def __init__(self, rank: int, world_size: int, device: torch.device) -> None:
        self.rank, self.world_size, self.device = rank, world_size, device
        self._group: Any = None
        if world_size > 1:
            on_gloo = dist.get_backend() == "gloo"
            self._group = dist.group.WORLD if on_gloo else dist.new_group(backend="gloo")

    def control(self, values: Tensor) -> Pending:
        """Begin a sum over all ranks; `values` is overwritten."""
        if self._group is None:
            return _Done(values)
        work = dist.all_reduce(values, group=self._group, async_op=True)
        assert work is not None
        return _Reduction(values, work)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks; `values` is overwritten."""
        return self.control(values).wait()

    def parallel(self, model: nn.Module) -> nn.Module:
        """DistributedDataParallel: buffers are ours to average, gradients are views into the buckets."""
        if self.world_size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        parallel = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, bucket_cap_mb=25)
        parallel.broadcast_buffers = False  # as an argument, torch >= 2.14 warns of it and older ones know no other
        return parallel


@final
class LocalRuntime:
    """This process alone, or one of torchrun's.

    Args:
        gpu: use a GPU, of this process's local rank.
        threads: threads of torch's operators.
        listen: called with every event, on rank 0.
        over: whether to stop for another reason than a signal.
    """

    def __init__(
        self,
        *,
        gpu: bool,
        threads: int,
        listen: Callable[[dict[str, Any]], None],
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = pick_device(gpu, int(os.environ.get("LOCAL_RANK", "0")))
        torch.set_num_threads(threads)
        if self.world_size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(minutes=10))
        self._group = Group(self.rank, self.world_size, self.device)
        self.lost: dict[str, Any] | None = None
        self._listen, self._over = listen, over
        self._stop = threading.Event()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "LocalRuntime":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._stop.set()

    def control(self, values: Tensor) -> Pending:
        """Begin a sum over all ranks."""
        return self._group.control(values)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks."""
        return self._group.sum(values)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model with averaged gradients."""
        return self._group.parallel(model)

    def share(self, text: str) -> str:
        """Rank 0's `text`, on every rank."""
        data = torch.zeros(256, dtype=torch.int64)
        if self.rank == 0:
            encoded = torch.tensor(list(text.encode()), dtype=torch.int64)
            data[: len(encoded)] = encoded
        return bytes(value for value in self.sum(data).tolist() if value).decode()

    def stop_requested(self) -> bool:
        """Whether SIGTERM or SIGINT arrived, or the time is over; a second SIGINT interrupts at once."""
        return self._stop.is_set() or self._over()

    def commit_requested(self) -> bool:
        """Never: whoever takes this machine away stops the job."""
        return False

    def emit(self, event: dict[str, Any]) -> None:
        """Hand the event to the listener, on rank 0."""
        if self.rank == 0:
            self._listen(event)

    def report(self, metrics: dict[str, float]) -> None:
        """Nobody is above."""


def pick_device(gpu: bool, local_rank: int) -> torch.device:
    """The device of a process.

    Raises:
        ResourceError: a GPU is asked for and there is none for this process.
    """
    if not gpu:
        return torch.device("cpu")
    if torch.cuda.device_count() <= local_rank:
        raise ResourceError(
            "There is no GPU for this process.",
            got=f"{torch.cuda.device_count()} GPUs visible, local rank {local_rank}",
            do="run on a machine with GPUs, or with --no-resources.gpu",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
