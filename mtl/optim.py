"""The optimizer from its configuration, and its schedule as a pure function of samples seen."""

import math

import torch
from torch import nn

from mtl.config import Optimizer


def build_optimizer(model: nn.Module, config: Optimizer) -> torch.optim.Optimizer:
    """The optimizer over `model`; weight decay spares biases and norms (every parameter of fewer than two axes)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    match config.name:
        case "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
        case "adam":
            return torch.optim.Adam(groups, lr=config.lr, betas=(config.momentum, 0.999))
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))


def learning_rate(config: Optimizer, epoch: float, epochs: float) -> float:
    """The learning rate after `epoch` of `epochs` epochs (fractions count): a linear warm-up, then down to zero."""
    if epoch < config.warmup_epochs:
        return config.lr * epoch / config.warmup_epochs
    progress = min((epoch - config.warmup_epochs) / max(epochs - config.warmup_epochs, 1e-12), 1.0)
    match config.schedule:
        case "cosine":
            return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
        case "linear":
            return config.lr * (1 - progress)
        case "constant":
            return config.lr
