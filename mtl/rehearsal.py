"""One training step, for what it shows: that model, tasks and optimizer fit together, and what they need."""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mtl.balancing import Static
from mtl.config import Config
from mtl.data.colour import Standardise
from mtl.data.loader import OK, Batch, LabelArray
from mtl.data.manifest import Manifest, Statistics
from mtl.errors import ConfigError, ResourceError
from mtl.local import solitary
from mtl.loop import train_step
from mtl.optim import build_optimizer
from mtl.parts import build_loader, build_model, build_specs, micro_batch
from mtl.preflight import training_order, world_size
from mtl.store import open_store
from mtl.tasks import TaskSpec, build
from mtl.trainee import Trainee

_CPU_SAMPLES = 8
_GREY = Statistics(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), images=0)


@dataclass(frozen=True)
class Rehearsal:
    """What one step showed.

    Attributes:
        parameters: of the model.
        samples: in the step; on a CPU a few, on a GPU as many as training has in one forward pass.
        seconds: that the step took, the first one of a cold process.
        losses: mean over the labels of each task, of those that had any.
        micro_batch: samples of one forward pass in training.
        memory_bytes: that a worker's model, gradients, optimizer and activations take at that size: measured on a GPU,
            elsewhere computed from what the step saved for its backward.
    """

    parameters: int
    samples: int
    seconds: float
    losses: dict[str, float]
    micro_batch: int
    memory_bytes: int


def rehearse(config: Config, manifest: Manifest | None, *, gpu: bool = False) -> Rehearsal:
    """Build everything and train one step, on the first images of the data set, or on blank ones where it has none.

    Raises:
        ConfigError: the parts do not fit together, a gradient is not finite, or without a manifest a number of classes
            is not known.
        ResourceError: there is no GPU, or its memory is too small.
    """
    device = solitary(gpu).device
    specs = build_specs(config, manifest) if manifest else _blank_specs(config)
    model = build_model(config, specs).to(device)
    wanted = micro_batch(config, world_size(config))
    samples = wanted if gpu else min(_CPU_SAMPLES, wanted)
    batch = _resized(_first_batch(config, specs, manifest) if manifest else _blank(config, specs), samples)
    trainee = Trainee(
        model=model,
        parallel=model,
        optimizer=build_optimizer(model, config.optimizer),
        specs=specs,
        balancer=Static([spec.weight for spec in specs]),
        standardise=Standardise(manifest.statistics if manifest else _GREY, config.augment, device, torch.float32),
        steps_per_epoch=1,
        micro_batch=samples,
        clip_norm=config.optimizer.clip_norm,
        frozen_batch_norm=config.model.batch_norm == "frozen",
    )
    trainee.train_mode()
    counts = torch.stack([spec.valid(torch.from_numpy(batch.labels[spec.name])).sum() for spec in specs]).double()
    saved = _Saved(model)
    began = time.perf_counter()
    try:
        with saved_tensors_hooks(saved.note, lambda tensor: tensor):
            sums = train_step(trainee, batch, counts, 1, device)
    except torch.cuda.OutOfMemoryError as error:
        raise ResourceError(
            "A step does not fit into the GPU's memory.",
            got=f"{wanted} samples of {config.augment.size_px} px; {torch.cuda.mem_get_info()[1] / 1e9:.0f} GB",
            do="set a smaller --max-micro-batch: gradients are accumulated, with the same result",
        ) from error
    if sums is None:
        raise ConfigError("The gradient of the first step is not finite.", do="look at the labels' values: --preview")
    losses = (sums.cpu() / counts.clamp(min=1)).tolist()
    return Rehearsal(
        parameters=sum(p.numel() for p in model.parameters()),
        samples=samples,
        seconds=time.perf_counter() - began,
        losses={s.name: loss for s, loss, n in zip(specs, losses, counts.tolist(), strict=True) if n},
        micro_batch=wanted,
        memory_bytes=torch.cuda.max_memory_allocated() if gpu else _held(trainee) + saved.bytes * wanted // samples,
    )


class _Saved:
    """The bytes that autograd keeps for the backward, each storage once; the parameters do not count."""

    def __init__(self, model: nn.Module) -> None:
        self._seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.bytes = 0

    def note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def _held(trainee: Trainee) -> int:
    """Bytes of parameters, gradients, buffers and the optimizer's state."""
    model = trainee.model
    tensors = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]
    tensors += [v for state in trainee.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return sum(tensor.nbytes for tensor in tensors)


def _blank_specs(config: Config) -> list[TaskSpec]:
    unknown = [name for name, task in config.tasks.items() if task.kind == "multiclass" and task.classes is None]
    if unknown:
        raise ConfigError(
            "Without a data set the number of classes is not known.",
            got=f"tasks {', '.join(unknown)} without classes",
            expected="a data set at --data, or a number",
            do=f"set --tasks.{unknown[0]}.classes",
        )
    return [
        build(name, task, classes=tuple(map(str, range(task.classes or 0))), low=0, high=1)
        for name, task in config.tasks.items()
    ]


def _blank(config: Config, specs: list[TaskSpec]) -> Batch:
    size = config.augment.size_px
    labels: dict[str, LabelArray] = {
        spec.name: np.zeros(1, np.int64) if spec.integer else np.zeros(1, np.float32) for spec in specs
    }
    return Batch(
        step=0,
        epoch=0,
        images=np.zeros((1, size, size, 3), np.uint8),
        labels=labels,
        colour=np.ones((1, 3), np.float32),
        status=np.full(1, OK, np.uint8),
        ledger=0,
        bad=[],
    )


def _first_batch(config: Config, specs: list[TaskSpec], manifest: Manifest) -> Batch:
    """The first sample of each lane, as training will see it."""
    data = open_store(config.data)
    few = config.model_copy(update={"global_batch": config.order.lanes})
    few = few.model_copy(update={"model": config.model.model_copy(update={"batch_norm": "local"})})
    order = training_order(few, manifest, data)
    loader = build_loader(few, specs, data, "train", order, range(1), solitary())
    try:
        return next(iter(loader))
    finally:
        loader.close()


def _resized(batch: Batch, samples: int) -> Batch:
    """`batch` cut, or repeated, to `samples`."""
    at = np.arange(samples) % len(batch.images)
    return replace(
        batch,
        images=batch.images[at],
        labels={name: values[at] for name, values in batch.labels.items()},
        colour=batch.colour[at],
        status=batch.status[at],
    )
