"""A backbone by name: images [n, 3, H, W] to features [n, D]."""

import importlib
from collections.abc import Mapping

import torch
from torch import nn
from torchvision import models

from mtl.errors import ConfigError


def build_backbone(name: str, args: Mapping[str, object], size_px: int) -> tuple[nn.Module, int]:
    """Build the backbone and find the width of its features.

    Args:
        name: a torchvision classification model, whose last linear layer is taken off, or `module:callable` of the
            user's own, called with `args`, that returns a module from images to features [n, D].
        args: keyword arguments.
        size_px: side of the images, for the trial run that finds D.

    Returns:
        The module and D.

    Raises:
        ConfigError: no such model, it accepts neither `args` nor such images, or it does not return features [n, D].
    """
    try:
        backbone = _own(name, args) if ":" in name else _torchvision(name, args)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The backbone '{name}' can not be built: {error}", got=f"arguments {dict(args)}") from error
    training = backbone.training
    try:
        with torch.no_grad():
            features: object = backbone.eval()(torch.zeros(2, 3, size_px, size_px))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"The backbone '{name}' does not accept images of {size_px} px: {error}",
            do="set augment.size_px, or model.backbone_args (torchvision's transformers take image_size)",
        ) from error
    backbone.train(training)
    if not isinstance(features, torch.Tensor) or features.ndim != 2:
        got = f"a tensor of shape {list(features.shape)}" if isinstance(features, torch.Tensor) else type(features)
        raise ConfigError(f"The backbone '{name}' must return features.", got=got, expected="a tensor [n, D]")
    return backbone, features.shape[1]


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
            expected=f"module:callable of your own, or one of {', '.join(known)}",
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
