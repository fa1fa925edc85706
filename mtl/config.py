"""The typed configuration of a run: strict, frozen, torch-free, saved with every run and loadable back."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, Self

import yaml
from pydantic import ValidationError, model_validator

from mtl.errors import ConfigError
from mtl.schema import WHOLE, Search, Section, identity, invalid, listed, placement, resumable, searchable

SCHEMA_VERSION = 1

TaskKind = Literal["multiclass", "binary", "circular", "regression"]


_TASK_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")  # part of flags, metrics' names and files


class Task(Section):
    """One task: a label column, the kind of answer, and what its label survives."""

    kind: TaskKind = identity(..., "multiclass | binary | circular (an angle) | regression (a number)")
    label: str = identity(..., "label column of the data set")
    classes: int | None = identity(None, "number of classes; None takes it from the data set's manifest", ge=2)
    weight: float = identity(1.0, "weight of this task's loss in the sum", search="simplex", ge=0)
    label_smoothing: float = identity(0.0, "share of the target spread over all classes (multiclass)", ge=0, lt=1)
    flip: Literal["keep", "negate", "refuse"] = identity(
        "keep", "what a mirrored image does to the label: nothing, the angle changes sign, or it is no longer true"
    )
    crop: Literal["keep", "refuse"] = identity("keep", "whether the label stays true of a part of the image")
    colour: Literal["keep", "refuse"] = identity("keep", "whether the label survives changes of colour and light")

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if self.flip == "negate" and self.kind not in ("circular", "regression"):
            raise self._misplaced("flip=negate", "circular or regression")
        if self.label_smoothing and self.kind != "multiclass":
            raise self._misplaced("label_smoothing", "multiclass")
        if self.classes is not None and self.kind != "multiclass":
            raise self._misplaced("classes", "multiclass")
        return self

    def _misplaced(self, option: str, kinds: str) -> ConfigError:
        return ConfigError(
            f"{option} does not fit the kind of the task with label '{self.label}'.",
            got=f"kind {self.kind}",
            expected=f"kind {kinds}",
            do=f"change the kind, or leave {option} out",
        )


class Augment(Section):
    """Pixels in: training augmentation and the evaluation view. Standardisation is the data set's own."""

    size_px: int = identity(224, "side of the square image that the model sees", ge=8)
    crop: Literal["none", "resized", "padded"] = identity(
        "resized", "training view: whole image resized | random part resized | random shift within a padded border"
    )
    crop_scale: tuple[float, float] = identity((0.35, 1.0), "share of the area that a resized crop keeps")
    crop_ratio: tuple[float, float] = identity((0.75, 4 / 3), "aspect ratio of a resized crop")
    crop_pad_px: int = identity(4, "border of a padded crop, in pixels of the final size", ge=0)
    flip: float = identity(0.5, "probability of a horizontal mirror", ge=0, le=1)
    brightness: float = identity(0.2, "brightness is multiplied by a factor within 1 +- this", ge=0, le=1)
    contrast: float = identity(0.0, "contrast is multiplied by a factor within 1 +- this", ge=0, le=1)
    saturation: float = identity(0.0, "saturation is multiplied by a factor within 1 +- this", ge=0, le=1)
    eval_resize_px: int = identity(256, "evaluation: short side before the centre crop to size_px", ge=8)

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        scale, ratio = self.crop_scale, self.crop_ratio
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ConfigError(
                "augment.crop_scale is no range.", got=scale, expected="low and high, 0 < low <= high <= 1"
            )
        if not 0 < ratio[0] <= ratio[1]:
            raise ConfigError("augment.crop_ratio is no range.", got=ratio, expected="low and high, 0 < low <= high")
        if self.eval_resize_px < self.size_px:
            raise ConfigError(
                "augment.eval_resize_px is smaller than what the model sees.",
                got=self.eval_resize_px,
                expected=f"at least augment.size_px = {self.size_px}",
                do="set both: --augment.size-px and --augment.eval-resize-px",
            )
        return self


class Model(Section):
    """A backbone that all tasks share, and one head for each."""

    backbone: str = identity("resnet18", "a torchvision model name, or module:callable of your own")
    backbone_args: dict[str, int | float | str | bool] = identity({}, "keyword arguments of the backbone")
    head_hidden: int = identity(0, "hidden units of each head; 0 is a linear head", ge=0)
    dropout: float = identity(0.0, "dropout before each head", ge=0, lt=1)
    batch_norm: Literal["groups", "sync", "local", "frozen"] = identity(
        "groups",
        "statistics over fixed groups of lanes | all workers (GPU) | each worker's own batch | stored ones only",
    )
    batch_norm_groups: int = identity(2, "number of groups; the worker count must divide it", ge=1)


