"""Backbones to which something happens in the middle of training, in whichever process runs them."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from tests.helpers.backbones import small


class _Struck(nn.Module):
    """`small`, but `strike` is called ahead of its `at`-th forward in training (from 0); later ones wait `pace_s`."""

    def __init__(self, at: int, strike: Callable[[], None], pace_s: float = 0.0) -> None:
        super().__init__()
        self.inner = small()
        self._at, self._strike, self._pace_s = at, strike, pace_s
        self._seen = 0

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            if self._seen == self._at:
                self._strike()
            elif self._seen > self._at:
                time.sleep(self._pace_s)
            self._seen += 1
        return self.inner(images)


def dies_once(marker: str, at: int) -> nn.Module:
    """Of all processes that get there, the one that makes the file `marker` is killed."""

    def strike() -> None:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    return _Struck(at, strike)


def waits(until: str, at: int, pids: str) -> nn.Module:
    """Waits for the file `until`, and is slow from then on: what was asked meanwhile is heard before the last step.

    Leaves a file named after its process in the folder `pids`.
    """
    Path(pids, str(os.getpid())).touch()

    def strike() -> None:
        while not Path(until).exists():
            time.sleep(0.05)

    return _Struck(at, strike, pace_s=0.3)
