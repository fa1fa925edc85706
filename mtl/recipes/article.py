"""The reference article's setting: 224 px, brightness, Adam at 1e-3, cross-entropy, one shared backbone.

data      that of imagenet-sample: any data set with the labels fine, group and living
command   python jobs/train.py article
hardware  two CPU cores; one GPU for more than the sample: --resources.gpu --resources.workers 1
tasks     fine, group, living, all with weight 1; each reports accuracy, and macro precision and recall
expected  on the sample nothing but falling losses, for the reason that imagenet-sample gives; the article's own
          figures belong to data that is not here

Images are cropped at random, mirrored and brightened by up to a fifth in training, resized and cropped in the middle
for evaluation, and standardised with the data set's own statistics. The learning rate is constant. The backbone is
resnet18, so that it runs on two cores; --model.backbone takes any other.
"""

from mtl.config import Augment, Config, Model, Optimizer, Order, Resources, Task

CONFIG = Config(
    recipe="article",
    name="article",
    data="data/imagenet-sample",
    epochs=10,
    global_batch=32,
    tasks={
        "fine": Task(kind="multiclass", label="fine"),
        "group": Task(kind="multiclass", label="group"),
        "living": Task(kind="multiclass", label="living"),
    },
    augment=Augment(size_px=224, brightness=0.2, eval_resize_px=256),
    model=Model(backbone="resnet18"),
    optimizer=Optimizer(name="adam", lr=1e-3, schedule="constant"),
    order=Order(lanes=16, block_row_groups=None),
    resources=Resources(workers=2),
)
