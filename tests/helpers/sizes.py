"""A backbone for images of any size that remembers those it saw; `MADE` has all that this process has built."""

from torch import Tensor, nn


class Sizes(nn.Module):
    """`trained` and `evaluated`: samples and side of each batch, in training and outside it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(3, 8, 3)
        self.trained: list[tuple[int, int]] = []
        self.evaluated: list[tuple[int, int]] = []

    def forward(self, images: Tensor) -> Tensor:
        seen = self.trained if self.training else self.evaluated
        seen.append((len(images), images.shape[-1]))
        return self.convolve(images).mean((2, 3))


def sizes() -> nn.Module:
    """One that is remembered."""
    MADE.append(made := Sizes())
    return made


MADE: list[Sizes] = []
