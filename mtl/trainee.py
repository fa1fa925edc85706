"""What a training loop carries: the model with all that trains it, and where training stands."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtl.balancing import Balancer
from mtl.data.colour import Standardise
from mtl.model.batchnorm import freeze
from mtl.tasks import TaskSpec


@dataclass
class Position:
    """Where training stands. `ledger` is this rank's share of the sum; rank 0 carries what earlier attempts added."""

    step: int = 0
    ledger: int = 0
    quarantined: int = 0
    skipped: int = 0


@dataclass
class Trainee:
    """What is trained, and with what.

    `model` is the plain module, `parallel` the one whose backward averages gradients over ranks.
    """

    model: nn.Module
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    specs: list[TaskSpec]
    balancer: Balancer
    standardise: Standardise
    steps_per_epoch: int
    micro_batch: int
    clip_norm: float | None
    frozen_batch_norm: bool
    bad_in_a_row: int = 0

    def train_mode(self) -> None:
        """Switch to training, with batch norm left on its stored statistics where it is frozen."""
        self.parallel.train()
        if self.frozen_batch_norm:
            freeze(self.model)

    def buffers(self) -> list[Tensor]:
        """Copies of the running statistics."""
        return [buffer.clone() for buffer in self.model.buffers()]

    @torch.no_grad()
    def restore_buffers(self, before: list[Tensor]) -> None:
        """Put back what `buffers` copied."""
        for buffer, value in zip(self.model.buffers(), before, strict=True):
            buffer.copy_(value)


def settle(trainee: Trainee, size_px: int, device: torch.device) -> None:
    """One forward and backward on a blank batch, without a trace.

    DistributedDataParallel orders its gradient buckets anew after its first backward, and the order decides how floats
    are summed. Spending that first backward here makes a resumed process sum exactly as an uninterrupted one.
    """
    if not isinstance(trainee.parallel, DistributedDataParallel):
        return
    trainee.train_mode()
    before = trainee.buffers()
    blank = torch.zeros(trainee.micro_batch, size_px, size_px, 3, dtype=torch.uint8, device=device)
    outputs = trainee.parallel(trainee.standardise(blank, torch.ones(len(blank), 3, device=device)))
    (torch.cat([output.reshape(-1) for output in outputs.values()]).sum() * 0.0).backward()
    trainee.optimizer.zero_grad(set_to_none=True)
    trainee.restore_buffers(before)
