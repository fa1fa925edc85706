"""The typed configuration of a run: strict, frozen, torch-free, saved with every run and loadable back.

Every field has a role, which says what a resumed run may change:

    identity    decides the result; changing it makes another run
    resumable   may change between attempts (schedules' ends, cadences): the change is shown and recorded
    placement   where and how fast, never what: may always change
"""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from mtl.errors import ConfigError

SCHEMA_VERSION = 1

Role = Literal["identity", "resumable", "placement"]
TaskKind = Literal["multiclass", "binary", "circular", "regression"]


def _identity(default: Any, help: str, **limits: Any) -> Any:
    return Field(default, description=help, json_schema_extra={"role": "identity"}, **limits)


def _resumable(default: Any, help: str, **limits: Any) -> Any:
    return Field(default, description=help, json_schema_extra={"role": "resumable"}, **limits)


def _placement(default: Any, help: str, **limits: Any) -> Any:
    return Field(default, description=help, json_schema_extra={"role": "placement"}, **limits)


_TASK_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")  # part of flags, metrics' names and files
_WHOLE = "whole"  # context of a validation that begins at the root, and so knows every key's path


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _readable(cls, values: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        # A ConfigError is no ValidationError, so it reaches the user as it is through pydantic and tyro alike.
        try:
            return handler(values)
        except ValidationError as error:
            if info.context == _WHOLE:
                raise
            raise _invalid(cls, error) from error


class Task(_Strict):
    """One task: a label column, the kind of answer, and what its label survives."""

    kind: TaskKind = _identity(..., "multiclass | binary | circular (an angle) | regression (a number)")
    label: str = _identity(..., "label column of the data set")
    classes: int | None = _identity(None, "number of classes; None takes it from the data set's manifest", ge=2)
    weight: float = _identity(1.0, "weight of this task's loss in the sum", ge=0)
    label_smoothing: float = _identity(0.0, "share of the target spread over all classes (multiclass)", ge=0, lt=1)
    flip: Literal["keep", "negate", "refuse"] = _identity(
        "keep", "what a mirrored image does to the label: nothing, the angle changes sign, or it is no longer true"
    )
    crop: Literal["keep", "refuse"] = _identity("keep", "whether the label stays true of a part of the image")
    colour: Literal["keep", "refuse"] = _identity("keep", "whether the label survives changes of colour and light")

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


class Augment(_Strict):
    """Pixels in: training augmentation and the evaluation view. Standardisation is the data set's own."""

    size_px: int = _identity(224, "side of the square image that the model sees", ge=8)
    crop: Literal["none", "resized", "padded"] = _identity(
        "resized", "training view: whole image resized | random part resized | random shift within a padded border"
    )
    crop_scale: tuple[float, float] = _identity((0.35, 1.0), "share of the area that a resized crop keeps")
    crop_ratio: tuple[float, float] = _identity((0.75, 4 / 3), "aspect ratio of a resized crop")
    crop_pad_px: int = _identity(4, "border of a padded crop, in pixels of the final size", ge=0)
    flip: float = _identity(0.5, "probability of a horizontal mirror", ge=0, le=1)
    brightness: float = _identity(0.2, "brightness is multiplied by a factor within 1 +- this", ge=0, le=1)
    contrast: float = _identity(0.0, "contrast is multiplied by a factor within 1 +- this", ge=0, le=1)
    saturation: float = _identity(0.0, "saturation is multiplied by a factor within 1 +- this", ge=0, le=1)
    eval_resize_px: int = _identity(256, "evaluation: short side before the centre crop to size_px", ge=8)

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


class Model(_Strict):
    """A backbone that all tasks share, and one head for each."""

    backbone: str = _identity("resnet18", "a torchvision model name, or module:callable of your own")
    backbone_args: dict[str, int | float | str | bool] = _identity({}, "keyword arguments of the backbone")
    head_hidden: int = _identity(0, "hidden units of each head; 0 is a linear head", ge=0)
    dropout: float = _identity(0.0, "dropout before each head", ge=0, lt=1)
    batch_norm: Literal["groups", "sync", "local", "frozen"] = _identity(
        "groups",
        "statistics over fixed groups of lanes | all workers (GPU) | each worker's own batch | stored ones only",
    )
    batch_norm_groups: int = _identity(2, "number of groups; the worker count must divide it", ge=1)


class Optimizer(_Strict):
    """The optimizer and its schedule; lengths are in epochs of samples, so worker counts do not matter."""

    name: Literal["sgd", "adam", "adamw"] = _identity("adam", "sgd (Nesterov momentum) | adam | adamw")
    lr: float = _identity(1e-3, "peak learning rate, for the global batch", gt=0)
    momentum: float = _identity(0.9, "momentum of sgd; first beta of adam", ge=0, lt=1)
    weight_decay: float = _identity(0.0, "not applied to biases and norms", ge=0)
    warmup_epochs: float = _identity(0.0, "linear warm-up from zero", ge=0)
    schedule: Literal["cosine", "linear", "constant"] = _identity("cosine", "after the warm-up")
    clip_norm: float | None = _identity(None, "largest norm of the whole gradient", gt=0)


class Order(_Strict):
    """The order of samples: see docs/data.md."""

    lanes: int = _identity(16, "fixed virtual readers; bounds the number of workers", ge=1)
    block_row_groups: int | None = _identity(
        8, "row groups shuffled together in a lane; None makes a lane's whole epoch one block (small data sets)", ge=1
    )
    keep_tail: bool = _identity(False, "train on the last, incomplete global batch too")


class Loader(_Strict):
    """How fast samples are read; never which."""

    threads: int = _placement(0, "decoding threads of each worker; 0 is one for each CPU of the worker", ge=0)
    io_threads: int = _placement(8, "concurrent reads of each worker", ge=1)
    prefetch_batches: int = _placement(4, "batches prepared ahead", ge=1)
    memory_gb: float = _placement(4.0, "most that a worker's read-ahead may hold; checked before the start", gt=0)
    error_budget: float = _resumable(0.001, "share of undecodable images above which a run stops", ge=0, le=1)


class Resources(_Strict):
    """What each worker gets."""

    workers: int = _placement(2, "data-parallel workers", ge=1)
    cpus_per_worker: int = _placement(1, "CPU cores of each worker", ge=1)
    gpu: bool = _placement(False, "one GPU for each worker")
    address: str | None = _placement(None, "Ray cluster to join; None joins the one at hand or starts one here")
    max_failures: int = _placement(3, "worker group restarts after failures", ge=0)


class Checkpoint(_Strict):
    """When training state becomes durable."""

    every_s: float = _resumable(300.0, "seconds between commits, besides the one at each epoch's end", gt=0)
    keep: int = _resumable(2, "commits kept", ge=2)


class Config(_Strict):
    """Everything that defines a run, and where it happens."""

    schema_version: Literal[1] = _identity(SCHEMA_VERSION, "version of this schema")
    recipe: str = _identity(..., "the recipe this began as")
    name: str = _placement(..., "name of the run: a folder below storage", pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    data: str = _placement(..., "address of the data set: a folder or s3://bucket/prefix")
    storage: str = _placement("runs", "where runs are kept: a folder or s3://bucket/prefix")
    runtime: Literal["ray", "local"] = _placement("ray", "ray | local (this process alone, or under torchrun)")
    seed: int = _identity(0, "seed of the order, the augmentation and the initial weights", ge=0)
    epochs: int = _resumable(10, "epochs to train; the schedule ends with them", ge=1)
    global_batch: int = _identity(256, "samples of one step, over all workers", ge=1)
    max_micro_batch: int | None = _placement(
        None, "most samples of one forward pass on a worker; more are accumulated, with the same result", ge=1
    )
    deterministic: bool = _placement(True, "bit-identical reruns on the same number of workers (slower on GPUs)")
    log_every_s: float = _placement(5.0, "seconds between progress lines", gt=0)
    tasks: dict[str, Task] = _identity(..., "the tasks, by name")
    augment: Augment = _identity(Augment(), "augmentation")
    model: Model = _identity(Model(), "model")
    optimizer: Optimizer = _identity(Optimizer(), "optimizer")
    order: Order = _identity(Order(), "sample order")
    checkpoint: Checkpoint = _resumable(Checkpoint(), "checkpoints")
    loader: Loader = _placement(Loader(), "loader")
    resources: Resources = _placement(Resources(), "resources")

    @model_validator(mode="after")
    def _cross(self) -> Self:
        problems = list(_contradictions(self))
        if problems:
            raise ConfigError(
                "The configuration contradicts itself.",
                got=_listed(problems),
                expected="values that fit each other",
                do="change one value of each line",
            )
        return self

    def to_yaml(self) -> str:
        """This configuration as YAML that `load` reads back to an equal value."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


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
        return Config.model_validate(values, context=_WHOLE)
    except ValidationError as error:
        raise _invalid(Config, error) from error


def _invalid(model: type[BaseModel], error: ValidationError) -> ConfigError:
    section = "" if model is Config else f"{model.__name__.lower()}."
    got: list[str] = []
    expected: list[str] = []
    for item in error.errors():
        where = section + ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            valid = _keys(model, item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), valid, n=1)
            got.append(f"{where}: no such key" + (f"; did you mean {near[0]}?" if near else ""))
            expected.append(f"one of {', '.join(valid)}")
        elif item["type"] == "missing":
            got.append(f"{where} is missing")
            expected.append(f"a value for {where}")
        else:
            got.append(f"{where}: {item.get('input')!r}")
            expected.append(f"{where}: {item['msg'].removeprefix('Input should be ')}")
    return ConfigError(
        "The configuration is not valid.",
        got=_listed(got),
        expected=_listed(expected),
        do="python jobs/train.py RECIPE --help explains every key",
    )


def _keys(model: Any, path: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at `path` below `model`."""
    for part in path:
        model = get_args(model)[1] if get_origin(model) is dict else model.model_fields[part].annotation
    return list(model.model_fields)


def _listed(problems: list[str]) -> str:
    return ("\n" + " " * 12).join(problems)


def differences(old: Config, new: Config) -> dict[str, tuple[Role, object, object]]:
    """Fields that differ, by dotted name: (role, old value, new value)."""
    return dict(_differences(old, new, ""))


def _differences(old: BaseModel, new: BaseModel, prefix: str) -> Iterator[tuple[str, tuple[Role, object, object]]]:
    for name, field in type(old).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        if before == after:
            continue
        if isinstance(before, BaseModel) and isinstance(after, type(before)):
            yield from _differences(before, after, f"{prefix}{name}.")
        elif isinstance(old, Config) and isinstance(new, Config) and name == "tasks" and set(before) == set(after):
            for task in old.tasks:
                yield from _differences(old.tasks[task], new.tasks[task], f"tasks.{task}.")
        else:
            extra = field.json_schema_extra
            assert isinstance(extra, dict)
            yield f"{prefix}{name}", (extra["role"], before, after)  # type: ignore[misc]
