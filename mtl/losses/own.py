"""A loss of the user's: `module:callable`, called with outputs, labels and its arguments."""

import importlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mtl.errors import ConfigError
from mtl.losses.base import Criterion


def own(name: str, args: Mapping[str, object]) -> Criterion:
    """The loss `name`: a function of (output [n, outputs], label [n] or [n, entries], **args) to losses [n].

    Rows without a label hold zeros when it is called, and what it returns for them does not count.

    Raises:
        ConfigError: it can not be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        found: Callable[..., object] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The loss '{name}' can not be imported: {error}",
            got=name,
            expected="module:callable, importable from the folder the job was started in",
            do="mend the name, or the module",
        ) from error

    def each(output: Tensor, label: Tensor) -> Tensor:
        losses = found(output, label, **args)
        if not isinstance(losses, torch.Tensor) or losses.shape != (len(output),):
            raise ConfigError(
                f"The loss '{name}' must give one loss for each sample.",
                got=f"shape {list(losses.shape)}" if isinstance(losses, torch.Tensor) else type(losses).__name__,
                expected=f"a tensor of shape [{len(output)}]",
                do="return losses that are not summed yet",
            )
        return losses

    return Criterion(each, whole=True)
