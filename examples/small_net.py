"""A backbone of a user's own, named in a configuration as examples.small_net:small_net."""

from torch import nn


def small_net(width: int = 16, features: int = 128) -> nn.Module:
    """Images [n, 3, H, W] to features [n, features]: four convolutions of which three halve the image, and a layer.

    Args:
        width: channels of the first, a multiple of 8.
        features: of the last layer; few of them are a bottleneck that tasks have to share.
    """

    def layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        convolve = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        return nn.Sequential(convolve, nn.GroupNorm(outputs // 8, outputs), nn.ReLU(inplace=True))

    return nn.Sequential(
        layer(3, width, 2),
        layer(width, 2 * width, 2),
        layer(2 * width, 4 * width, 2),
        layer(4 * width, 4 * width, 1),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64 * width, features),
        nn.ReLU(),
    )
