"""What a driver does about what it hears of its workers: show it, keep it, and end what takes too long."""

from collections.abc import Callable
from functools import partial
from typing import final

from mtl.config import Resources
from mtl.console import sentence
from mtl.logs import Logs
from mtl.on_ray.channel import Channel, Event
from mtl.on_ray.heart import Watch
from mtl.on_ray.losses import Losses
from mtl.on_ray.outage import wait_for_head
from mtl.on_ray.watchdog import Watchdog


@final
class Listener:
    """Attends to one group of workers after the other.

    Args:
        resources: what was asked for, and how long things may take.
        channel: makes the one from the workers and Train's controller; told what to do while it says nothing.
        listen: called with every event of rank 0, and with notes of the driver's own.
        logs: keeps all of that, and what the workers print; shipped with every commit.

    Attributes:
        failures: how often workers were started anew because some had failed.
    """

    def __init__(
        self,
        resources: Resources,
        channel: Callable[[Callable[[], None]], Channel],
        listen: Callable[[Event], None],
        logs: Logs,
    ) -> None:
        self._listen, self.logs, self.failures = listen, logs, 0
        self.channel = channel(partial(wait_for_head, self.say))
        self._watchdog, self._losses = Watchdog(resources), Losses()
        self._watch = Watch(resources, self.channel, self.say)

    @property
    def waiting(self) -> bool:
        """Whether there are no workers, so that nobody would hear a request to stop."""
        return self._watchdog.waiting

    def attend(self) -> None:
        """Hear what there is to hear, and judge.

        Raises:
            ResourceError: there have been no workers for too long, or no head.
            ChannelLost: nobody is heard any more.
        """
        for event in self.channel.drain():
            self._hear(event)
        seen = self.channel.sightings()
        self._losses.seen(seen)
        self._watch.look(seen, training=not self.waiting)
        self._watchdog.check()

    def abort(self) -> bool:
        """End the controller, and with it what it waits for; whether there is one yet.

        Raises:
            ResourceError: the head is gone.
        """
        wait_for_head(self.say)
        return self._watchdog.abort()

    def _hear(self, event: Event) -> None:
        if event["kind"] == "state" and event["name"] in ("RestartingState", "ResizingState"):
            cause = "hang" if self._watch.struck else "resized" if event["name"] == "ResizingState" else event["cause"]
            self.failures += cause in ("failed", "hang")
            loss = self._losses.end(cause)
            self.channel.lose(loss)
            self.say(f"the workers start anew ({cause}), {loss['replayed_s']:.0f} s after what they had committed")
        if self._watchdog.heard(event):
            return
        if event["kind"] == "log":
            self.logs.add(event["source"], event["text"])
            return
        self._listen(event)
        self.logs.say(sentence(event))
        if event["kind"] == "commit":
            self._losses.committed()
            self.logs.ship()

    def say(self, text: str) -> None:
        """Tell a person, and keep it."""
        self._listen({"kind": "note", "text": text})
        self.logs.say(text)
