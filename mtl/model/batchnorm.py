"""What batch norm means when a batch is spread over workers.

`groups` cuts every global batch into fixed groups of whole lanes and normalises each by itself, wherever it is
computed, so the result does not depend on the number of workers. Running statistics are exponential averages, hence
linear in what they average: averaging them over groups and workers at any later time equals doing it at every step.
"""

from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from mtl.errors import ConfigError

Policy = Literal["groups", "sync", "local", "frozen"]


@final
class GroupBatchNorm(nn.BatchNorm2d):
    """Batch norm over groups of `group_size` consecutive samples; a batch must hold whole groups."""

    group_size: int = 0

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [n, C, H, W], n a multiple of `group_size` in training."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        if input.shape[0] == self.group_size:
            return super().forward(input)
        groups = input.split(self.group_size)
        made: list[Tensor] = []
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        for group in groups:
            # Each group updates a copy of its own; what is left behind is the average.
            its_mean, its_var = self.running_mean.clone(), self.running_var.clone()
            made.append(F.batch_norm(group, its_mean, its_var, self.weight, self.bias, True, self.momentum, self.eps))
            mean += its_mean / len(groups)
            var += its_var / len(groups)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        self.running_mean.copy_(mean)
        self.running_var.copy_(var)
        return torch.cat(made)


def apply_policy(model: nn.Module, policy: Policy, group_size: int) -> nn.Module:
    """The model with its batch-norm layers under `policy`; other layers are untouched.

    Args:
        group_size: samples of one group, for policy `groups`.

    Raises:
        ConfigError: policy `groups`, and a layer of another kind than BatchNorm2d with running averages.
    """
    if policy == "sync":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if policy == "groups":
        for name, module in model.named_modules():
            if not isinstance(module, _BatchNorm):
                continue
            if type(module) is not nn.BatchNorm2d or not module.track_running_stats or module.momentum is None:
                raise ConfigError(
                    f"The layer {name} can not be normalised in groups of lanes.",
                    got=str(module),
                    expected="BatchNorm2d with running averages and a momentum",
                    do="choose another model.batch_norm, or another layer",
                )
            module.__class__ = GroupBatchNorm
            assert isinstance(module, GroupBatchNorm)
            module.group_size = group_size
    return model


def freeze(model: nn.Module) -> None:
    """Keep batch-norm layers on their stored statistics while the rest of `model` trains."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def has_batch_norm(model: nn.Module) -> bool:
    """Whether any layer depends on the batch."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())
