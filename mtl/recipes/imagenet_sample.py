"""1,000 real ImageNet images, one a class, as fine, group and living: proves the path, minutes on two CPU cores.

data      python jobs/prepare.py imagefolder imagenet-sample.tar data/imagenet-sample --label fine
              --derive group=fine:jobs/labels/imagenet-taxonomy.csv:30
              --derive living=fine:jobs/labels/imagenet-taxonomy.csv:2
command   python jobs/train.py imagenet-sample
hardware  two CPU cores, no GPU
tasks     fine (1,000 classes), group (30 groups of 2 to 118 classes), living (2); the taxonomy has no place for 110
          classes, so 110 images lack the last two
expected  every training loss falls. That is all: with one image a class, no class of val or test occurs in train,
          so the accuracy of fine there is 0 by construction, and 822 images teach group and living very little
"""

from mtl.config import Augment, Config, Model, Optimizer, Order, Resources, Task

CONFIG = Config(
    recipe="imagenet-sample",
    name="imagenet-sample",
    data="data/imagenet-sample",
    epochs=3,
    global_batch=32,
    tasks={
        "fine": Task(kind="multiclass", label="fine", classes=1000),
        "group": Task(kind="multiclass", label="group", classes=30),
        "living": Task(kind="multiclass", label="living", classes=2),
    },
    augment=Augment(size_px=128, eval_resize_px=146),
    model=Model(backbone="resnet18"),
    optimizer=Optimizer(name="adam", lr=1e-3, warmup_epochs=0.5),
    order=Order(lanes=16, block_row_groups=None),
    resources=Resources(workers=2),
)
