"""Named, complete configurations: what to run, on what, for how long, and what to expect."""

import re

from mtl.config import Augment, Config, Model, Optimizer, Order, Resources, Task, TaskKind
from mtl.data.manifest import LabelKind, Manifest
from mtl.errors import ConfigError

SHAPES = Config(
    recipe="shapes",
    name="shapes",
    data="data/shapes",
    epochs=7,
    global_batch=64,
    tasks={
        "shape": Task(kind="multiclass", label="shape", weight=2.0, crop="refuse"),
        "colour": Task(kind="multiclass", label="colour", crop="refuse"),
        "count": Task(kind="multiclass", label="count", crop="refuse"),
        "rotation": Task(kind="circular", label="rotation", flip="negate", crop="refuse"),
        "touching": Task(kind="binary", label="touching", crop="refuse"),
    },
    augment=Augment(size_px=64, crop="none", eval_resize_px=64),
    model=Model(backbone="mtl.model.resnet9:resnet9", backbone_args={"width": 16, "norm": "group", "stem_stride": 2}),
    optimizer=Optimizer(name="adam", lr=4e-3, warmup_epochs=1),
    order=Order(lanes=16, block_row_groups=None),
    resources=Resources(workers=2),
)
"""Five different tasks on the embedded data set: what `make demo` runs, on two CPU cores."""

CIFAR10 = Config(
    recipe="cifar10",
    name="cifar10",
    data="data/cifar10",
    epochs=12,
    global_batch=256,
    tasks={
        "object": Task(kind="multiclass", label="object", label_smoothing=0.1),
        "kind": Task(kind="binary", label="kind", weight=0.5),
    },
    augment=Augment(size_px=32, crop="padded", eval_resize_px=32),
    model=Model(backbone="mtl.model.resnet9:resnet9", backbone_args={"width": 16, "norm": "batch"}),
    optimizer=Optimizer(name="sgd", lr=0.2, momentum=0.9, weight_decay=5e-4, warmup_epochs=2, schedule="linear"),
    order=Order(lanes=16, block_row_groups=None),
    resources=Resources(workers=2),
)
"""CIFAR-10 as two tasks: the object, and whether it is an animal or a vehicle."""

RECIPES: dict[str, Config] = {config.recipe: config for config in (SHAPES, CIFAR10)}

ABOUT: dict[str, str] = {
    "shapes": "five tasks on drawn images of 64 px; the demo: two CPU cores, about two minutes",
    "cifar10": "CIFAR-10 as object (10 classes) and kind (animal or vehicle); two CPU cores, about 15 minutes",
    "auto": "any data set: tasks are read from its manifest (--data URI) and written as YAML for you to edit",
}

_KINDS: dict[LabelKind, TaskKind] = {
    "class": "multiclass",
    "binary": "binary",
    "angle": "circular",
    "real": "regression",
}


def get(name: str) -> Config:
    """The recipe called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in RECIPES:
        listed = "\n            ".join(f"{known:<10}{about}" for known, about in ABOUT.items())
        raise ConfigError(
            f"There is no recipe '{name}'.", got=name, expected=listed, do="python jobs/train.py --help shows examples"
        )
    return RECIPES[name]


def auto(data: str, manifest: Manifest) -> Config:
    """A sensible configuration for the data set `manifest` at `data`: one task for each of its labels.

    Nothing is known of the labels, so augmentation is careful: images are mirrored only where all labels are classes,
    and crops keep most of the image.
    """
    if not manifest.labels:
        raise ConfigError(
            f"The data set at {data} has no label columns.",
            got="images alone",
            expected="at least one label",
            do="write it with labels: jobs/prepare.py",
        )
    short = min(manifest.image_px)
    size = 32 if short < 48 else 64 if short < 96 else 128 if short < 192 else 224
    tasks = {name: Task(kind=_KINDS[label.kind], label=name) for name, label in manifest.labels.items()}
    classes_only = all(label.kind in ("class", "binary") for label in manifest.labels.values())
    rows = manifest.split("train").rows
    batch = 256 if rows >= 8192 else 64 if rows >= 640 else 32
    small = size <= 64
    own = Model(backbone="mtl.model.resnet9:resnet9", backbone_args={"width": 32, "stem_stride": 1 if size < 64 else 2})
    return Config(
        recipe="auto",
        name=re.sub(r"[^a-z0-9._-]+", "-", manifest.name.lower()).strip("-._")[:63] or "auto",
        data=data,
        epochs=20,
        global_batch=batch,
        tasks=tasks,
        augment=Augment(
            size_px=size,
            crop="padded" if small else "resized",
            crop_scale=(0.6, 1.0),
            flip=0.5 if classes_only else 0.0,
            eval_resize_px=size if small else size * 8 // 7,
        ),
        model=own if small else Model(backbone="resnet18"),
        optimizer=Optimizer(name="adam", lr=1e-3, warmup_epochs=1),
        order=Order(lanes=16, block_row_groups=None if rows <= 100_000 else 8),
    )
