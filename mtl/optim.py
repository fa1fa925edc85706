"""The optimizer from its configuration, and its schedule as a pure function of samples seen."""

import math
from typing import Any

import torch

from mtl.config import Optimizer
from mtl.errors import ConfigError
from mtl.model import MultiTaskModel
from mtl.model.stages import stage_parameters


def build_optimizer(model: MultiTaskModel, config: Optimizer) -> torch.optim.Optimizer:
    """The optimizer over `model`.

    Its groups differ in weight decay, which spares biases and norms (every parameter of fewer than two axes), and in
    `scale`, the multiple of the learning rate at which they learn. The update is torch's fused one, which is the
    fastest on CPUs and GPUs alike.
    """
    scales = learning_scales(model, config)
    groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((parameter.ndim < 2, scales[parameter]), []).append(parameter)
    made = [
        {
            "params": params,
            "weight_decay": 0.0 if spared else config.weight_decay,
            "lr": config.lr * scale,
            "scale": scale,
        }
        for (spared, scale), params in sorted(groups.items(), key=lambda item: item[0])
    ]
    optimizer = _made(config, made)
    optimizer.register_step_pre_hook(_align)
    return optimizer


def _made(config: Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    match config.name:
        case "sgd":
            momentum = config.momentum
            return torch.optim.SGD(groups, lr=config.lr, momentum=momentum, nesterov=momentum > 0, fused=True)
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=True)


def _align(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Give each gradient the strides of its parameter: on a CPU, torch's fused update reads both as flat memory."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and parameter.grad.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)


def learning_scales(model: MultiTaskModel, config: Optimizer) -> dict[torch.nn.Parameter, float]:
    """At which multiple of the learning rate each parameter learns.

    A backbone's stages learn the slower the earlier they are (discriminative rates: Howard & Ruder 2018, section 3.1);
    a task's own parameters learn at the task's multiple, its copies of stages at the product of the two.

    Raises:
        ConfigError: stages are to learn at different rates, and there is one, or none is known.
    """
    scales = dict.fromkeys(model.parameters(), 1.0)
    stages = stage_parameters(model.backbone_parts().values())
    if config.stage_decay < 1 and len(stages) < 2:
        raise ConfigError(
            "The backbone has no stages that could learn at different rates.",
            got=f"optimizer.stage_decay = {config.stage_decay}",
            do="leave it out, or use a backbone with stages: see docs/models.md",
        )
    for distance, stage in enumerate(reversed(stages)):
        for parameter in stage:
            scales[parameter] = config.backbone_lr * config.stage_decay**distance
    for task in model.tasks:
        for parameter in model.task_parameters(task):
            scales[parameter] *= config.head_lr.get(task, 1.0)
    return scales


def set_learning_rate(
    optimizer: torch.optim.Optimizer, config: Optimizer, epoch: float, epochs: float, global_batch: int
) -> float:
    """Give every group of `build_optimizer` its learning rate of this moment. Returns the one that is not scaled."""
    rate = learning_rate(config, epoch, epochs, global_batch)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    return rate


def learning_rate(config: Optimizer, epoch: float, epochs: float, global_batch: int) -> float:
    """The learning rate after `epoch` of `epochs` epochs (fractions count): a linear warm-up, then the schedule.

    With a long warm-up, `linear` and `cosine` are what is called one cycle.
    """
    peak = config.peak_lr(global_batch)
    if epoch < config.warmup_epochs:
        return peak * epoch / config.warmup_epochs
    progress = min((epoch - config.warmup_epochs) / max(epochs - config.warmup_epochs, 1e-12), 1.0)
    match config.schedule:
        case "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return peak * (1 - progress)
        case "constant":
            return peak
        case "step":
            assert config.step_factor is not None
            return peak * config.step_factor ** sum(epoch >= at for at in config.step_epochs)
