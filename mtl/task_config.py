"""What a person says of a task: its kind and label, its loss and metrics, and what its label survives. Torch-free."""

from typing import Literal, Self

from pydantic import model_validator

from mtl.errors import ConfigError
from mtl.schema import Arguments, Section, identity

TaskKind = Literal["multiclass", "soft", "binary", "multilabel", "ordinal", "circular", "regression"]

_YES_OR_NO = {
    "bce": ("pos_weight", "balanced"),
    "focal": ("gamma", "alpha"),
    "asymmetric": ("gamma_positive", "gamma_negative", "margin"),
}

LOSSES: dict[TaskKind, dict[str, tuple[str, ...]]] = {
    "multiclass": {
        "cross_entropy": ("class_weights", "balanced"),
        "focal": ("gamma", "class_weights", "balanced"),
        "hierarchical": ("alpha",),
        "tree_labels": ("beta",),
    },
    "soft": {"kl": ()},
    "binary": _YES_OR_NO,
    "multilabel": _YES_OR_NO,
    "ordinal": {"cumulative": (), "coral": ()},
    "circular": {"pointer": ()},
    "regression": {"l2": (), "l1": (), "huber": ("delta",)},
}
"""The losses of each kind of task, the default one first, with the options that each has. mtl/losses makes them."""

WITH_CLASSES: tuple[TaskKind, ...] = ("multiclass", "soft", "multilabel", "ordinal")
"""Kinds whose label has named classes."""

ON_TREES = ("hierarchical", "tree_labels")
"""Losses that need `tree`."""

_CLASSES = {"accuracy": True, "precision": True, "recall": True, "f1": True, "loss": False}

METRICS: dict[TaskKind, dict[str, bool]] = {
    "multiclass": _CLASSES,
    "soft": {"kl": False, "accuracy": True, "loss": False},
    "binary": _CLASSES,
    "multilabel": {"f1": True, "f1_micro": True, "precision": True, "recall": True, "accuracy": True, "loss": False},
    "ordinal": {"mae": False, "accuracy": True, "within_1": True, "kappa": True, "loss": False},
    "circular": {"error_degrees": False, "within_15_degrees": True, "loss": False},
    "regression": {"mae": False, "rmse": False, "r2": True, "loss": False},
}
"""The metrics of each kind of task, the primary one first, and whether larger is better; mtl/tasks computes them."""

_RANKED = {"auroc": True, "map": True, "ece": False}

FURTHER: dict[TaskKind, dict[str, bool]] = {
    "multiclass": {"top5": True, **_RANKED},
    "soft": {},
    "binary": _RANKED,
    "multilabel": _RANKED,
    "ordinal": {},
    "circular": {},
    "regression": {},
}
"""The metrics that a task has if it asks for them, and whether larger is better."""

PLAIN = ("mae", "rmse", "r2", "kl", "kappa", "mistake_severity")
"""Metrics that are no share of anything: people read them as numbers, others as percent."""

BY_SCORE = ("auroc", "map")
"""Metrics that no sums give: they need every score of a split at once."""

EACH = "each"
_EACH: tuple[TaskKind, ...] = ("multiclass", "multilabel", "regression")
"""Kinds that can list the metrics of each class or component by itself."""


class Loss(Section):
    """The loss of a task and its options. An option that is None has the default in brackets."""

    name: str | None = identity(
        None, "a loss of the task's kind (docs/tasks.md), or module:callable of your own; None takes the kind's first"
    )
    class_weights: tuple[float, ...] | None = identity(None, "cross_entropy, focal of multiclass: one for each class")
    pos_weight: tuple[float, ...] | None = identity(None, "bce: weight of a yes, one or one for each class")
    balanced: bool = identity(
        False,
        "those weights from the training rows: rows / (classes x rows of the class), or of no / of yes",
    )
    gamma: float | None = identity(None, "focal: how much easy samples fade [2]", ge=0)
    alpha: float | None = identity(
        None, "focal: weight of a yes, a no has 1 - alpha [none]; hierarchical: how fast upper levels fade [0.1]", ge=0
    )
    beta: float | None = identity(None, "tree_labels: how sharply targets fall with distance in the tree [10]", gt=0)
    gamma_positive: float | None = identity(None, "asymmetric: focus where the answer is yes [1]", ge=0)
    gamma_negative: float | None = identity(None, "asymmetric: focus where the answer is no [4]", ge=0)
    margin: float | None = identity(None, "asymmetric: a no this sure costs nothing [0.05]", ge=0, lt=1)
    delta: float | None = identity(None, "huber: where it turns linear, in half ranges of the label [1]", gt=0)
    args: Arguments = identity({}, "keyword arguments of a loss of your own")

    def given(self) -> list[str]:
        """The options that are set."""
        return [name for name in Loss.model_fields if name != "name" and getattr(self, name) not in (None, False, {})]


