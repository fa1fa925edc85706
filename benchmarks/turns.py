"""Commands that take turns: two whole jobs are begun, and one works while every process of the other is stopped.

A machine that others use changes its speed by a tenth within a minute, so that jobs one after the other say little.
Turns of seconds meet the same hours.
"""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import final

_MARK = "MTL_BENCH_SIDE"
_STEP = re.compile(r"\bstep ([\d,]+)/")


@final
class Side:
    """A training job as a command, with all the processes that it leads to.

    Args:
        name: no other side's.
        command: prints lines of progress, `step N/M`.
    """

    def __init__(self, name: str, command: list[str], log: Path, *, cwd: Path) -> None:
        self.name, self._log = name, log
        own = f"{name}-{os.getpid()}"
        self._mark = f"{_MARK}={own}".encode()
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment[_MARK] = own
        with log.open("wb") as file:
            self._process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=file, stderr=subprocess.STDOUT)

    def steps(self) -> int:
        """The last step that was printed; 0 before the first.

        Raises:
            SystemExit: the command has ended.
        """
        text = self._log.read_text()
        if self._process.poll() is not None:
            raise SystemExit(f"{self.name} ended with {self._process.returncode}:\n{text}")
        found = _STEP.findall(text)
        return int(found[-1].replace(",", "")) if found else 0

    def signal(self, number: int) -> None:
        """Send a signal to every process that has inherited the mark of this side."""
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and self._mark in (folder / "environ").read_bytes().split(b"\0"):
                    os.kill(int(folder.name), number)
            except (FileNotFoundError, PermissionError, ProcessLookupError):
                continue  # it has ended, or is another user's

    def reach(self, step: int) -> None:
        """Wait until it has done so many steps."""
        while self.steps() < step:
            time.sleep(0.2)

    def end(self) -> None:
        """Kill what is left of it."""
        self.signal(signal.SIGKILL)
        self._process.wait()


def take_turns(sides: tuple[Side, Side], warm: int, turns: int, turn_s: float) -> tuple[float, float]:
    """Steps a second of each side, in `turns` turns of its own, after it has done `warm` steps."""
    for side in sides:
        side.reach(warm)
        side.signal(signal.SIGSTOP)
    first, seconds = [side.steps() for side in sides], [0.0, 0.0]
    for turn in range(turns):
        for which in (0, 1) if turn % 2 else (1, 0):
            began = time.perf_counter()
            sides[which].signal(signal.SIGCONT)
            time.sleep(turn_s)
            sides[which].signal(signal.SIGSTOP)
            seconds[which] += time.perf_counter() - began
    one, other = ((side.steps() - first[which]) / seconds[which] for which, side in enumerate(sides))
    return one, other
