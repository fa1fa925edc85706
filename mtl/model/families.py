"""The stages of torchvision's classification models, as their `forward` runs them."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torchvision import models

from mtl.model.stages import POOL, Stage, Step


def _flatten(x: Tensor) -> Tensor:
    return x.flatten(1)


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"@flatten": _flatten, "@mean": _mean, "@relu": torch.relu}
_FEATURES = {"features.*": "", POOL: "avgpool @flatten classifier"}

# Stage: its steps. `x.*` stands for one stage for each child of x; a name with @ is a function.
_TABLE: Mapping[type[nn.Module], Mapping[str, str]] = {
    models.ResNet: {
        "stem": "conv1 bn1 relu maxpool",
        "layer1": "layer1",
        "layer2": "layer2",
        "layer3": "layer3",
        "layer4": "layer4",
        POOL: "avgpool @flatten fc",
    },
    models.RegNet: {"stem": "stem", "trunk_output.*": "", POOL: "avgpool @flatten fc"},
    models.ShuffleNetV2: {
        "stem": "conv1 maxpool",
        "stage2": "stage2",
        "stage3": "stage3",
        "stage4": "stage4",
        "conv5": "conv5",
        POOL: "@mean fc",
    },
    models.ConvNeXt: {"features.*": "", POOL: "avgpool classifier"},
    models.AlexNet: _FEATURES,
    models.VGG: _FEATURES,
    models.EfficientNet: _FEATURES,
    models.MobileNetV3: _FEATURES,
    models.MobileNetV2: {"features.*": "", POOL: "@mean classifier"},
    models.MNASNet: {"layers.*": "", POOL: "@mean classifier"},
    models.DenseNet: {"features.*": "", POOL: "@relu @mean classifier"},
    models.MaxVit: {"stem": "stem", "blocks.*": "", POOL: "classifier"},
    models.SwinTransformer: {"features.*": "", "norm": "norm permute", POOL: "avgpool flatten head"},
}


def torchvision_stages(net: nn.Module) -> tuple[Stage, ...]:
    """The stages of a torchvision model; none for families that are not a chain (vision transformers, Inception)."""
    made: list[Stage] = []
    for name, steps in _TABLE.get(type(net), {}).items():
        # Swin's stages work on [n, H, W, C].
        channels_first = not (isinstance(net, models.SwinTransformer) and name == "features.*")
        if name.endswith(".*"):
            parent = name.removesuffix(".*")
            children = [f"{parent}.{child}" for child, _ in net.get_submodule(parent).named_children()]
            made += [Stage(child, (child,), channels_first) for child in children]
        else:
            parts: list[Step] = [_FUNCTIONS.get(step, step) for step in steps.split()]
            made.append(Stage(name, tuple(parts), channels_first))
    return tuple(made)


def sequential_stages(net: nn.Module) -> tuple[Stage, ...]:
    """Each child of an nn.Sequential as a stage, under its own name; none for other modules."""
    if not isinstance(net, nn.Sequential) or type(net).forward is not nn.Sequential.forward:
        return ()
    return tuple(Stage(name, (name,)) for name, _ in net.named_children())
