"""Whether a model takes images of another size than those that it trains on."""

import torch
from torch import nn

from mtl.errors import ConfigError


@torch.no_grad()
def check_evaluated(model: nn.Module, backbone: str, trained_px: int, evaluated_px: int) -> None:
    """Try the model, on the CPU, on a blank image of the size that it sees in evaluation, if that is another one.

    Raises:
        ConfigError: it takes only images of the size that it trains on, as transformers with learned positions do.
    """
    if evaluated_px == trained_px:
        return
    training = model.training
    try:
        model.eval()(torch.zeros(1, 3, evaluated_px, evaluated_px))
    except (RuntimeError, AssertionError, ValueError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"The backbone '{backbone}' takes no larger or smaller images in evaluation than in training: {said}",
            got=f"augment.eval_size_px = {evaluated_px}",
            expected=f"augment.size_px = {trained_px}, for which this model was built",
            do="leave augment.eval_size_px out, or use a backbone for images of any size, as convolutional ones are",
        ) from error
    model.train(training)
