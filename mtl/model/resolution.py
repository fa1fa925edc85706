"""Whether a model takes images of other sizes than the one that it is built for."""

from collections.abc import Mapping

import torch
from torch import nn

from mtl.errors import ConfigError


@torch.no_grad()
def check_sizes(model: nn.Module, backbone: str, size_px: int, others: Mapping[str, int | None]) -> None:
    """Try the model, on the CPU, on a blank image of each other size that it is to see.

    Args:
        size_px: that it is built for.
        others: by the field that asks for it; None asks for nothing.

    Raises:
        ConfigError: it takes only images of the size that it trains on, as transformers with learned positions do, or
            none so small.
    """
    training = model.training
    for field, px in others.items():
        if px is None or px == size_px:
            continue
        try:
            model.eval()(torch.zeros(1, 3, px, px))
        except (RuntimeError, AssertionError, ValueError) as error:
            said = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(
                f"The backbone '{backbone}' takes no images of {px} px, built for {size_px} px: {said}",
                got=f"{field} = {px}",
                expected=f"augment.size_px = {size_px}, for which this model was built",
                do=f"leave {field} out, or use a backbone for images of any size, as convolutional ones are",
            ) from error
    model.train(training)
