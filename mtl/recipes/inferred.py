"""Any data set: tasks are read from its manifest (--data URI) and written as YAML for you to edit.

command   python jobs/train.py auto --data URI
hardware  whatever is there: size and model go by the images, two workers without a GPU unless told otherwise
"""

import re

from mtl.config import Augment, Config, Model, Optimizer, Order, Task, TaskKind
from mtl.data.manifest import LabelKind, Manifest
from mtl.errors import ConfigError

_KINDS: dict[LabelKind, TaskKind] = {
    "class": "multiclass",
    "binary": "binary",
    "angle": "circular",
    "real": "regression",
    "set": "multilabel",
    "vector": "regression",
    "soft": "soft",
}
_NAMES: tuple[LabelKind, ...] = ("class", "binary", "set", "soft")
"""Kinds of label that a mirror most likely leaves true."""


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
    flip = 0.5 if all(label.kind in _NAMES for label in manifest.labels.values()) else 0.0
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
        augment=Augment(size_px=size, crop="padded", flip=flip, eval_resize_px=size)
        if small
        else Augment(size_px=size, crop="resized", crop_scale=(0.6, 1.0), flip=flip, eval_resize_px=size * 8 // 7),
        model=own if small else Model(backbone="resnet18"),
        optimizer=Optimizer(name="adam", lr=1e-3, warmup_epochs=1),
        order=Order(lanes=16, block_row_groups=None if rows <= 100_000 else 8),
    )
