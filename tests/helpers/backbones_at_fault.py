"""Backbones to which something happens in the middle of training, in whichever process runs them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from tests.helpers.backbones import small


class _Struck(nn.Module):
    """`small`, but `strike` is called ahead of its `at`-th forward in training (from 0).

    Earlier ones wait `before_s`, later ones `pace_s`.
    """

    def __init__(self, at: int, strike: Callable[[], None], *, pace_s: float = 0.0, before_s: float = 0.0) -> None:
        super().__init__()
        self.inner = small()
        self._at, self._strike, self._pace_s, self._before_s = at, strike, pace_s, before_s
        self._seen = 0

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            if self._seen == self._at:
                self._strike()
            else:
                time.sleep(self._pace_s if self._seen > self._at else self._before_s)
            self._seen += 1
        return self.inner(images)


def dies_once(marker: str, at: int) -> nn.Module:
    """Of all processes that get there, the one that makes the file `marker` is killed."""
    return _Struck(at, lambda: _signal_once(marker, signal.SIGKILL))


def always_dies(at: int) -> nn.Module:
    """Every process that gets there is killed."""
    return _Struck(at, lambda: os.kill(os.getpid(), signal.SIGKILL))


def stops_once(marker: str, at: int) -> nn.Module:
    """Of all processes that get there, the one that makes the file `marker`, with its number in it, is stopped.

    It has been heard of before, as steps take a while.
    """
    os.write(1, b"training, says the backbone\n")
    return _Struck(at, lambda: _signal_once(marker, signal.SIGSTOP), before_s=0.5)


def sleeps_once(marker: str, at: int) -> nn.Module:
    """Of all processes that get there, the one that makes the file `marker` sleeps for an hour; its threads go on."""
    os.write(1, b"training, says the backbone\n")
    return _Struck(at, lambda: time.sleep(3600) if _is_first(marker) else None, before_s=0.5)


def _signal_once(marker: str, number: signal.Signals) -> None:
    if _is_first(marker):
        os.kill(os.getpid(), number)


def _is_first(marker: str) -> bool:
    """Whether this process is the one that makes the file `marker`, with its number in it."""
    try:
        file = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    os.write(file, str(os.getpid()).encode())
    os.close(file)
    return True


_STUTTER = """\
import os, signal, sys, time
pid, until = int(sys.argv[1]), sys.argv[2]
while not os.path.exists(until):
    for number, seconds in ((signal.SIGSTOP, 0.4), (signal.SIGCONT, 0.1)):
        os.kill(pid, number)
        time.sleep(seconds)
"""


def stutters(marker: str, until: str) -> nn.Module:
    """Of all processes, the one that makes the file `marker` is stopped four fifths of the time.

    All compute 50 ms in each forward pass, and all of this ends when the file `until` is there.
    """
    if _is_first(marker):
        subprocess.Popen([sys.executable, "-c", _STUTTER, str(os.getpid()), until])
    return _Busy(Path(until))


class _Busy(nn.Module):
    def __init__(self, until: Path) -> None:
        super().__init__()
        self.inner, self._until = small(), until

    def forward(self, images: Tensor) -> Tensor:
        end_s = time.process_time() + 0.05
        while self.training and time.process_time() < end_s and not self._until.exists():
            pass
        return self.inner(images)


def eats(marker: str, at: int) -> nn.Module:
    """Takes memory until it is ended for that; where `marker` is a file to be made, only the process that makes it."""
    return _Struck(at, lambda: _eat() if not marker or _is_first(marker) else None)


def _eat(most_bytes: int = 10 << 30, each_bytes: int = 64 << 20) -> None:
    held: list[bytes] = []
    while len(held) * each_bytes < most_bytes:
        held.append(b"x" * each_bytes)
        time.sleep(0.02)
    raise AssertionError(f"nobody ended a process that holds {most_bytes >> 30} GiB more than it should")


def waits(until: str, at: int, pids: str) -> nn.Module:
    """Waits for the file `until`, and is slow from then on: what was asked meanwhile is heard before the last step.

    Leaves a file named after its process in the folder `pids`.
    """
    Path(pids, str(os.getpid())).touch()

    def strike() -> None:
        while not Path(until).exists():
            time.sleep(0.05)

    return _Struck(at, strike, pace_s=0.3)


def slow_until(file: str) -> nn.Module:
    """Takes 0.3 s a step until the file exists."""
    return _Slow(Path(file))


class _Slow(nn.Module):
    def __init__(self, file: Path) -> None:
        super().__init__()
        self.inner, self._file = small(), file

    def forward(self, images: Tensor) -> Tensor:
        if self.training and not self._file.exists():
            time.sleep(0.3)
        return self.inner(images)
