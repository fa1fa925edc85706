"""Measurements one after the other, each in a new process that nothing outlives."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, final

from benchmarks.common import say

ROOT = Path(__file__).resolve().parents[2]
_LIMIT_S = 300
_LEAVE_S = 10
_LOG_LINES = 15

Result = dict[str, Any]


@final
class Runs:
    """Runs tasks of benchmarks/peers/process.py; says what each gave, and about how long the rest takes.

    Args:
        scratch: folder for a log and results.
        cores: what every process is confined to, and how many workers or threads it has.

    Attributes:
        expected: how many runs there will be.
        failed: names of what failed once; it is left out from then on.
    """

    def __init__(self, scratch: Path, cores: int) -> None:
        self.scratch, self.cores, self.expected = scratch, cores, 0
        self.failed: set[str] = set()
        self._done, self._began = 0, time.monotonic()

    def run(self, name: str, task: str, environment: dict[str, str] | None = None, **spec: Any) -> Result | None:
        """The result of one task; None if something called `name` failed, now or before."""
        self._done += 1
        if name in self.failed:
            return None
        result, log = self.scratch / "result.json", self.scratch / "log.txt"
        result.unlink(missing_ok=True)
        spec = {"task": task, "cores": self.cores, "result": str(result), **spec}
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "BENCH_CACHE": str(self.scratch), **(environment or {})}
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.peers.process", json.dumps(spec)],
                cwd=ROOT,
                env=variables,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
            try:
                _wait(process, result)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # workers that a loader left running
                process.wait()
        if not result.is_file():
            self.failed.add(name)
            lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            say("\n".join([f"{name} failed and is left out:", *lines]))
            return None
        made: Result = json.loads(result.read_text())
        self._tell(name, made)
        return made

    def _tell(self, name: str, made: Result) -> None:
        left_s = (time.monotonic() - self._began) / self._done * max(self.expected - self._done, 0)
        figures = ", ".join(f"{key} {value:.4g}" for key, value in made.items() if isinstance(value, float))
        say(f"[{self._done}/{self.expected}] {name}: {figures or 'done'}; about {left_s / 60:.1f} min left")


def _wait(process: "subprocess.Popen[bytes]", result: Path) -> None:
    """Until the process ended, ran too long, or did not leave after its result was there."""
    ends = time.monotonic() + _LIMIT_S
    while process.poll() is None and time.monotonic() < ends:
        if result.is_file():
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LEAVE_S)
            return
        time.sleep(0.05)
