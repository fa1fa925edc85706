"""One training step, for what it shows: that model, tasks and optimizer fit together, and what they need.

Where evaluation has images of another size, a forward pass on those follows.
"""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mtl.agreement import divisor
from mtl.config import Config, Task
from mtl.config_order import Rebalance
from mtl.data.batch import OK, Batch
from mtl.data.colour import Standardise
from mtl.data.columns import LabelArray
from mtl.data.manifest import Manifest, Statistics
from mtl.ema import Ema
from mtl.errors import ConfigError, ResourceError
from mtl.local import solitary
from mtl.loop import train_step
from mtl.mixing import training_order, training_sets
from mtl.optim import build_optimizer
from mtl.parts import (
    build_loader,
    build_model,
    build_specs,
    build_weigher,
    initialise,
    micro_batch,
    signal_of,
    strong_of,
)
from mtl.precision import Precision
from mtl.preflight import world_size
from mtl.task_config import ON_TREES, WITH_CLASSES
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
            elsewhere computed from what the step saved for its backward, which evaluation has none of.
        initial: what was loaded from model.init_from, and what was not.
    """

    parameters: int
    samples: int
    seconds: float
    losses: dict[str, float]
    micro_batch: int
    memory_bytes: int
    initial: list[str]


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
    initial = initialise(config, model)
    wanted = micro_batch(config, world_size(config))
    samples = wanted if gpu else min(_CPU_SAMPLES, wanted)
    batch = _resized(_first_batch(config, specs) if manifest else _blank(config, specs), samples)
    weigher = build_weigher(config, specs, 1, device)
    precision = Precision(config.precision, device)
    trainee = Trainee(
        model=model,
        parallel=model,
        optimizer=build_optimizer(model, config.optimizer),
        specs=specs,
        weigher=weigher,
        signal=signal_of(config, weigher, model, model, world_size(config), precision.scale),
        standardise=Standardise(manifest.statistics if manifest else _GREY, config.augment, device, torch.float32),
        steps_per_epoch=1,
        micro_batch=samples,
        clip_norm=config.optimizer.clip_norm,
        frozen_batch_norm=config.model.batch_norm == "frozen",
        precision=precision,
        strong=strong_of(config),
        ema=Ema(model, 1.0) if config.optimizer.ema_epochs else None,
    )
    trainee.train_mode()
    counts = torch.stack([spec.weight_of(torch.from_numpy(batch.labels[spec.name])).sum() for spec in specs])
    saved = _Saved(model)
    began = time.perf_counter()
    try:
        with saved_tensors_hooks(saved.note, lambda tensor: tensor):
            sums = train_step(trainee, batch, counts, device)
            while sums is None and precision.skipped():  # the scale of losses is still to be found
                sums = train_step(trainee, batch, counts, device)
        seconds = time.perf_counter() - began
        if config.augment.evaluated_px != config.augment.size_px:
            _evaluate(config, trainee, samples, device)
    except torch.cuda.OutOfMemoryError as error:
        raise ResourceError(
            "A step, or an evaluation, does not fit into the GPU's memory.",
            got=f"{wanted} samples of {config.augment.size_px} px, in evaluation of {config.augment.evaluated_px} px; "
            f"{torch.cuda.mem_get_info()[1] / 1e9:.0f} GB",
            do="set a smaller --max-micro-batch: gradients are accumulated, with the same result",
        ) from error
    if sums is None:
        raise ConfigError("The gradient of the first step is not finite.", do="look at the labels' values: --preview")
    losses = (sums.cpu() / divisor(counts)).tolist()
    return Rehearsal(
        parameters=sum(p.numel() for p in model.parameters()),
        samples=samples,
        seconds=seconds,
        losses={s.name: loss for s, loss, n in zip(specs, losses, counts.tolist(), strict=True) if n},
        micro_batch=wanted,
        memory_bytes=torch.cuda.max_memory_allocated() if gpu else _held(trainee) + saved.bytes * wanted // samples,
        initial=initial,
    )


@torch.no_grad()
def _evaluate(config: Config, trainee: Trainee, samples: int, device: torch.device) -> None:
    """A forward pass of an evaluation on blank images: it takes less for an image, but images may be larger."""
    size = config.augment.evaluated_px
    images = torch.zeros(samples, size, size, 3, dtype=torch.uint8, device=device)
    seen = trainee.standardise(images, torch.ones(samples, 3, device=device))
    trainee.precision.apply(trainee.model.eval(), seen)


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
    """Bytes of parameters, gradients, buffers, the average and the optimizer's state."""
    model = trainee.model
    tensors = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None), *model.buffers()]
    tensors += trainee.ema.state()[0].values() if trainee.ema else ()
    tensors += [v for state in trainee.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return sum(tensor.nbytes for tensor in tensors)


def _blank_specs(config: Config) -> list[TaskSpec]:
    unknown = [name for name, task in config.tasks.items() if not task.class_count and task.kind in WITH_CLASSES]
    if unknown:
        raise ConfigError(
            "Without a data set the number of classes is not known.",
            got=f"tasks {', '.join(unknown)} without classes",
            expected="a data set at --data, or a number",
            do=f"set --tasks.{unknown[0]}.classes",
        )
    return [
        build(name, _plain(task), classes=tuple(map(str, range(task.class_count or 0))) or None, low=0, high=1)
        for name, task in config.tasks.items()
    ]


def _plain(task: Task) -> Task:
    """The task without what only a data set can tell: balanced weights, a tree, groups."""
    name = None if task.loss_name in ON_TREES else task.loss.name
    loss = task.loss.model_copy(update={"balanced": False, "name": name})
    return task.model_copy(update={"loss": loss, "tree": None, "group_of": None})


def _blank(config: Config, specs: list[TaskSpec]) -> Batch:
    size = config.augment.size_px
    shapes = {spec.name: (1, spec.width) if spec.width else (1,) for spec in specs}
    labels: dict[str, LabelArray] = {
        spec.name: np.zeros(shapes[spec.name], np.int64) if spec.integer else np.zeros(shapes[spec.name], np.float32)
        for spec in specs
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
        positions=np.zeros(1, np.int64),
    )


def _first_batch(config: Config, specs: list[TaskSpec]) -> Batch:
    """The first sample of each lane, as training will see it."""
    few = config.model_copy(update={"global_batch": config.order.lanes, "rebalance": Rebalance()})
    sets = training_sets(few)
    few = few.model_copy(update={"model": config.model.model_copy(update={"batch_norm": "local"})})
    loader = build_loader(few, specs, sets, training_order(few, sets), range(1), solitary())
    try:
        return next(iter(loader))
    finally:
        loader.close()


def _resized(batch: Batch, samples: int) -> Batch:
    """`batch` thinned, or its samples repeated, to `samples`: in a mixture some of each large part."""
    at = np.arange(samples) * len(batch.images) // samples
    return replace(
        batch,
        images=batch.images[at],
        positions=batch.positions[at],
        labels={name: values[at] for name, values in batch.labels.items()},
        colour=batch.colour[at],
        status=batch.status[at],
    )
