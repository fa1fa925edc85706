"""Five tasks on drawn images of 64 px: the demo, five minutes on two CPU cores.

data      12,000 drawings, made on the spot where data/shapes is missing: 10,278 to train on, 874 val, 848 test
command   python jobs/train.py shapes
hardware  two CPU cores, no GPU
tasks     shape, colour and count (classes), rotation (an angle), touching (yes or no)
"""

from mtl.config import Augment, Config, Loader, Model, Optimizer, Order, Resources, Task

CONFIG = Config(
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
    model=Model(
        backbone="mtl.model.resnet9:resnet9",
        backbone_args={"width": 16, "norm": "group", "stem_stride": 2},
        batch_norm="local",  # there is none, so it binds no number of workers
    ),
    optimizer=Optimizer(name="adam", lr=4e-3, warmup_epochs=1),
    order=Order(lanes=16, block_row_groups=None),
    loader=Loader(memory="decoded"),
    resources=Resources(workers=2),
)
