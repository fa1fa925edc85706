"""From a configuration to the parts of a job: tasks, model, loaders. The configuration stops here."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]
from torchvision.ops import StochasticDepth

from mtl.config import Config
from mtl.data.colour import Standardise
from mtl.data.keyed import key
from mtl.data.loader import Loader, Target
from mtl.data.manifest import Index, Manifest
from mtl.data.order import Order
from mtl.data.reader import Reader
from mtl.data.transforms import EvalView, TrainView
from mtl.errors import ConfigError
from mtl.loop import evaluate
from mtl.model import MultiTaskModel, build_backbone
from mtl.model.batchnorm import apply_policy, has_batch_norm
from mtl.runtime import Runtime
from mtl.store import Store
from mtl.tasks import TaskSpec, build


def build_specs(config: Config, manifest: Manifest) -> list[TaskSpec]:
    """The tasks of a configuration over the labels of a data set."""
    specs: list[TaskSpec] = []
    for name, task in config.tasks.items():
        label, count = manifest.labels[task.label], manifest.split("train").labels[task.label]
        specs.append(build(name, task, classes=label.classes, low=count.low or 0.0, high=count.high or 0.0))
    return specs


def build_model(config: Config, specs: list[TaskSpec], dtype: torch.dtype = torch.float32) -> MultiTaskModel:
    """The model with initial weights that depend on the seed alone.

    Raises:
        ConfigError: the backbone can not be built, or its batch norm does not go with the rest of the configuration.
    """
    torch.manual_seed(key("init", config.seed) >> 1)
    backbone, features = build_backbone(config.model.backbone, config.model.backbone_args, config.augment.size_px)
    model = MultiTaskModel(
        backbone, features, {s.name: s.outputs for s in specs}, config.model.head_hidden, config.model.dropout
    )
    if config.order.keep_tail and config.model.batch_norm != "frozen" and has_batch_norm(model):
        raise ConfigError(
            "An incomplete batch would spoil the statistics of batch norm: its empty rows are blank images.",
            got="order.keep_tail, and a model with batch norm",
            do="leave order.keep_tail out, or use a model without batch norm, or model.batch_norm=frozen",
        )
    apply_policy(model, config.model.batch_norm, config.global_batch // config.model.batch_norm_groups)
    return model.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


def micro_batch(config: Config, world_size: int) -> int:
    """Samples of one forward pass on a worker: its whole part of a global batch, unless the configuration says less."""
    per_lane = config.global_batch // config.order.lanes
    local = per_lane * -(-config.order.lanes // world_size)
    limit = min(config.max_micro_batch or local, local)
    if config.model.batch_norm == "groups":
        group = config.global_batch // config.model.batch_norm_groups
        return max(limit // group, 1) * group
    return limit


def targets(config: Config, specs: list[TaskSpec]) -> tuple[Target, ...]:
    """What each task reads, and what a mirrored image does to it."""
    made: list[Target] = []
    for spec in specs:
        kind = config.tasks[spec.name].kind
        negated = "no" if spec.flip != "negate" else "angle" if kind == "circular" else "number"
        made.append(Target(spec.name, spec.column, spec.integer, negated))
    return tuple(made)


def build_loader(
    config: Config, specs: list[TaskSpec], data: Store, split: str, order: Order, steps: range, runtime: Runtime
) -> Loader:
    """This rank's batches of `split`: augmented in order for training, every row once for the other splits."""
    training = order.shuffle
    wanted = targets(config, specs)
    columns = tuple(dict.fromkeys(target.column for target in wanted))
    return Loader(
        Reader(data, Index.load(data, split), columns),
        order,
        TrainView(config.augment, config.seed) if training else EvalView(config.augment),
        wanted,
        steps,
        rank=runtime.rank,
        world_size=runtime.world_size,
        groups=config.model.batch_norm_groups if training and config.model.batch_norm == "groups" else 1,
        threads=config.loader.threads or config.resources.cpus_per_worker,
        io_threads=config.loader.io_threads,
        prefetch_batches=config.loader.prefetch_batches,
    )


def evaluate_split(
    config: Config,
    specs: list[TaskSpec],
    data: Store,
    manifest: Manifest,
    split: str,
    model: nn.Module,
    runtime: Runtime,
    dtype: torch.dtype = torch.float32,
) -> dict[str, dict[str, float]]:
    """Metrics per task of `model` over every row of `split`."""
    rows = manifest.split(split).rows
    order = evaluation_order(Index.load(data, split).rows, config, manifest.fingerprint, split)
    loader = build_loader(config, specs, data, split, order, range(order.steps), runtime)
    standardise = Standardise(manifest.statistics, None, runtime.device, dtype)
    return evaluate(model, specs, loader, standardise, runtime, rows)


def evaluation_order(rows: npt.NDArray[np.int64], config: Config, fingerprint: str, split: str) -> Order:
    """Storage order over every row of a split."""
    return Order(
        rows,
        fingerprint=fingerprint,
        split=split,
        seed=0,
        lanes=config.order.lanes,
        block_row_groups=2,
        global_batch=config.global_batch,
        keep_tail=True,
        shuffle=False,
    )


def rank_invariant(config: Config, model: nn.Module) -> str | None:
    """Why the result depends on the number of workers, or None if it does not."""
    if has_batch_norm(model) and config.model.batch_norm == "local":
        return "model.batch_norm=local: statistics are each worker's own, so results depend on the number of workers"
    if any(isinstance(module, _DropoutNd | StochasticDepth) and module.p > 0 for module in model.modules()):
        return "dropout: each worker drops other units, so results depend on the number of workers"
    return None


@torch.no_grad()
def average_buffers(model: nn.Module, runtime: Runtime) -> None:
    """Give every rank the mean of the ranks' floating-point buffers (running statistics)."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if runtime.world_size == 1 or not buffers:
        return
    flat = torch.cat([buffer.double().cpu().reshape(-1) for buffer in buffers])
    parts: list[Tensor] = list((runtime.sum(flat) / runtime.world_size).split([b.numel() for b in buffers]))
    for buffer, part in zip(buffers, parts, strict=True):
        buffer.copy_(part.view(buffer.shape))
