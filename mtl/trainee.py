"""What a training loop carries: the model with all that trains it, and where training stands."""

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtl.balancing.signals import Signal, Weigher
from mtl.data.batch import Batch
from mtl.data.colour import Standardise
from mtl.data.growth import Growth
from mtl.data.strong import Strong
from mtl.ema import Ema
from mtl.inputs import Inputs
from mtl.model.batchnorm import freeze
from mtl.precision import Precision
from mtl.tasks import TaskSpec


@dataclass
class Position:
    """Where training stands. `ledger` is this rank's share of the sum; rank 0 carries what earlier attempts added."""

    step: int = 0
    ledger: int = 0
    quarantined: int = 0
    skipped: int = 0


@dataclass
class Streak:
    """Steps since the last one that was trained: `bad` ones, of which the first is `since`, and those passed over."""

    bad: int = 0
    since: int = 0
    untrained: int = 0  # both together

    def add_bad(self, step: int) -> None:
        """Take in a bad one."""
        self.since = self.since if self.bad else step
        self.bad += 1


@dataclass
class Trainee:
    """What is trained, and with what.

    `model` is the plain module, `parallel` the one whose backward averages gradients over ranks. `signal` forms the
    gradients of a step, `weigher` holds the balancer that it asks. `ema` averages the weights beside them.
    """

    model: nn.Module
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    specs: list[TaskSpec]
    weigher: Weigher
    signal: Signal
    standardise: Standardise
    steps_per_epoch: int
    micro_batch: int
    clip_norm: float | None
    frozen_batch_norm: bool
    precision: Precision
    strong: Strong | None = None
    growth: Growth | None = None
    ema: Ema | None = None
    passed_over: frozenset[int] = frozenset()  # steps that are not trained: see mtl/rewind.py
    streak: Streak = field(default_factory=Streak)
    copied_s: float = 0.0  # host time of copies to the device, so far

    def inputs(self, batch: Batch, device: torch.device) -> Inputs:
        """What the model is to see of a batch."""
        side_px = self.growth.side_px(batch.step) if self.growth else None
        return Inputs(batch, self.standardise, self.strong, device, side_px)

    def train_mode(self) -> None:
        """Switch to training, with batch norm left on its stored statistics where it is frozen."""
        self.parallel.train()
        if self.frozen_batch_norm:
            freeze(self.model)


@final
class RunningStatistics:
    """A model's buffers during one step: they count only once the step is known to be good.

    Every micro-batch starts from the same ones and the step leaves their mean behind. As they are exponential averages
    over groups of samples, that is what the batch in one piece would leave.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._before = [buffer.clone() for buffer in self._buffers]
        self._mean: list[Tensor] = []

    @torch.no_grad()
    def gather(self, share: float) -> None:
        """Take in what a micro-batch, this share of the local batch, has left, and start over for the next one."""
        if share == 1:
            return
        self._mean = self._mean or [torch.zeros_like(buffer) for buffer in self._buffers]
        for mean, buffer in zip(self._mean, self._buffers, strict=True):
            if buffer.is_floating_point():
                mean.add_(buffer, alpha=share)
            else:
                mean.copy_(buffer)
        self.undo()

    @torch.no_grad()
    def keep(self) -> None:
        """Leave the mean of what was gathered."""
        if self._mean:
            self._put(self._mean)

    @torch.no_grad()
    def undo(self) -> None:
        """Put back what was there at the beginning."""
        self._put(self._before)

    def _put(self, values: list[Tensor]) -> None:
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.copy_(value)


@final
class Randomness:
    """The state of torch's generators, to draw the same again."""

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._cpu = torch.get_rng_state()
        self._gpu = torch.cuda.get_rng_state(device) if self._device else None

    def replay(self) -> None:
        """Go back to that state."""
        torch.set_rng_state(self._cpu)
        if self._device is not None and self._gpu is not None:
            torch.cuda.set_rng_state(self._gpu, self._device)


def settle(trainee: Trainee, size_px: int, device: torch.device) -> None:
    """One forward and backward on a blank batch, without a trace.

    DistributedDataParallel orders its gradient buckets anew after its first backward, and the order decides how floats
    are summed. Spending that first backward here makes a resumed process sum exactly as an uninterrupted one.
    """
    if not isinstance(trainee.parallel, DistributedDataParallel):
        return
    trainee.train_mode()
    statistics = RunningStatistics(trainee.model)
    blank = torch.zeros(trainee.micro_batch, size_px, size_px, 3, dtype=torch.uint8, device=device)
    seen = trainee.standardise(blank, torch.ones(len(blank), 3, device=device))
    outputs = trainee.precision.apply(trainee.parallel, seen)
    (torch.cat([output.reshape(-1) for output in outputs.values()]).sum() * 0.0).backward()
    trainee.optimizer.zero_grad(set_to_none=True)
    statistics.undo()
