"""A backbone by name: images [n, 3, H, W] to features [n, D], by stages where they are known."""

import importlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision import models

from mtl.errors import ConfigError
from mtl.model.families import sequential_stages, torchvision_stages
from mtl.model.from_timm import build_timm, timm_stages
from mtl.model.stages import POOL, Backbone, Part, Stage

_TIMM = "timm:"


def build_backbone(name: str, args: Mapping[str, object], size_px: int) -> Backbone:
    """Build the backbone, and find its stages and the width of its features.

    Args:
        name: a torchvision classification model, whose last linear layer is taken off; `timm:NAME`; or
            `module:callable` of the user's own, called with `args`, that returns a module from images to features
            [n, D]. The children of an nn.Sequential are its stages; what follows its last feature map is `pool`.
        args: keyword arguments.
        size_px: side of the images, for the trial run that finds D and the maps.

    Raises:
        ConfigError: no such model, it accepts neither `args` nor such images, or it does not return features [n, D].
    """
    try:
        net = _built(name, args)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The backbone '{name}' can not be built: {error}", got=f"arguments {dict(args)}") from error
    training = net.training
    try:
        stages = _stages(name, net, size_px)
        made = _tried(name, net.eval(), stages, torch.zeros(2, 3, size_px, size_px))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"The backbone '{name}' does not accept images of {size_px} px: {error}",
            do="set augment.size_px, or model.backbone_args (torchvision's transformers take image_size)",
        ) from error
    net.train(training)
    return made


def _built(name: str, args: Mapping[str, object]) -> nn.Module:
    if name.startswith(_TIMM):
        return build_timm(name.removeprefix(_TIMM), args)
    return _own(name, args) if ":" in name else _torchvision(name, args)


def _stages(name: str, net: nn.Module, size_px: int) -> tuple[Stage, ...]:
    if name.startswith(_TIMM):
        return timm_stages(net, size_px)
    return sequential_stages(net) if ":" in name else torchvision_stages(net)


@torch.no_grad()
def _tried(name: str, net: nn.Module, stages: tuple[Stage, ...], images: Tensor) -> Backbone:
    part = Part(net, stages)
    maps: dict[str, tuple[int, int]] = {}
    outputs: list[object] = list(part.part_taps(images)) if stages else [net(images)]
    for stage, output in zip(stages, outputs, strict=False):
        if stage.channels_first and isinstance(output, Tensor) and output.ndim == 4:
            maps[stage.name] = output.shape[1], output.shape[2]
    features = outputs[-1]
    if not isinstance(features, Tensor) or features.ndim != 2:
        got = f"a tensor of shape {list(features.shape)}" if isinstance(features, Tensor) else type(features)
        raise ConfigError(f"The backbone '{name}' must return features.", got=got, expected="a tensor [n, D]")
    return Backbone(name, net, features.shape[1], _with_pool(stages, maps), maps)


def _with_pool(stages: tuple[Stage, ...], maps: Mapping[str, tuple[int, int]]) -> tuple[Stage, ...]:
    """The stages, with all that follow the last map made one, `pool`; none if no stage makes a map."""
    last = max((number for number, stage in enumerate(stages) if stage.name in maps), default=-1)
    if last < 0:
        return ()
    rest = tuple(step for stage in stages[last + 1 :] for step in stage.steps)
    return (*stages[: last + 1], Stage(POOL, rest))


def _own(name: str, args: Mapping[str, object]) -> nn.Module:
    module, _, attribute = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The backbone '{name}' can not be imported: {error}",
            expected="module:callable, importable from the folder the job was started in",
        ) from error
    built = make(**args)
    if not isinstance(built, nn.Module):
        raise ConfigError(f"The backbone '{name}' must return a torch.nn.Module.", got=type(built))
    return built


def _torchvision(name: str, args: Mapping[str, object]) -> nn.Module:
    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(
            f"There is no backbone '{name}'.",
            got=name,
            expected=f"timm:NAME, module:callable of your own, or one of {', '.join(known)}",
        )
    model = models.get_model(name, weights=None, **args)
    if getattr(model, "aux_logits", False):
        raise ConfigError(
            f"torchvision's '{name}' has outputs beside its features in training.",
            do="set model.backbone_args to aux_logits false, init_weights true",
        )
    for attribute in ("fc", "classifier", "heads", "head"):
        head = getattr(model, attribute, None)
        if isinstance(head, nn.Linear):
            setattr(model, attribute, nn.Identity())
            return model
        if isinstance(head, nn.Sequential) and isinstance(head[-1], nn.Linear):
            head[-1] = nn.Identity()
            return model
    raise ConfigError(
        f"The last layer of torchvision's '{name}' is not linear, so its features can not be taken.",
        do="wrap it in a function of your own and name that: module:callable",
    )
