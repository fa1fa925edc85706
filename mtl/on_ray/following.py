"""Following a submitted job to its end, through lost connections, and stopping it so that it commits."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import TypeVar, final

from mtl.console import clock as minutes
from mtl.errors import ResourceError
from mtl.on_ray.head import Head, HeadLost, Job
from mtl.on_ray.screen import Screen
from mtl.on_ray.submission import STOP_WAIT_S, client

Answer = TypeVar("Answer")
Tail = Callable[[str], AsyncIterator[str]]

STOPPED = 143
_SILENCE_S = 30.0  # a connection that lost its other end looks like a job with nothing to say
_PAUSE_S = 0.5
_END_TRIES = 3  # the end of a log may be gone with its node


def follow(head: Head, job_id: str, screen: Screen, *, skip: int = 0, tail: Tail | None = None) -> Job:
    """Show a job's log until the job is over.

    Args:
        skip: characters of the log that are not shown.
        tail: gives a job's log from its beginning on, as it grows; Ray's own unless given.

    Returns:
        The job as it ended.

    Raises:
        ResourceError: there is no such job, or its head has not answered for long.
    """
    patiently = Patience(screen.say)
    log = _Log(tail or client(head).tail_job_logs, job_id, screen, skip)
    announced, failures = skip > 0, 0
    try:
        job = patiently(lambda: head.job(job_id))
        while True:
            complete = False
            if job.status == "PENDING":
                screen.wait(f"{job_id} is being set up on the head")
                time.sleep(_PAUSE_S)
            else:
                if job.status == "RUNNING" and not announced:
                    screen.wait(f"{job_id} is running")
                announced = True
                complete = asyncio.run(log.listen())
            job = patiently(lambda: head.job(job_id))
            failures += job.over and not complete
            if job.over and (complete or failures == _END_TRIES):
                return job
            if not complete:
                time.sleep(_PAUSE_S)
    finally:
        screen.close()


def to_the_end(head: Head, job_id: str) -> int:
    """Follow a job on standard output; its exit status, or 130 when the following was interrupted.

    Raises:
        ResourceError: as `follow` and `exit_status`.
    """
    screen = Screen()
    try:
        return exit_status(follow(head, job_id, screen))
    except KeyboardInterrupt:
        screen.say(
            f"{job_id} goes on: `jobs/submit.py follow {job_id}` shows it, `jobs/submit.py stop {job_id}` stops it"
        )
        return 130


def stop(head: Head, job: Job, *, screen: Screen | None = None, tail: Tail | None = None) -> str:
    """Stop a job, wait for its last commit, and say how it ended.

    Raises:
        ResourceError: it did not end by itself in time, and was killed.
    """
    if job.over:
        return f"{job.id} was over before: {job.status.lower()}"
    screen = screen or Screen()
    shown = len(head.log(job.id)) if job.status == "RUNNING" else 0
    head.stop(job.id)
    began = time.monotonic()
    screen.wait(f"stopping {job.id}: it commits first")
    ended = follow(head, job.id, screen, skip=shown, tail=tail)
    seconds = time.monotonic() - began
    if ended.status == "STOPPED" and seconds >= STOP_WAIT_S:
        raise ResourceError(
            f"{job.id} did not stop by itself, and was killed.",
            got=f"no end within {STOP_WAIT_S} s of SIGTERM",
            do="submit the same command again: it resumes from its last commit",
        )
    return f"{job.id} {ended.status.lower()} after {minutes(seconds)}"


def exit_status(job: Job) -> int:
    """The exit status of a job's driver, as a shell would have it; 143 of one that was stopped.

    Raises:
        ResourceError: the driver never ran, or died without a status.
    """
    if job.status == "STOPPED":
        return STOPPED
    if job.exit_code is None:
        raise ResourceError(
            f"The head could not run {job.id} to its end.",
            got="\n            ".join(job.message.strip().splitlines()[-8:]),
            do="mend that and submit the same command again; a run resumes from its last commit",
        )
    return job.exit_code if job.exit_code >= 0 else 128 - job.exit_code


@final
class Patience:
    """Asks a head again while it can not be reached, at growing intervals.

    Args:
        say: told that the connection is lost, and that it is back.
        limit_s: after which it gives up.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        limit_s: float = 900.0,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._say, self._limit_s, self._now, self._sleep = say, limit_s, now, sleep

    def __call__(self, ask: Callable[[], Answer]) -> Answer:
        """The answer.

        Raises:
            ResourceError: none within the limit, or a refusal.
        """
        began, pause = self._now(), 1.0
        while True:
            try:
                answer = ask()
            except HeadLost as error:
                seconds = self._now() - began
                if seconds > self._limit_s:
                    raise ResourceError(
                        "The head does not answer any more.",
                        got=f"{error}, for {minutes(seconds)}",
                        do="the job may well go on: follow it again once the head can be reached",
                    ) from error
                if pause == 1:
                    self._say(f"the connection to the head is lost ({error}); the job goes on, trying again")
            else:
                if pause > 1:
                    self._say(f"connected again after {minutes(self._now() - began)}")
                return answer
            self._sleep(pause)
            pause = min(2 * pause, 15.0)


@final
class _Log:
    """What was shown of a log, so that no connection shows it twice."""

    def __init__(self, tail: Tail, job_id: str, screen: Screen, seen: int) -> None:
        self._tail, self._job_id, self._screen, self._seen = tail, job_id, screen, seen

    async def listen(self) -> bool:
        """Show the log as it grows; True once it is complete, False when the connection was lost or fell silent."""
        import aiohttp

        position = 0
        try:
            async with aclosing(_timed(self._tail(self._job_id), self._screen.tick)) as pieces:
                async for piece in pieces:
                    self._screen.feed(piece[max(self._seen - position, 0) :])
                    position += len(piece)
                    self._seen = max(self._seen, position)
        except (OSError, RuntimeError, aiohttp.ClientError):
            return False
        return True


async def _timed(pieces: AsyncIterator[str], tick: Callable[[], None]) -> AsyncGenerator[str]:
    """The pieces, with a tick every second.

    Raises:
        TimeoutError: none came for `_SILENCE_S`.
    """
    while True:
        coming = asyncio.ensure_future(anext(pieces, None))
        for _ in range(int(_SILENCE_S)):
            if (await asyncio.wait({coming}, timeout=1.0))[0]:
                break
            tick()
        else:
            coming.cancel()
            raise TimeoutError
        piece = coming.result()
        if piece is None:
            return
        yield piece
