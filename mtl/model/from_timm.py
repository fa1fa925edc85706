"""Backbones of timm (the extra `timm`), built without their classifier and with random weights."""

import copy
import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mtl.errors import ConfigError
from mtl.model.stages import Part, Stage


def build_timm(name: str, args: Mapping[str, object]) -> nn.Module:
    """timm's model `name`, from images to pooled features [n, D].

    Raises:
        ConfigError: timm is not installed, it has no such model, or weights are asked for: model.init_from reads them.
    """
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(
            f"The backbone 'timm:{name}' needs timm, which is not installed.",
            got=str(error),
            expected="the extra `timm` of this project",
            do="pip install '.[timm]' on every node, or choose a torchvision backbone",
        ) from error
    if args.get("pretrained"):
        raise ConfigError(
            "timm's pretrained weights are not downloaded by a job.",
            got="model.backbone_args pretrained true",
            do="save its state_dict with safetensors and name the file: model.init_from (docs/models.md)",
        )
    if not timm.is_model(name):
        near: list[str] = timm.list_models(f"*{name.partition('_')[0]}*")[:10]
        raise ConfigError(
            f"timm has no model '{name}'.",
            got=name,
            expected=f"such as {', '.join(near)}" if near else "timm.list_models()",
        )
    return timm.create_model(name, pretrained=False, num_classes=0, **args)


def timm_stages(net: nn.Module, size_px: int) -> tuple[Stage, ...]:
    """The children of `net` as stages (those of an nn.Sequential one by one), if running them in turn is what it does.

    That is tried on copies, in evaluation and in training, and the results must agree to the bit; else it has none.
    """
    paths: list[str] = []
    for name, child in net.named_children():
        inner = [f"{name}.{grandchild}" for grandchild, _ in child.named_children()]
        plain = isinstance(child, nn.Sequential) and type(child).forward is nn.Sequential.forward
        paths += inner if plain else [name]
    stages = tuple(Stage(path, (path,)) for path in paths)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        images = torch.randn(2, 3, size_px, size_px)
        return stages if all(_same(net, stages, images, training) for training in (False, True)) else ()


def _same(net: nn.Module, stages: tuple[Stage, ...], images: torch.Tensor, training: bool) -> bool:
    whole = copy.deepcopy(net).train(training)
    chain = Part(copy.deepcopy(net).train(training), stages)
    torch.manual_seed(1)
    expected: object = whole(images)
    torch.manual_seed(1)
    try:
        got: object = chain(images)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, IndexError):
        return False
    return isinstance(got, torch.Tensor) and isinstance(expected, torch.Tensor) and torch.equal(got, expected)
