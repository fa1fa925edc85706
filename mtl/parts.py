"""From a configuration to the parts of a job: tasks, model, loaders. The configuration stops here."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch._functorch import config as functorch
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]
from torchvision.ops import StochasticDepth

from mtl.agreement import portions
from mtl.balancing.build import build_balancer
from mtl.balancing.signals import Ranks, Signal, Weigher, build_signal
from mtl.balancing.signals.base import Scale
from mtl.config import Config
from mtl.data.colour import Standardise
from mtl.data.footprint import EVALUATION_ROW_GROUPS
from mtl.data.groups import groups_of
from mtl.data.joined import Joined
from mtl.data.keyed import key
from mtl.data.known import known
from mtl.data.loader import Loader, Target
from mtl.data.manifest import Index, Manifest
from mtl.data.memory import Source
from mtl.data.mixture import AnyOrder
from mtl.data.order import Order
from mtl.data.reader import Reader
from mtl.data.strong import Strong
from mtl.data.transforms import EvalView, TrainView
from mtl.ema import Ema
from mtl.errors import ConfigError
from mtl.loop import Scores, evaluate
from mtl.mixing import DataSet
from mtl.model import PATTERNS, HeadSpec, MultiTaskModel, build_backbone
from mtl.model.batchnorm import apply_policy, has_batch_norm
from mtl.model.initial import load_initial
from mtl.model.resolution import check_sizes
from mtl.overfit import Repeated
from mtl.precision import Precision
from mtl.rebalancing import Peers
from mtl.runtime import Runtime
from mtl.store import Store
from mtl.tasks import TaskSpec, build


def build_specs(config: Config, manifest: Manifest) -> list[TaskSpec]:
    """The tasks of a configuration over the labels of a data set."""
    specs: list[TaskSpec] = []
    for name, task in config.tasks.items():
        of, groups = config.tasks.get(task.group_of or ""), None
        if of is not None:
            groups = groups_of(manifest, of.label, task.label)
        specs.append(build(name, task, groups=groups, **known(task, manifest)))
    return specs


def build_model(config: Config, specs: list[TaskSpec], dtype: torch.dtype = torch.float32) -> MultiTaskModel:
    """The model with initial weights that depend on the seed alone.

    Raises:
        ConfigError: the backbone can not be built, the sharing pattern does not fit it, its batch norm does not go with
            the rest of the configuration, or it does not take images of all the sizes that it is to see.
    """
    torch.manual_seed(key("init", config.seed) >> 1)
    wanted = config.model
    backbone = build_backbone(wanted.backbone, wanted.backbone_args, config.augment.size_px)
    heads = HeadSpec(
        outputs={spec.name: spec.outputs for spec in specs},
        hidden=wanted.head_hidden,
        dropout=wanted.dropout,
        attention=wanted.pooling == "attention",
    )
    model = PATTERNS[wanted.sharing.pattern](backbone, heads, **wanted.sharing.arguments())
    check_sizes(model, wanted.backbone, config.augment.size_px, config.augment.other_sizes)
    if wanted.batch_norm in ("sync", "frozen") and not has_batch_norm(model):
        raise ConfigError(
            f"model.batch_norm={wanted.batch_norm} would have no effect.",
            got=f"{wanted.backbone}, without batch norm",
            do="leave it out, or choose local, which binds no number of workers",
        )
    if config.order.keep_tail and config.model.batch_norm != "frozen" and has_batch_norm(model):
        raise ConfigError(
            "An incomplete batch would spoil the statistics of batch norm: its few rows are no fair sample.",
            got="order.keep_tail, and a model with batch norm",
            do="leave order.keep_tail out, or use a model without batch norm, or model.batch_norm=frozen",
        )
    apply_policy(model, config.model.batch_norm, config.global_batch // config.model.batch_norm_groups)
    return model.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


def compile_backbone(
    model: MultiTaskModel, *, traversed_again: bool, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Have the backbone compiled at its first forward, wherever it is called from. State keeps its names.

    Heads stay as they are: they are small, and balancing acts between them and the backbone.

    Args:
        traversed_again: whether one forward may have several backwards, as the exact signal's has.
        backend: of torch.compile.
    """
    if traversed_again:
        functorch.donated_buffer = False  # such a graph can not give its buffers away
    for part in model.backbone_parts().values():
        part.compile(backend=backend)


def initialise(config: Config, model: MultiTaskModel) -> list[str]:
    """Load model.init_from, if there is one, into a new model. Returns what was loaded and what was not, for people.

    Raises:
        ConfigError: the file can not be read, or does not fit.
    """
    if config.model.init_from is None:
        return []
    return load_initial(model, config.model.init_from, partial=config.model.init_partial).describe()


def local_batch(config: Config, world_size: int) -> int:
    """Samples of a worker's part of a global batch, at most: some workers may have a lane fewer."""
    return config.global_batch // config.order.lanes * -(-config.order.lanes // world_size)


