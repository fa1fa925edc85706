"""Messages between the driver and its workers: events and pulses up, requests down.

An actor on the driver's node, because a worker's standard output comes to a driver line by line among Ray's own, and
because `ray.train.report` takes a quarter of a second.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mtl.errors import MtlError
from mtl.on_ray.pulse import Pulse, Sighting

Event = dict[str, Any]

_PATIENCE_S = 5.0


class ChannelLost(MtlError):
    """The mailbox is gone, so that driver and workers know nothing of each other."""


class _Mailbox:
    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=10_000)
        self._stop: set[str] = set()
        self._pulses: dict[int, tuple[Pulse, float, float]] = {}  # with the times of it and of its last progress
        self._asked_for_stacks: set[int] = set()
        self._loss: dict[str, Any] | None = None

    def put(self, event: Event) -> None:
        self._events.append(event)

    def drain(self) -> list[Event]:
        events = list(self._events)
        self._events.clear()
        return events

    def stop(self, who: str) -> None:
        self._stop.add(who)

    def stopping(self, who: str) -> bool:
        return bool(self._stop & {who, ""})

    def beat(self, pulse: Pulse) -> bool:
        before, now_s = self._pulses.get(pulse.rank), time.monotonic()
        still = before is not None and (before[0].pid, before[0].signs) == (pulse.pid, pulse.signs)
        self._pulses[pulse.rank] = (pulse, now_s, before[2] if before is not None and still else now_s)
        asked = pulse.rank in self._asked_for_stacks
        self._asked_for_stacks.discard(pulse.rank)
        return asked

    def sightings(self) -> list[Sighting]:
        now_s = time.monotonic()
        return [Sighting(pulse, now_s - at, now_s - since) for pulse, at, since in self._pulses.values()]

    def ask_for_stacks(self) -> None:
        self._asked_for_stacks = set(self._pulses)

    def leave(self, pulse: Pulse) -> None:
        if pulse.rank in self._pulses and self._pulses[pulse.rank][0].pid == pulse.pid:
            del self._pulses[pulse.rank]

    def forget(self) -> None:
        self._pulses.clear()

    def lose(self, loss: dict[str, Any]) -> None:
        self._loss = loss

    def loss(self) -> dict[str, Any] | None:
        return self._loss


def _hear(answer: Any, missing: Callable[[], None] | None = None) -> Any:
    again = "rerunning the command resumes from the last commit"
    while True:
        try:
            return ray.get(answer, timeout=_PATIENCE_S)
        except GetTimeoutError:
            if missing:
                missing()
        except OutOfMemoryError as error:
            raise ChannelLost(
                "The driver's machine ran out of memory.",
                got=str(error).partition("\n")[0],
                do=f"have fewer workers on it, a smaller --max-micro-batch, or a larger machine; {again}",
            ) from error
        except RayActorError as error:
            raise ChannelLost("The process through which driver and workers speak has died.", do=again) from error


class Channel:
    """A handle to the mailbox; made by the driver, passed to the workers.

    Whatever waits for an answer raises ChannelLost where the mailbox is gone.

    Args:
        missing: called every five seconds while an answer is missing; may give up by raising. Workers do without:
            they end with their node.
    """

    def __init__(self, missing: Callable[[], None]) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox: Any = ray.remote(num_cpus=0)(_Mailbox).options(scheduling_strategy=here).remote()
        self._missing: Callable[[], None] | None = missing

    def __getstate__(self) -> dict[str, Any]:
        return {"_mailbox": self._mailbox, "_missing": None}

    def put(self, event: Event) -> None:
        """Send an event to the driver; does not wait."""
        self._mailbox.put.remote(event)

    def drain(self) -> list[Event]:
        """The events since the last call."""
        return _hear(self._mailbox.drain.remote(), self._missing)

    def request_stop(self, who: str = "") -> None:
        """Ask the workers to commit and stop; where many trials share the channel, those of trial `who` or of all."""
        _hear(self._mailbox.stop.remote(who), self._missing)

    def ask_stopping(self, who: str = "") -> Any:
        """A future of whether a stop is requested, of `who` or of all."""
        return self._mailbox.stopping.remote(who)

    def beat(self, pulse: Pulse) -> bool:
        """Send a sign of life; whether the driver asks where this worker is."""
        return bool(_hear(self._mailbox.beat.remote(pulse), self._missing))

    def leave(self, pulse: Pulse) -> None:
        """Send word that no more signs of life will come, and none are needed."""
        self._mailbox.leave.remote(pulse)

    def sightings(self) -> list[Sighting]:
        """The last signs of life of every worker."""
        return _hear(self._mailbox.sightings.remote(), self._missing)

    def ask_for_stacks(self) -> None:
        """Ask all workers where they are; those that can answer with an event."""
        self._mailbox.ask_for_stacks.remote()

    def forget(self) -> None:
        """Forget all signs of life: their workers are gone."""
        self._mailbox.forget.remote()

    def lose(self, loss: dict[str, Any]) -> None:
        """Leave word for the next workers of what their start costs."""
        self._mailbox.lose.remote(loss)

    def loss(self) -> dict[str, Any] | None:
        """What the last restart has cost; None before the first one."""
        return _hear(self._mailbox.loss.remote(), self._missing)


class StopWatch:
    """Whether a stop is requested, asked of the channel at most once a second and never waited for."""

    def __init__(self, channel: Channel, who: str = "") -> None:
        self._channel, self._who, self._stop = channel, who, False
        self._asked: Any = None
        self._asked_at = 0.0

    def __call__(self) -> bool:
        """The answer as far as it is known."""
        if self._asked is None:
            if time.monotonic() - self._asked_at > 1:
                self._asked, self._asked_at = self._channel.ask_stopping(self._who), time.monotonic()
        elif ray.wait([self._asked], timeout=0)[0]:
            self._stop, self._asked = self._stop or bool(_hear(self._asked)), None
        return self._stop
