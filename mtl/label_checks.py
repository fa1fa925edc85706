"""Each task against the labels that it reads, before torch is imported."""

from mtl.config import Config, Task, TaskKind
from mtl.data.derivation import tree_paths
from mtl.data.groups import groups_of
from mtl.data.manifest import Label, LabelKind, Manifest
from mtl.errors import ConfigError, DataError
from mtl.task_config import BY_SCORE

_FITS: dict[TaskKind, tuple[LabelKind, ...]] = {
    "multiclass": ("class",),
    "soft": ("soft",),
    "binary": ("binary", "class"),
    "multilabel": ("set",),
    "ordinal": ("class",),
    "circular": ("angle",),
    "regression": ("real", "angle", "vector"),
}

_SCORES_BYTES = 2 << 30
"""Most that the scores of a split may take on one worker, where a metric needs all of them."""


def check_tasks(config: Config, manifest: Manifest) -> None:
    """All tasks of a configuration; see `check_task`."""
    for name, task in config.tasks.items():
        check_task(name, task, manifest, config.tasks.get(task.group_of or ""))


def check_task(name: str, task: Task, manifest: Manifest, fine: Task | None = None) -> None:
    """Compare a task with the label columns that it reads.

    Args:
        fine: the task whose classes this one groups, if it does.

    Raises:
        DataError: a column is missing, holds ids out of range, or no label at all in training; a tree or groups can
            not be made.
        ConfigError: its kind, its number of classes or components, or a metric does not fit.
    """
    for column in task.columns:
        label = manifest.labels.get(column)
        if label is None:
            raise DataError(
                f"Task '{name}' needs a label column that the data set does not have.",
                got=column,
                expected=f"one of {', '.join(manifest.labels)}",
                do=f"set --tasks.{name}.label, or add the column to the data set",
            )
        fits: tuple[LabelKind, ...] = _FITS[task.kind] if len(task.columns) == 1 else ("binary",)
        if label.kind not in fits:
            raise ConfigError(
                f"Task '{name}' is of kind {task.kind}, which does not fit its label '{column}'.",
                got=f"a label of kind {label.kind}",
                expected=f"kind {' or '.join(fits)}",
                do=f"set --tasks.{name}.kind",
            )
        _check_ids(column, label, manifest)
        _check_labelled(name, column, manifest)
    _check_classes(name, task, manifest.labels[task.columns[0]])
    _check_scores(name, task, manifest)
    if task.tree is not None:
        tree_paths(task.tree, task.label, manifest)
    if fine is not None:
        groups_of(manifest, fine.label, task.label)


def check_mixed(config: Config, first: Manifest, key: str, other: Manifest) -> None:
    """Compare a further data set of a mixture with the first one, which `check_tasks` has passed.

    A column that it lacks is missing on all of its rows.

    Args:
        key: of the data set `other` in the configuration.

    Raises:
        DataError: it has no label of any task, or what it has means something else than in the first one.
    """
    which, train = f"the data set {other.name} ({key})", other.split("train").labels
    columns = list(dict.fromkeys(column for task in config.tasks.values() for column in task.columns))
    there = [column for column in columns if column in other.labels]
    if not any(train[column].valid for column in there):
        raise DataError(
            f"No row of the training split of {which} has a label of any task.",
            got=", ".join(other.labels) or "no labels",
            expected=f"some rows with at least one of {', '.join(columns)}",
            do=f"leave {key} out, or name its columns as the first data set does",
        )
    for column in there:
        mine, its = first.labels[column], other.labels[column]
        if mine != its:
            raise DataError(
                f"Label '{column}' of {which} is not that of the first data set, {first.name}.",
                got=_differing(its, mine),
                expected=_differing(mine, its),
                do="write one of them again with the same kind, and the same class names in the same order "
                "(jobs/prepare.py --kinds)",
            )
        _check_ids(column, its, other)
    for task in config.tasks.values():
        fine = config.tasks.get(task.group_of or "")
        if fine is None or not all(column in there and train[column].valid for column in (fine.label, task.label)):
            continue
        mine, its = (groups_of(manifest, fine.label, task.label) for manifest in (first, other))
        if at := [i for i, pair in enumerate(zip(mine, its, strict=True)) if min(pair) >= 0 and pair[0] != pair[1]]:
            names, coarse = first.labels[fine.label].classes or (), first.labels[task.label].classes or ()
            raise DataError(
                f"In {which} '{task.label}' groups the classes of '{fine.label}' otherwise than in {first.name}.",
                got=f"{names[at[0]]} in {coarse[its[at[0]]]}",
                expected=f"in {coarse[mine[at[0]]]}",
                do="mend the labels of one of them",
            )


