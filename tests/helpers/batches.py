"""Batches and trainees made by hand, for tests of the loop in one process."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtl.balancing.build import build_balancer
from mtl.balancing.signals import Ranks, Weigher, build_signal
from mtl.config import Augment, Optimizer
from mtl.data.batch import OK, Batch
from mtl.data.colour import Standardise
from mtl.data.manifest import Statistics
from mtl.data.strong import Strong
from mtl.model import Backbone, HardSharing, HeadSpec
from mtl.optim import build_optimizer
from mtl.precision import Name, Precision
from mtl.tasks import TaskSpec, build
from mtl.trainee import Trainee
from tests.helpers.backbones import small
from tests.helpers.engine import TASKS

CPU = torch.device("cpu")
STATISTICS = Statistics(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), images=1)


def specs(names: Sequence[str] = tuple(TASKS)) -> list[TaskSpec]:
    """One task of each kind."""
    tasks = {name: TASKS[name] for name in names}
    return [
        build(name, task, classes=("a", "b", "c") if task.kind == "multiclass" else None, low=-1.0, high=1.0)
        for name, task in tasks.items()
    ]


def trainee(
    backbone: Callable[[], nn.Module] = small,
    features: int = 64,
    *,
    micro_batch: int = 64,
    optimizer: Optimizer | None = None,
    steps_per_epoch: int = 4,
    clip_norm: float | None = None,
    frozen_batch_norm: bool = False,
    dtype: torch.dtype = torch.float64,
    method: str = "static",
    arguments: Mapping[str, float] | None = None,
    world_size: int = 1,
    names: Sequence[str] = tuple(TASKS),
    precision: Name = "fp32",
    strong: Strong | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    **signal: Any,
) -> Trainee:
    """A small model, ready to train; `signal` goes to `build_signal`.

    Args:
        names: of its tasks, all four unless it is to have fewer.
        world_size: ranks that share a step.
        wrap: makes the module whose backward averages gradients over them.
    """
    torch.manual_seed(0)
    tasks = specs(names)
    heads = HeadSpec({spec.name: spec.outputs for spec in tasks})
    model = HardSharing(Backbone("test", backbone(), features), heads).to(dtype)
    parallel = wrap(model)
    weigher = Weigher(
        build_balancer(method, len(tasks), 0, arguments),
        [spec.weight for spec in tasks],
        tuple(TASKS[name].kind for name in names),
        Ranks(world_size, CPU),
    )
    scaling = Precision(precision, CPU)
    signal.setdefault("scale", scaling.scale)
    made = Trainee(
        model=model,
        parallel=parallel,
        optimizer=build_optimizer(model, optimizer or Optimizer(name="sgd", lr=0.01)),
        specs=tasks,
        weigher=weigher,
        signal=build_signal(
            weigher,
            model,
            parallel,
            tasks=list(names),
            images=torch.zeros(2, 3, 16, 16, dtype=dtype),
            **signal,
        ),
        standardise=Standardise(STATISTICS, Augment(size_px=16, eval_resize_px=16), CPU, dtype),
        steps_per_epoch=steps_per_epoch,
        micro_batch=micro_batch,
        clip_norm=clip_norm,
        frozen_batch_norm=frozen_batch_norm,
        precision=scaling,
        strong=strong,
        ema=None,
    )
    made.train_mode()
    return made


def batch(n: int, *, step: int = 0, seed: int = 0) -> Batch:
    """n random samples with every label."""
    draws = np.random.default_rng(seed)
    return Batch(
        step=step,
        epoch=0,
        images=draws.integers(0, 256, (n, 16, 16, 3), np.uint8),
        labels={
            "object": draws.integers(0, 3, n),
            "kind": draws.integers(0, 2, n),
            "angle": draws.uniform(0, 6, n).astype(np.float32),
            "amount": draws.uniform(-1, 1, n).astype(np.float32),
        },
        colour=draws.uniform(0.8, 1.2, (n, 3)).astype(np.float32),
        status=np.full(n, OK, np.uint8),
        ledger=step + 1,
        bad=[],
        positions=step * n + np.arange(n),
    )


def hide(made: Batch, task: str, rows: Sequence[int] | slice) -> None:
    """Remove labels of `task`."""
    made.labels[task][rows] = -1 if made.labels[task].dtype == np.int64 else np.nan


def rows(made: Batch, keep: Sequence[int] | slice) -> Batch:
    """Some samples of a batch."""
    return Batch(
        step=made.step,
        epoch=made.epoch,
        images=made.images[keep],
        labels={task: labels[keep] for task, labels in made.labels.items()},
        colour=made.colour[keep],
        status=made.status[keep],
        ledger=made.ledger,
        bad=made.bad,
        positions=made.positions[keep],
    )


def counts(made: Batch) -> Tensor:
    """Valid labels of each task: float64 [K]."""
    return torch.tensor(
        [float(spec.valid(torch.from_numpy(made.labels[spec.name])).sum()) for spec in specs()], dtype=torch.float64
    )


def gradients(made: Trainee) -> dict[str, Tensor]:
    """Gradients by parameter name."""
    return {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}