def micro_batch(config: Config, world_size: int) -> int:
    """Samples of one forward pass on a worker: its whole part of a global batch, unless the configuration says less."""
    local = local_batch(config, world_size)
    limit = min(config.max_micro_batch or local, local)
    if config.model.batch_norm == "groups":
        group = config.global_batch // config.model.batch_norm_groups
        return max(limit // group, 1) * group
    return limit


def build_weigher(config: Config, specs: list[TaskSpec], world_size: int, device: torch.device) -> Weigher:
    """The balancer, and the hold on the weights that it gives.

    Raises:
        ConfigError: there is no such method, or it does not take these arguments.
    """
    balancing = config.balancing
    balancer = build_balancer(balancing.method, len(specs), config.seed, balancing.arguments)
    kinds = tuple(config.tasks[spec.name].kind for spec in specs)
    return Weigher(balancer, [spec.weight for spec in specs], kinds, Ranks(world_size, device))


def signal_of(
    config: Config,
    weigher: Weigher,
    model: MultiTaskModel,
    parallel: nn.Module,
    world_size: int,
    scale: Scale = lambda: 1.0,
) -> Signal:
    """What forms a step's gradients, on one of `world_size` workers.

    Args:
        scale: of the losses, for half precision.

    Raises:
        ConfigError: the backend does not suit the balancer, the model or the micro-batches.
    """
    balancing, parameter = config.balancing, next(model.parameters())
    return build_signal(
        weigher,
        model,
        parallel,
        tasks=list(config.tasks),
        backend=balancing.backend,
        statistic=balancing.statistic,
        batch_norm=has_batch_norm(model) and config.model.batch_norm != "frozen",
        refresh_steps=balancing.refresh_steps,
        lag=balancing.lag > 0,
        accumulates=micro_batch(config, world_size) < local_batch(config, world_size),
        images=parameter.new_zeros(2, 3, config.augment.size_px, config.augment.size_px),
        scale=scale,
    )


def strong_of(config: Config) -> Strong | None:
    """The augmentation that happens on the device, None where all of it is off."""
    augment = config.augment
    on = augment.erase or augment.mixup or augment.cutmix
    return Strong(augment, config.seed, config.order.lanes) if on else None


def training_loader(
    config: Config, specs: list[TaskSpec], sets: Sequence[DataSet], order: AnyOrder, step: int, runtime: Runtime
) -> Loader | Repeated:
    """This rank's batches from `step` to the end of the last epoch."""
    steps = range(step, order.steps * config.epochs)
    if config.overfit_batch:
        return Repeated(build_loader(config, specs, sets, order, range(1), runtime), steps, order.steps)
    return build_loader(config, specs, sets, order, steps, runtime)


def peers(runtime: Runtime) -> Peers:
    """The ranks of `runtime` as those that read labels together."""
    return Peers(runtime.rank, runtime.world_size, lambda values: runtime.sum(torch.from_numpy(values)).numpy())


def targets(config: Config, specs: list[TaskSpec]) -> tuple[Target, ...]:
    """What each task reads, and what a mirrored image does to it."""
    made: list[Target] = []
    for spec in specs:
        kind = config.tasks[spec.name].kind
        negated = "no" if spec.flip != "negate" else "angle" if kind == "circular" else "number"
        components = config.tasks[spec.name].flip_components
        made.append(Target(spec.name, ",".join(spec.columns), spec.integer, negated, spec.width, components))
    return tuple(made)


def build_reader(wanted: tuple[Target, ...], sets: Sequence[DataSet]) -> Source:
    """What reads the row groups of `sets`, numbered over all of them. The first one has every column."""
    columns = tuple(dict.fromkeys(column for target in wanted for column in target.columns))
    widths = {target.column: target.width for target in wanted if target.width and len(target.columns) == 1}
    readers = [
        Reader(its.store, its.index, tuple(name for name in columns if name in its.manifest.labels), widths)
        for its in sets
    ]
    if len(readers) == 1:
        return readers[0]
    return Joined(readers, {name: target.of_column().empty for target in wanted for name in target.columns})


def build_loader(
    config: Config, specs: list[TaskSpec], sets: Sequence[DataSet], order: AnyOrder, steps: range, runtime: Runtime
) -> Loader:
    """This rank's batches of `sets`: augmented in order for training, every row once for evaluation."""
    training = order.shuffle
    wanted = targets(config, specs)
    return Loader(
        build_reader(wanted, sets),
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
        prefetch_bytes=int(config.loader.prefetch_mb * 1e6),
        memory=config.loader.memory if training else "none",
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
    index: Index | None = None,
) -> Scores:
    """Metrics per task of `model` over every row of `split`, in the run's precision and its micro-batches.

    Args:
        index: of the split, where it is known already.
    """
    rows = manifest.split(split).rows
    its = DataSet("data", data, manifest, index or Index.load(data, split))
    order = evaluation_order(its.index.rows, config, manifest.fingerprint, split)
    loader = build_loader(config, specs, [its], order, range(order.steps), runtime)
    standardise = Standardise(manifest.statistics, None, runtime.device, dtype)
    precision = Precision(config.precision, runtime.device)
    batches = portions(loader, micro_batch(config, runtime.world_size))
    return evaluate(model, specs, batches, standardise, precision, runtime, rows)


def evaluation_order(rows: npt.NDArray[np.int64], config: Config, fingerprint: str, split: str) -> Order:
    """Storage order over every row of a split."""
    return Order(
        rows,
        fingerprint=fingerprint,
        split=split,
        seed=0,
        lanes=config.order.lanes,
        block_row_groups=EVALUATION_ROW_GROUPS,
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


def average_buffers(model: nn.Module, ema: Ema | None, runtime: Runtime) -> None:
    """Give every rank the mean of the ranks' floating-point buffers (running statistics), and of their averages."""
    average_over_ranks([*model.buffers(), *(ema.buffers if ema else ())], runtime)


@torch.no_grad()
def average_over_ranks(tensors: Iterable[Tensor], runtime: Runtime) -> None:
    """Give every rank the mean of the ranks' `tensors`, those that are floating-point."""
    buffers = [tensor for tensor in tensors if tensor.is_floating_point()]
    if runtime.world_size == 1 or not buffers:
        return
    flat = torch.cat([buffer.double().cpu().reshape(-1) for buffer in buffers])
    parts: list[Tensor] = list((runtime.sum(flat) / runtime.world_size).split([b.numel() for b in buffers]))
    for buffer, part in zip(buffers, parts, strict=True):
        buffer.copy_(part.view(buffer.shape))
