"""CIFAR-10 as object (10 classes) and kind (animal or vehicle): 12 minutes on two CPU cores.

data      python jobs/prepare.py imagefolder cifar10.tar.xz data/cifar10 --label object
              --derive kind=object:jobs/labels/cifar10-kind.csv --carve val=0.02
command   python jobs/train.py cifar10
hardware  two CPU cores, no GPU
tasks     object (10 classes), kind (yes is a vehicle)
minutes   11 by arithmetic: a core trains 1.3 times as many images a second as on the resnet9 of the same width, whose
          two made 630 (benchmarks/results/cifar10_2-cores_2026-11-23.md); not measured as a whole
expected  object: 85 % or more, which that resnet9 reached in 12 epochs of larger batches; not measured as a whole

So short a training underfits: batches are small for the sake of more updates, and augmentation is mild.
"""

from mtl.config import Augment, Config, Loader, Model, Optimizer, Order, Resources, Task

CONFIG = Config(
    recipe="cifar10",
    name="cifar10",
    data="data/cifar10",
    epochs=10,
    global_batch=128,
    tasks={
        "object": Task(kind="multiclass", label="object", label_smoothing=0.1),
        "kind": Task(kind="binary", label="kind", weight=0.5),
    },
    augment=Augment(size_px=32, crop="padded", crop_pad_px=2, brightness=0.0, eval_resize_px=32),
    model=Model(backbone="mtl.model.resnet9:patch9", backbone_args={"width": 16}),
    optimizer=Optimizer(name="sgd", lr=0.15, momentum=0.9, weight_decay=5e-4, warmup_epochs=2, schedule="linear"),
    order=Order(lanes=16, block_row_groups=None),
    loader=Loader(memory="decoded"),
    resources=Resources(workers=2),
)
