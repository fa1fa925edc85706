"""Backbones of the tests' own, named in configurations as tests.helpers.backbones:NAME."""

from torch import Tensor, nn


def small(norm: str = "group") -> nn.Module:
    """Two convolutions: images [n, 3, 16, 16] to features [n, 64]."""

    def normalise(channels: int) -> nn.Module:
        return nn.GroupNorm(2, channels) if norm == "group" else nn.BatchNorm2d(channels)

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        normalise(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        normalise(16),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )


class Backwards(nn.Module):
    """Images [n, 3, 16, 16] to features [n, 64]: several buckets of gradients, in another order than registered."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(512, 64)
        self.middle = nn.Linear(512, 512)
        self.first = nn.Linear(768, 512)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.middle(self.first(images.flatten(1)).relu()).relu())


def spatial() -> nn.Module:
    """Forgets to flatten."""
    return nn.Conv2d(3, 8, 3)


def number() -> int:
    """No module at all."""
    return 3


def one_dimensional() -> nn.Module:
    """Has a batch norm over features."""
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.BatchNorm1d(8))
