"""Hangs, from both ends: the worker's thread that beats, and the driver's judgement, which kills."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import final

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mtl.config import Resources
from mtl.on_ray.channel import Channel
from mtl.on_ray.output import Output
from mtl.on_ray.pulse import Hang, Pulse, Sighting, Stragglers, hang, stacks

_BEAT_S = 1.0
_ANSWER_S = 3.0  # for the stacks to arrive
_RESTART_S = 60.0  # for Ray to notice and to begin anew


@final
class Heart:
    """Sends a pulse, and what this process has printed, once a second from a thread of its own.

    It ends when closed, or when the driver is gone.

    Args:
        channel: to the driver.
        pulse: how this worker is.
    """

    def __init__(self, channel: Channel, pulse: Callable[[], Pulse]) -> None:
        self._channel, self._pulse, self._closing, self._output = channel, pulse, threading.Event(), Output()
        self._send()  # before anything is trained: nobody misses a worker that was never heard of
        self._thread = threading.Thread(target=self._beat, name="heart", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Beat no more, and say so: silence from here on is no hang."""
        self._closing.set()
        self._thread.join(timeout=_ANSWER_S)

    def _beat(self) -> None:
        while not self._closing.wait(_BEAT_S):
            if not self._send():
                return
        pulse = self._pulse()
        self._send_output(pulse)
        self._channel.leave(pulse)

    def _send(self) -> bool:
        """Whether there is anybody to hear it."""
        pulse = self._pulse()
        try:
            self._send_output(pulse)
            if self._channel.beat(pulse):
                self._channel.put({"kind": "note", "text": f"{pulse} is here:\n{stacks()}"})
        except RayError:
            return False
        return True

    def _send_output(self, pulse: Pulse) -> None:
        if text := self._output():
            self._channel.put({"kind": "log", "source": f"worker-{pulse.rank}-{pulse.pid}", "text": text})


@final
class Watch:
    """The driver's watch over workers that train: names stragglers, and kills those that hang so that Ray restarts all.

    Args:
        resources: the deadlines.
        channel: to the workers.
        say: receives sentences for people.
        kill: ends the process of a worker on its node.
        clock: seconds, never going backwards.
    """

    def __init__(
        self,
        resources: Resources,
        channel: Channel,
        say: Callable[[str], None],
        *,
        kill: Callable[[Pulse], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resources, self._channel, self._say = resources, channel, say
        self._kill, self._clock = kill or kill_process, clock
        self._hang: Hang | None = None
        self._struck = False
        self._next_s = float("-inf")
        self._stragglers = Stragglers()

    @property
    def struck(self) -> bool:
        """Whether these workers had one that hung."""
        return self._struck

    def look(self, seen: Sequence[Sighting], *, training: bool) -> None:
        """Judge the workers; to be called about once a second.

        Args:
            training: whether there are workers. What was heard of others is forgotten.
        """
        now_s = self._clock()
        if not training:
            self._channel.forget()
            self._hang, self._struck, self._next_s = None, False, float("-inf")
            return
        if now_s < self._next_s:
            return
        if self._hang is not None:
            for pulse in self._hang.culprits:
                self._kill(pulse)
            self._hang, self._struck, self._next_s = None, True, now_s + _RESTART_S
            return
        resources = self._resources
        self._hang = hang(
            seen,
            first_step_deadline_s=resources.first_step_deadline_s,
            step_deadline_s=resources.step_deadline_s,
        )
        if self._hang is not None:
            self._say(f"{self._hang.text}; killed, so that all workers start anew")
            self._channel.ask_for_stacks()
            self._next_s = now_s + _ANSWER_S
        for sentence in self._stragglers(seen, now_s):
            self._say(sentence)


def kill_process(pulse: Pulse) -> None:
    """SIGKILL, sent on the worker's own node: a stopped process hears nothing else."""
    there = NodeAffinitySchedulingStrategy(pulse.node, soft=False)
    ray.remote(num_cpus=0, max_retries=0)(_sigkill).options(scheduling_strategy=there).remote(pulse.pid)


def _sigkill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
