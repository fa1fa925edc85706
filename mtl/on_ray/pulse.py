"""A worker's signs of life, and what the driver concludes from those of all workers. Neither needs a cluster."""

import faulthandler
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

SILENT_S = 20.0
"""After its first step, a worker whose thread of beats is not heard for so long is stopped, frozen or cut off."""

STRAGGLER = 1.5
"""A worker is named whose forward passes take more than this times the median."""

WINDOW_S = 30.0
_ENOUGH_S = 1.0


@final
@dataclass(frozen=True)
class Pulse:
    """What a worker says of itself, once a second.

    Attributes:
        node: id of its node.
        signs: signs of progress: forward passes, reductions, events, reports.
        steps: agreements on a batch, of which each step takes one.
        forwards: forward passes, which took `forward_s` in all. On a GPU that is the time to launch them.
    """

    rank: int
    pid: int
    node: str
    host: str
    signs: int
    steps: int
    forwards: int
    forward_s: float

    def __str__(self) -> str:
        return f"worker {self.rank} (process {self.pid} on {self.host})"


@final
@dataclass(frozen=True)
class Sighting:
    """A worker's last pulse, how long ago it was, and how long ago its signs were fewer."""

    pulse: Pulse
    silent_s: float
    still_s: float


@final
@dataclass(frozen=True)
class Hang:
    """Workers that hang, and a sentence that says so."""

    culprits: tuple[Pulse, ...]
    text: str


def hang(seen: Sequence[Sighting], *, first_step_deadline_s: float, step_deadline_s: float) -> Hang | None:
    """Who hangs, if anybody does.

    Steps take place together, so one worker that hangs holds all. It is the one that is silent; or, where all are heard
    and none goes on, those that have come less far than others, which wait for them; or all.

    Args:
        first_step_deadline_s: how long nobody may go on before every worker has taken a step.
        step_deadline_s: how long nobody may go on afterwards.
    """
    # Two agreements are under way when the first step is, and three in the second, which ends for nobody before all
    # have taken the first. So one worker's word is enough: the last pulse of a silent one may be from before that.
    stepping = any(one.pulse.steps > 3 for one in seen)
    silence_s = SILENT_S if stepping else first_step_deadline_s
    silent = [one.pulse for one in seen if one.silent_s > silence_s]
    if silent:
        longest_s = max(one.silent_s for one in seen)
        return Hang(tuple(silent), f"{_listed(silent)}: not heard of for {longest_s:.0f} s")
    still_s = min((one.still_s for one in seen), default=0.0)
    if still_s <= (step_deadline_s if stepping else first_step_deadline_s):
        return None
    least = min(one.pulse.steps for one in seen)
    behind = [one.pulse for one in seen if one.pulse.steps == least]
    return Hang(tuple(behind), f"{_listed(behind)}: no progress for {still_s:.0f} s")


@final
class Stragglers:
    """Compares forward passes, which no worker waits in for another, over windows of `WINDOW_S`."""

    def __init__(self) -> None:
        self._since: dict[int, Pulse] = {}
        self._began_s = float("-inf")
        self._named: set[tuple[int, int]] = set()

    def __call__(self, seen: Sequence[Sighting], now_s: float) -> list[str]:
        """A sentence for every worker that has turned out slow, once."""
        if now_s - self._began_s < WINDOW_S:
            return []
        before, self._since = self._since, {one.pulse.rank: one.pulse for one in seen}
        self._began_s = now_s
        each_s: dict[int, float] = {}
        for rank, pulse in self._since.items():
            then = before.get(rank)
            if then is None or then.pid != pulse.pid or pulse.forwards == then.forwards:
                return []
            each_s[rank] = (pulse.forward_s - then.forward_s) / (pulse.forwards - then.forwards)
        usual_s = statistics.median_low(each_s.values()) if each_s else 0.0
        found: list[str] = []
        for rank, took_s in each_s.items():
            pulse = self._since[rank]
            spent_s = pulse.forward_s - before[rank].forward_s
            if took_s > STRAGGLER * usual_s and spent_s > _ENOUGH_S and (rank, pulse.pid) not in self._named:
                self._named.add((rank, pulse.pid))
                found.append(f"{pulse} is slow: {took_s / usual_s:.1f} times the median time of a forward pass")
        return found


def stacks() -> str:
    """Where every thread of this process is."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def _listed(pulses: Sequence[Pulse]) -> str:
    return ", ".join(map(str, pulses))
