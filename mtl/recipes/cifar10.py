"""CIFAR-10 as object (10 classes) and kind (animal or vehicle): 7 minutes on two CPU cores.

data      python jobs/prepare.py imagefolder cifar10.tar.xz data/cifar10 --label object
              --derive kind=object:jobs/labels/cifar10-kind.csv --carve val=0.02
command   python jobs/train.py cifar10
hardware  two CPU cores with bf16 instructions (AVX512-BF16 or AMX), no GPU; else --precision fp32, twice the time
tasks     object (10 classes), kind (yes is a vehicle)
expected  object 85.5 %, kind 97.7 % on test (benchmarks/results/cifar10_2-cores_2026-12-01.md)
"""

from mtl.config import Augment, Config, Loader, Model, Optimizer, Order, Resources, Task

CONFIG = Config(
    recipe="cifar10",
    name="cifar10",
    data="data/cifar10",
    epochs=12,
    global_batch=256,
    precision="bf16",
    tasks={
        "object": Task(kind="multiclass", label="object", label_smoothing=0.1),
        "kind": Task(kind="binary", label="kind", weight=0.5),
    },
    augment=Augment(size_px=32, crop="padded", eval_resize_px=32),
    model=Model(backbone="mtl.model.resnet9:resnet9", backbone_args={"width": 16, "norm": "batch"}),
    optimizer=Optimizer(name="sgd", lr=0.2, momentum=0.9, weight_decay=5e-4, warmup_epochs=2, schedule="linear"),
    order=Order(lanes=16, block_row_groups=None),
    loader=Loader(memory="decoded"),
    resources=Resources(workers=2),
)