class Task(Section):
    """One task: a label column, the kind of answer, and what its label survives."""

    kind: TaskKind = identity(
        ...,
        "multiclass | soft (class probabilities) | binary | multilabel | ordinal | circular (an angle) | regression",
    )
    label: str = identity(..., "label column of the data set; multilabel: or several binary ones, 'smiles,young'")
    classes: int | None = identity(None, "number of classes; None takes it from the data set's manifest", ge=2)
    weight: float = identity(1.0, "weight of this task's loss in the sum", search="simplex", ge=0)
    label_smoothing: float = identity(
        0.0, "share of the target spread over all classes (multiclass, cross_entropy)", ge=0, lt=1
    )
    loss: Loss = identity(Loss(), "loss")
    metrics: tuple[str, ...] = identity(
        (), "further metrics: top5, ece, auroc, map; each lists every class or component by itself, in JSON only"
    )
    tree: str | None = identity(
        None, "multiclass: a file class,path, or label columns from broad to fine; adds the metric mistake_severity"
    )
    group_of: str | None = identity(
        None, "multiclass: the task whose classes this one groups; adds the metric consistency, of both predictions"
    )
    flip: Literal["keep", "negate", "refuse"] = identity(
        "keep", "what a mirrored image does to the label: nothing, the angle or number changes sign, or it is false"
    )
    flip_components: tuple[int, ...] = identity((), "flip=negate: only these components of a vector change sign")
    crop: Literal["keep", "refuse"] = identity("keep", "whether the label stays true of a part of the image")
    colour: Literal["keep", "refuse"] = identity("keep", "whether the label survives changes of colour and light")

    @property
    def columns(self) -> tuple[str, ...]:
        """The label columns that the task reads."""
        return tuple(part.strip() for part in self.label.split(",")) if self.kind == "multilabel" else (self.label,)

    @property
    def class_count(self) -> int | None:
        """The number of classes, as far as the configuration says it."""
        return self.classes or (len(self.columns) if len(self.columns) > 1 else None)

    def further(self) -> dict[str, bool]:
        """The metrics beside those of its kind, and whether larger is better."""
        asked = {name: better for name, better in FURTHER[self.kind].items() if name in self.metrics}
        return (
            asked
            | ({"mistake_severity": False} if self.tree else {})
            | ({"consistency": True} if self.group_of else {})
        )

    @property
    def loss_name(self) -> str:
        """The loss, by name."""
        return self.loss.name or next(iter(LOSSES[self.kind]))

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        if self.flip == "negate" and self.kind not in ("circular", "regression"):
            raise self._misplaced("flip=negate", "circular or regression")
        if self.flip_components and (self.flip != "negate" or self.kind != "regression"):
            raise self._misplaced("flip_components", "regression with flip=negate")
        if self.classes is not None and self.kind not in WITH_CLASSES:
            raise self._misplaced("classes", ", ".join(WITH_CLASSES))
        for option in ("label_smoothing", "tree", "group_of"):
            if getattr(self, option) and self.kind != "multiclass":
                raise self._misplaced(option, "multiclass")
        self._check_loss()
        known = [*FURTHER[self.kind], *([EACH] if self.kind in _EACH else [])]
        if unknown := [name for name in self.metrics if name not in known]:
            raise ConfigError(
                f"The task with label '{self.label}' can not have these metrics.",
                got=", ".join(unknown),
                expected=f"of {', '.join(known)}" if known else f"none: kind {self.kind} has no further ones",
                do=f"leave them out; it always has {', '.join(METRICS[self.kind])}",
            )
        return self

    def _check_loss(self) -> None:
        losses, name = LOSSES[self.kind], self.loss_name
        if name not in losses and ":" not in name:
            raise ConfigError(
                f"The task with label '{self.label}' can not have this loss.",
                got=f"{name}, for kind {self.kind}",
                expected=f"{', '.join(losses)}, or module:callable of your own",
                do="set loss.name to one of them",
            )
        options = losses.get(name, ("args",))
        if unread := [option for option in self.loss.given() if option not in options]:
            raise ConfigError(
                f"The loss of the task with label '{self.label}' has no such option.",
                got=f"{', '.join(unread)}, with {name} of kind {self.kind}",
                expected=f"of {', '.join(options)}" if options else f"none: {name} has no options",
                do="leave it out, or choose the loss that it belongs to (docs/tasks.md)",
            )
        if self.label_smoothing and name != "cross_entropy":
            raise ConfigError(
                f"The loss of the task with label '{self.label}' has no label_smoothing.",
                got=f"label_smoothing {self.label_smoothing}, with {name}",
                expected="the loss cross_entropy",
                do="leave label_smoothing out",
            )
        if self.loss.balanced and (self.loss.class_weights or self.loss.pos_weight):
            raise ConfigError(
                f"The loss of the task with label '{self.label}' has its weights twice.",
                got="loss.balanced, and weights",
                expected="one of them",
                do="leave one out",
            )
        if name in ON_TREES and self.tree is None:
            raise ConfigError(
                f"The loss of the task with label '{self.label}' needs a tree of its classes.",
                got=f"{name}, without tree",
                expected="a file class,path, or label columns from broad to fine",
                do="set tree",
            )
        if name == "focal" and (self.loss.alpha or 0) > 1:
            raise ConfigError(
                f"The loss of the task with label '{self.label}' has another range.",
                got=f"alpha {self.loss.alpha}, with focal",
                expected="at most 1",
                do="lower loss.alpha",
            )

    def _misplaced(self, option: str, kinds: str) -> ConfigError:
        return ConfigError(
            f"{option} does not fit the kind of the task with label '{self.label}'.",
            got=f"kind {self.kind}",
            expected=f"kind {kinds}",
            do=f"change the kind, or leave {option} out",
        )
