"""A backbone of a user's own, named in a configuration as examples.small_net:small_net."""

from torch import nn


def small_net(width: int = 32, features: int = 128) -> nn.Module:
    """Images [n, 3, H, W], of 16 px at least, to features [n, features]: patches of 4 px, a convolution, a layer.

    Args:
        width: channels of a patch.
        features: of the last layer; few of them are a bottleneck that tasks have to share.
    """
    return nn.Sequential(
        nn.Conv2d(3, width, 4, stride=4),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * width, features),
        nn.ReLU(),
    )