class Optimizer(Section):
    """The optimizer and its schedule; lengths are in epochs of samples, so worker counts do not matter."""

    name: Literal["sgd", "adam", "adamw"] = identity("adam", "sgd (Nesterov momentum) | adam | adamw")
    lr: float = identity(1e-3, "peak learning rate, for the global batch", search="log", gt=0)
    momentum: float = identity(0.9, "momentum of sgd; first beta of adam", ge=0, lt=1)
    weight_decay: float = identity(0.0, "not applied to biases and norms", ge=0)
    warmup_epochs: float = identity(0.0, "linear warm-up from zero", ge=0)
    schedule: Literal["cosine", "linear", "constant"] = identity("cosine", "after the warm-up")
    clip_norm: float | None = identity(None, "largest norm of the whole gradient", gt=0)


class Order(Section):
    """The order of samples: see docs/data.md."""

    lanes: int = identity(16, "fixed virtual readers; bounds the number of workers", ge=1)
    block_row_groups: int | None = identity(
        8, "row groups shuffled together in a lane; None makes a lane's whole epoch one block (small data sets)", ge=1
    )
    keep_tail: bool = identity(False, "train on the last, incomplete global batch too")


class Loader(Section):
    """How fast samples are read; never which."""

    threads: int = placement(0, "decoding threads of each worker; 0 is one for each CPU of the worker", ge=0)
    io_threads: int = placement(8, "concurrent reads of each worker", ge=1)
    prefetch_batches: int = placement(4, "batches prepared ahead", ge=1)
    memory_gb: float = placement(4.0, "most that a worker's read-ahead may hold; checked before the start", gt=0)
    error_budget: float = resumable(0.001, "share of undecodable images above which a run stops", ge=0, le=1)


class Resources(Section):
    """What each worker gets."""

    workers: int = placement(2, "data-parallel workers", ge=1)
    cpus_per_worker: int = placement(1, "CPU cores of each worker", ge=1)
    gpu: bool = placement(False, "one GPU for each worker")
    accelerator: str | None = placement(None, "model of the GPUs, such as L4 or A10G; None takes any", min_length=1)
    address: str | None = placement(None, "Ray cluster to join; None joins the one at hand or starts one here")
    max_failures: int = placement(3, "worker group restarts after failures", ge=0)


class Checkpoint(Section):
    """When training state becomes durable."""

    every_s: float = resumable(300.0, "seconds between commits, besides the one at each epoch's end", gt=0)
    keep: int = resumable(2, "commits kept", ge=2)


class Config(Section):
    """Everything that defines a run, and where it happens."""

    root: ClassVar[bool] = True

    schema_version: Literal[1] = identity(SCHEMA_VERSION, "version of this schema")
    recipe: str = identity(..., "the recipe this began as")
    name: str = placement(..., "name of the run: a folder below storage", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    data: str = placement(..., "address of the data set: a folder or s3://bucket/prefix")
    storage: str = placement("runs", "where runs are kept: a folder or s3://bucket/prefix")
    runtime: Literal["ray", "local"] = placement("ray", "ray | local (this process alone, or under torchrun)")
    seed: int = identity(0, "seed of the order, the augmentation and the initial weights", ge=0)
    epochs: int = resumable(10, "epochs to train; the schedule ends with them", ge=1)
    global_batch: int = identity(256, "samples of one step, over all workers", ge=1)
    max_micro_batch: int | None = placement(
        None, "most samples of one forward pass on a worker; more are accumulated, with the same result", ge=1
    )
    deterministic: bool = placement(True, "bit-identical reruns on the same number of workers (slower on GPUs)")
    log_every_s: float = placement(5.0, "seconds between progress lines", gt=0)
    tasks: dict[str, Task] = identity(..., "the tasks, by name")
    augment: Augment = identity(Augment(), "augmentation")
    model: Model = identity(Model(), "model")
    optimizer: Optimizer = identity(Optimizer(), "optimizer")
    order: Order = identity(Order(), "sample order")
    checkpoint: Checkpoint = resumable(Checkpoint(), "checkpoints")
    loader: Loader = placement(Loader(), "loader")
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
    if config.model.batch_norm == "sync" and not config.resources.gpu:
        yield "model.batch_norm=sync needs GPUs (resources.gpu); on CPUs use groups"
    if config.resources.accelerator and not config.resources.gpu:
        yield f"resources.accelerator ({config.resources.accelerator}) needs GPUs (resources.gpu)"
    augment = config.augment
    recolours = augment.brightness or augment.contrast or augment.saturation
    for name, task in config.tasks.items():
        if not _TASK_NAME.fullmatch(name):
            yield f"tasks.{name}: the name must be a letter, then letters, digits, '_' or '-'"
        if task.flip == "refuse" and augment.flip:
            yield f"augment.flip ({augment.flip}) would falsify task '{name}' (flip=refuse): set it to 0"
        if task.crop == "refuse" and augment.crop == "resized":
            yield f"augment.crop=resized would falsify task '{name}' (crop=refuse): use none or padded"
        if task.colour == "refuse" and recolours:
            yield f"augment.brightness, contrast, saturation would falsify task '{name}' (colour=refuse): set them to 0"


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
