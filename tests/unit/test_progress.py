"""Progress: few lines in a log, a bar at a terminal, right from any thread."""

import io
import os
import pty
import re
import threading
from concurrent.futures import ThreadPoolExecutor

from mtl.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def progress(clock: Clock, total: float = 60_000, **options: float) -> tuple[Progress, io.StringIO]:
    stream = io.StringIO()
    return Progress("prepare", total, "images", stream=stream, clock=clock, **options), stream


def test_a_log_gets_the_first_line_at_once_then_few_and_a_last_one() -> None:
    clock = Clock()
    shown, stream = progress(clock)
    with shown:
        assert stream.getvalue() == "prepare  0/60,000 images  0 %\n"
        for second in range(31):
            clock.now = second
            shown.update(1500 * second, "shard 3")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1 + 6 + 1
    assert lines[2] == "prepare  15,000/60,000 images  25 %  1,500 images/s  30 s left  shard 3"
    assert lines[-1] == "prepare  45,000/60,000 images  75 %  1,500 images/s  after 30 s  shard 3"


def test_what_was_there_before_does_not_count_for_the_rate() -> None:
    clock = Clock()
    shown, stream = progress(clock, 1000)
    with shown:
        shown.update(900)
        clock.now = 10
        shown.update(950)
    assert "5 images/s  10 s left" in stream.getvalue()


def test_long_times_are_rounded() -> None:
    clock = Clock()
    shown, stream = progress(clock)
    with shown:
        shown.update(0)
        for clock.now, done in ((10, 30), (20, 3_000)):
            shown.update(done)
    assert "3 images/s  5 h 33 min left" in stream.getvalue()
    assert "150 images/s  6 min left" in stream.getvalue()


def test_threads_may_update_in_any_order() -> None:
    shown, stream = progress(Clock(), 1000, every_s=0)
    with shown, ThreadPoolExecutor(8) as pool:
        list(pool.map(shown.update, range(1001)))
    amounts = [int(re.search(r"([\d,]+)/", line)[1].replace(",", "")) for line in stream.getvalue().splitlines()]
    assert amounts == sorted(amounts)
    assert amounts[-1] == 1000


def test_a_terminal_gets_a_bar() -> None:
    master, slave = pty.openpty()
    seen = bytearray()

    def drain() -> None:
        while True:
            try:
                data = os.read(master, 4096)
            except OSError:  # how Linux tells that the other end is closed
                return
            if not data:
                return
            seen.extend(data)

    reader = threading.Thread(target=drain)
    reader.start()
    with os.fdopen(slave, "w") as terminal, Progress("prepare", 10, "images", stream=terminal) as shown:
        shown.update(10)
    reader.join()
    os.close(master)
    assert b"10/10 images" in seen
    assert b"\x1b[" in seen
