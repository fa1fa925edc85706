"""Messages between the driver and its workers: events up, a stop request down.

An actor on the driver's node, because a worker's standard output comes to a driver line by line among Ray's own, and
because `ray.train.report` takes a quarter of a second.
"""

import time
from collections import deque
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Event = dict[str, Any]


class _Mailbox:
    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=10_000)
        self._stop: set[str] = set()

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


class Channel:
    """A handle to the mailbox; made by the driver, passed to the workers."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._mailbox: Any = ray.remote(num_cpus=0)(_Mailbox).options(scheduling_strategy=here).remote()

    def put(self, event: Event) -> None:
        """Send an event to the driver; does not wait."""
        self._mailbox.put.remote(event)

    def drain(self) -> list[Event]:
        """The events since the last call."""
        return ray.get(self._mailbox.drain.remote())

    def request_stop(self, who: str = "") -> None:
        """Ask the workers to commit and stop; where many trials share the channel, those of trial `who` or of all."""
        ray.get(self._mailbox.stop.remote(who))

    def ask_stopping(self, who: str = "") -> Any:
        """A future of whether a stop is requested, of `who` or of all."""
        return self._mailbox.stopping.remote(who)


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
            self._stop, self._asked = self._stop or bool(ray.get(self._asked)), None
        return self._stop