def _differing(label: Label, other: Label) -> str:
    """What `label` is, as far as it is not what `other` is."""
    if label.kind != other.kind:
        return f"kind {label.kind}"
    mine, its = label.classes or (), other.classes or ()
    unlike = (i for i, pair in enumerate(zip(mine, its, strict=False)) if pair[0] != pair[1])
    at = next(unlike, min(len(mine), len(its)))
    return f"{len(mine)} classes, number {at} is {mine[at] if at < len(mine) else 'none'}"


def _check_classes(name: str, task: Task, label: Label) -> None:
    names = label.classes if len(task.columns) == 1 else task.columns
    have = len(names or ())
    wanted = 2 if task.kind == "binary" else task.classes or have
    if names is not None and have != wanted:
        raise ConfigError(
            f"Task '{name}' and its label '{task.label}' differ in the number of classes.",
            got=f"{wanted} in the configuration",
            expected=f"{have} in the data set ({', '.join(names[:12])}{', ...' if have > 12 else ''})",
            do=f"leave tasks.{name}.classes out, or mend the data set",
        )
    if task.flip == "negate" and label.kind == "vector" and not task.flip_components:
        raise ConfigError(
            f"Task '{name}' must say which components of '{task.label}' a mirror negates.",
            got="flip=negate, for a vector",
            expected=f"flip_components, of 0 to {have - 1} ({', '.join(names or ())})",
            do=f"set --tasks.{name}.flip-components",
        )
    if any(not 0 <= at < have for at in task.flip_components):
        raise ConfigError(
            f"Task '{name}' negates components that its label '{task.label}' does not have.",
            got=", ".join(map(str, task.flip_components)),
            expected=f"of 0 to {have - 1}" if have else "none: the label is a single number",
            do=f"mend --tasks.{name}.flip-components",
        )


def _check_labelled(name: str, column: str, manifest: Manifest) -> None:
    count = manifest.split("train").labels[column]
    if not count.valid:
        raise DataError(
            f"No row of the training split has the label '{column}' of task '{name}'.",
            got=f"{count.nulls} rows, all without it",
            expected="at least one row with it",
            do="remove the task, or label some rows",
        )


def _check_ids(column: str, label: Label, manifest: Manifest) -> None:
    top = len(label.classes or "ab")
    for split_name, split in manifest.splits.items():
        count = split.labels[column]
        if label.kind in ("class", "binary") and count.valid and not (0 <= (count.low or 0) <= (count.high or 0) < top):
            raise DataError(
                f"Label '{column}' holds class ids out of range in split '{split_name}'.",
                got=f"ids from {count.low:g} to {count.high:g}",
                expected=f"0 to {top - 1}",
                do="write the data set again with jobs/prepare.py",
            )


def _check_scores(name: str, task: Task, manifest: Manifest) -> None:
    """A metric that needs all scores keeps a float32 and an int8 for each row and class, on the worker in whole."""
    asked = [metric for metric in task.metrics if metric in BY_SCORE]
    if not asked:
        return
    classes = len(manifest.labels[task.label].classes or "a") if len(task.columns) == 1 else len(task.columns)
    rows = max(split.rows for kind, split in manifest.splits.items() if kind != "train")
    if (size := rows * classes * 5) > _SCORES_BYTES:
        raise ConfigError(
            f"The scores that metrics of task '{name}' need do not fit into memory.",
            got=f"{', '.join(asked)}: {rows:,} rows x {classes:,} classes = {size / 1e9:.1f} GB",
            expected=f"at most {_SCORES_BYTES / 1e9:.1f} GB",
            do=f"leave {' and '.join(asked)} out of tasks.{name}.metrics",
        )
