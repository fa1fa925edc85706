"""The typed configuration of a run: strict, frozen, torch-free, saved with every run and loadable back."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, Self

import yaml
from pydantic import ValidationError, model_validator

from mtl.balancing_config import Balancing
from mtl.config_augment import Augment as Augment
from mtl.config_evaluation import Evaluation, contradictions
from mtl.config_model import Model
from mtl.config_optimizer import Optimizer
from mtl.config_order import Order as Order
from mtl.config_order import Rebalance, impossible_rebalancing
from mtl.config_resources import Resources as Resources
from mtl.config_tracking import Tracking
from mtl.errors import ConfigError
from mtl.schema import WHOLE, Search, Section, identity, invalid, listed, placement, resumable, searchable
from mtl.task_config import Loss as Loss
from mtl.task_config import Task
from mtl.task_config import TaskKind as TaskKind

SCHEMA_VERSION = 1

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")  # part of flags, metrics' names and files


class Source(Section):
    """A data set that the first one is mixed with."""

    data: str = placement(..., "address of the data set: a folder or s3://bucket/prefix")
    weight: float = identity(1.0, "samples of it for each one of the first data set", gt=0)


class Loader(Section):
    """How fast samples are read; never which."""

    threads: int = placement(0, "decoding threads of each worker; 0 is one for each CPU of the worker", ge=0)
    io_threads: int = placement(8, "concurrent reads of each worker", ge=1)
    prefetch_batches: int = placement(4, "most batches prepared ahead", ge=1)
    prefetch_mb: float = placement(
        128.0, "most that a worker reads and prepares ahead: batches up to half of it, row groups the rest", gt=0
    )
    memory: Literal["none", "encoded", "decoded"] = placement(
        "none", "what a worker keeps of the training split from epoch to epoch: nothing | row groups | decoded images"
    )
    memory_gb: float = placement(
        4.0, "most that a worker's blocks, prefetch and kept data may take; checked before the start", gt=0
    )
    error_budget: float = resumable(0.001, "share of undecodable images above which a run stops", ge=0, le=1)


class Checkpoint(Section):
    """When training state becomes durable."""

    every_s: float = resumable(300.0, "seconds between commits, besides the one at each epoch's end", gt=0)
    keep: int = resumable(2, "newest commits kept", ge=2)
    background: bool = placement(True, "training goes on while a commit is written; takes memory for two copies of it")


class Config(Section):
    """Everything that defines a run, and where it happens."""

    root: ClassVar[bool] = True

    schema_version: Literal[1] = identity(SCHEMA_VERSION, "version of this schema")
    recipe: str = identity(..., "the recipe this began as")
    name: str = placement(..., "name of the run: a folder below storage", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    data: str = placement(..., "address of the data set: a folder or s3://bucket/prefix")
    mixture: dict[str, Source] = identity({}, "more data sets to train on, by name: see docs/data.md")
    storage: str = placement("runs", "where runs are kept: a folder or s3://bucket/prefix")
    runtime: Literal["ray", "local"] = placement("ray", "ray | local (this process alone, or under torchrun)")
    seed: int = identity(0, "seed of the order, the augmentation and the initial weights", ge=0)
    epochs: int = resumable(10, "epochs to train; the schedule ends with them", ge=1)
    global_batch: int = identity(256, "samples of one step, over all workers", ge=1)
    max_micro_batch: int | None = placement(
        None, "most samples of one forward pass on a worker; more are accumulated, with the same result", ge=1
    )
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = identity(
        "fp32", "exact fp32 | products in TF32 (GPUs) | forward passes in bf16 | in fp16, with scaled losses"
    )
    compile: bool = placement(False, "compile the backbone (torch.compile): minutes at the start, then faster on GPUs")
    overfit_batch: bool = identity(False, "train on the first global batch over and over: can the model learn it?")
    deterministic: bool = placement(True, "bit-identical reruns on the same number of workers (slower on GPUs)")
    max_hours: float | None = placement(None, "hours after which the job commits and stops; None never", gt=0)
    profile: bool = placement(False, "watch ten steps: a trace in profile/ of the run, and in words where time goes")
    log_every_s: float = placement(5.0, "seconds between progress lines", gt=0)
    tasks: dict[str, Task] = identity(..., "the tasks, by name")
    augment: Augment = identity(Augment(), "augmentation")
    model: Model = identity(Model(), "model")
    optimizer: Optimizer = identity(Optimizer(), "optimizer")
    balancing: Balancing = identity(Balancing(), "how losses become one")
    order: Order = identity(Order(), "sample order")
    rebalance: Rebalance = identity(Rebalance(), "rows of rare classes more than once an epoch")
    evaluation: Evaluation = resumable(Evaluation(), "evaluation")
    checkpoint: Checkpoint = resumable(Checkpoint(), "checkpoints")
    loader: Loader = placement(Loader(), "loader")
    tracking: Tracking = placement(Tracking(), "where metrics go")
    resources: Resources = placement(Resources(), "resources")

    @model_validator(mode="after")
    def _cross(self) -> Self:
        problems = list(_contradictions(self))
        if problems:
            raise ConfigError(
                "The configuration contradicts itself.",
                got=listed(problems),
                expected="values that fit each other",
                do="change one value of each line",
            )
        return self

    def search_space(self) -> dict[str, Search]:
        """What a sweep varies unless told otherwise, by dotted name, as the fields declare it."""
        return searchable(self)

    def to_yaml(self) -> str:
        """This configuration as YAML that `load` reads back to an equal value."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _contradictions(config: Config) -> Iterator[str]:
    lanes, batch = config.order.lanes, config.global_batch
    if not config.tasks:
        yield "tasks is empty: at least one task is needed"
    if config.tasks and not any(task.weight > 0 for task in config.tasks.values()):
        yield "every task has weight 0: nothing would be trained"
    if batch % lanes:
        yield f"global_batch ({batch}) must be a multiple of order.lanes ({lanes})"
    for name in config.mixture:
        if not _NAME.fullmatch(name):
            yield f"mixture.{name}: the name must be a letter, then letters, digits, '_' or '-'"
    if len(config.mixture) >= lanes:
        yield f"mixture ({len(config.mixture)} and the first data set) needs as many order.lanes ({lanes}) at least"
    if config.mixture and config.order.keep_tail:
        yield "order.keep_tail does not go with mixture: proportions would not be exact"
    yield from _elastic(config)
    if config.resources.workers > lanes:
        yield f"resources.workers ({config.resources.workers}) must be at most order.lanes ({lanes})"
    if config.model.batch_norm == "groups":
        groups = config.model.batch_norm_groups
        if groups % config.resources.workers:
            yield (
                f"resources.workers ({config.resources.workers}) must divide model.batch_norm_groups ({groups}); "
                "or choose another model.batch_norm"
            )
        if lanes % groups:
            yield f"model.batch_norm_groups ({groups}) must divide order.lanes ({lanes})"
        elif batch // groups < 16:
            yield f"global_batch ({batch}) gives each of {groups} batch-norm groups fewer than 16 samples"
        elif config.max_micro_batch is not None and config.max_micro_batch < batch // groups:
            yield f"max_micro_batch ({config.max_micro_batch}) must hold a batch-norm group ({batch // groups} samples)"
    model, sharing = config.model, config.model.sharing
    if model.pooling == "attention" and sharing.pattern in ("mmoe", "cgc", "ple"):
        yield f"model.pooling=attention needs feature maps, and the experts of {sharing.pattern} read features"
    if model.init_partial and model.init_from is None:
        yield "model.init_partial says what model.init_from may lack: set that too"
    for name in config.optimizer.head_lr:
        if name not in config.tasks:
            yield f"optimizer.head_lr names '{name}', which is none of the tasks: {', '.join(config.tasks)}"
    if config.model.batch_norm == "sync" and not config.resources.gpu:
        yield "model.batch_norm=sync needs GPUs (resources.gpu); on CPUs use groups"
    limit, workers = config.max_micro_batch, config.resources.workers
    if config.model.batch_norm == "sync" and limit is not None and batch % lanes == 0:
        parts = {-(-batch // lanes * n // limit) for n in (max(lanes // workers, 1), -(-lanes // workers))}
        if len(parts) > 1:
            yield f"model.batch_norm=sync and max_micro_batch ({limit}) need workers that divide order.lanes ({lanes})"
    if config.precision == "tf32" and not config.resources.gpu:
        yield "precision=tf32 needs GPUs (resources.gpu): CPUs know no TF32"
    yield from contradictions(config.evaluation, config.tasks)
    yield from impossible_rebalancing(config.rebalance, config.tasks)
    if config.compile and sharing.pattern in ("mtan", "cross-stitch"):
        yield f"compile needs a backbone that runs in one piece, which {sharing.pattern} takes apart"
    if config.resources.accelerator and not config.resources.gpu:
        yield f"resources.accelerator ({config.resources.accelerator}) needs GPUs (resources.gpu)"
    augment = config.augment
    if (augment.mixup or augment.cutmix) and batch < 2 * lanes:
        yield f"augment.mixup, cutmix mix within lanes: global_batch ({batch}) must be twice order.lanes ({lanes})"
    if config.overfit_batch and (augment.mixup or augment.cutmix or augment.erase):
        yield "overfit_batch shows the same pixels at every step: set augment.mixup, cutmix and erase to 0"
    if config.overfit_batch and augment.grow_from_px is not None:
        yield f"overfit_batch shows images of one size: leave out augment.grow_from_px ({augment.grow_from_px})"
    if config.loader.memory == "decoded" and augment.crop == "resized":
        yield "loader.memory=decoded can not keep what augment.crop=resized cuts from images of any size: use encoded"
    recolours = augment.brightness or augment.contrast or augment.saturation
    for name, task in config.tasks.items():
        if not _NAME.fullmatch(name):
            yield f"tasks.{name}: the name must be a letter, then letters, digits, '_' or '-'"
        fine = config.tasks.get(task.group_of or "")
        if task.group_of and (fine is None or fine is task or fine.kind != "multiclass"):
            yield f"tasks.{name}.group_of ({task.group_of}) must name another task, of kind multiclass"
        if task.flip == "refuse" and augment.flip:
            yield f"augment.flip ({augment.flip}) would falsify task '{name}' (flip=refuse): set it to 0"
        if task.crop == "refuse" and augment.crop == "resized":
            yield f"augment.crop=resized would falsify task '{name}' (crop=refuse): use none or padded"
        if task.colour == "refuse" and recolours:
            yield f"augment.brightness, contrast, saturation would falsify task '{name}' (colour=refuse): set them to 0"


def _elastic(config: Config) -> Iterator[str]:
    resources, model = config.resources, config.model
    least, most = resources.min_workers, resources.workers
    if least is None:
        return
    if least > most:
        yield f"resources.min_workers ({least}) must be at most resources.workers ({most})"
    if config.runtime != "ray":
        yield f"resources.min_workers ({least}) needs runtime=ray: nobody else starts workers anew"
    wrong = [n for n in range(least, most) if model.batch_norm_groups % n]
    if model.batch_norm == "groups" and wrong:
        yield f"resources.min_workers ({least}): {wrong[0]} workers do not divide model.batch_norm_groups"
    if model.batch_norm == "sync" and config.max_micro_batch is not None:
        yield f"resources.min_workers ({least}) and max_micro_batch do not go with model.batch_norm=sync"


def load(path: Path) -> Config:
    """Read a configuration saved by a run, or written by hand.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not fit the schema.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The configuration {path} can not be read.",
            got=error.strerror if isinstance(error, OSError) else str(error),
            expected="a text file: YAML in UTF-8",
            do="name a config.yaml that a run saved, or one of your own",
        ) from error
    try:
        return parse(text)
    except ConfigError as error:
        what = f"{path}: {error.what}"
        raise ConfigError(what, got=error.got, expected=error.expected, do=error.do) from error


def parse(text: str) -> Config:
    """Read a configuration from YAML text.

    Raises:
        ConfigError: it is not YAML, or does not fit the schema.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            "The configuration is not YAML.",
            got=" ".join(str(error).split()),
            expected="keys and values, as in the config.yaml of a run",
            do="mend that line",
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            "The configuration holds no keys.",
            got=f"{type(values).__name__}: {str(values)[:60]}",
            expected="keys and values, as in the config.yaml of a run",
            do="name another file, or write the keys",
        )
    try:
        return Config.model_validate(values, context=WHOLE)
    except ValidationError as error:
        raise invalid(Config, error) from error
