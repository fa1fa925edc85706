"""Where the time of ten steps goes: `--profile`.

Ranks train as they always do; rank 0 watches itself. After the warm-up its steps run under torch.profiler, with the
parts of a step named in the trace, and timed by the host. On a GPU the host waits for it at the ends of those parts, so
that each has its own time; what overlaps between them is lost, so steps are somewhat slower than unwatched. The report
takes seconds to make, which a thread does: other ranks wait for none of it, and it is nobody's wait for data.
"""

import gzip
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.profiler import ProfilerActivity, profile, record_function

from mtl.agreement import Batches
from mtl.balancing.signals.boundary import Boundary
from mtl.data.batch import Batch
from mtl.errors import StoreError
from mtl.store import Store
from mtl.trainee import Trainee
from mtl.verdicts import Breakdown

WARM_UP, STEPS = 10, 10

Spans = npt.NDArray[np.float64]
"""Intervals [n, 2], sorted and apart from each other, in microseconds."""

_MARK = "mtl: "
_COLLECTIVES = ("all_reduce", "allreduce", "nccl")


@final
@dataclass(frozen=True)
class Report:
    """What watching came to.

    Attributes:
        trace: Chrome's format, compressed.
        last_step: number of steps done at its end, of this attempt.
    """

    breakdown: Breakdown
    trace: bytes
    last_step: int


@final
class Profiled:
    """A loader whose batches are trained on under watch: each call for the next one ends a step. `finish` it.

    Args:
        loader: whose batches these are.
        trainee: its signal, weigher and optimizer are timed until the report is made.
        clock: seconds; it stands still while something happens between steps (evaluations, commits).
        done: takes the report, or None where training ends before it is complete; called in the loop's thread.
    """

    def __init__(
        self,
        loader: Batches,
        trainee: Trainee,
        device: torch.device,
        *,
        clock: Callable[[], float],
        done: Callable[[Report | None], None],
        warm_up: int = WARM_UP,
        steps: int = STEPS,
    ) -> None:
        self.size_px = loader.size_px
        self._source, self._device, self._clock, self._done = iter(loader), device, clock, done
        # The loop holds one batch ahead: the call for it ends no step.
        self._first, self._last, self._calls = warm_up + 1, warm_up + 1 + steps, 0
        self._seconds = defaultdict[str, float](float)
        self._stack: list[str] = []
        self._since_s, self._watching = 0.0, False
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        self._profiler = profile(activities=kinds)
        self._undo = list(self._watch(trainee))
        self._made: Future[Report] | None = None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._calls == self._first:
            self._begin()
        elif self._calls == self._last:
            self._end()
        elif self._made is not None and self._made.done():
            self.finish()
        self._calls += 1
        try:
            with self._phase("loader"):
                return next(self._source)
        except StopIteration:
            if self._calls <= self._last:
                self._give_up()
            raise

    def _begin(self) -> None:
        self._profiler.start()
        self._began_s, self._watching = self._clock(), True

    def _end(self) -> None:
        total_s, self._watching = self._clock() - self._began_s, False
        self._profiler.stop()
        for undo in self._undo:
            undo()
        pool = ThreadPoolExecutor(1, "mtl-profile")
        self._made = pool.submit(self._report, total_s)
        pool.shutdown(wait=False)

    def finish(self) -> None:
        """Hand over the report that is being made, if there is one."""
        made, self._made = self._made, None
        if made is not None:
            self._done(made.result())

    def _report(self, total_s: float) -> Report:
        events: list[Any] = list(self._profiler.events() or [])
        steps = self._last - self._first
        breakdown = Breakdown(
            steps=steps,
            warm_up=self._first - 1,
            total_s=total_s,
            seconds=exposed(events, self._seconds, total_s),
            operators=operators(events),
            gpu=self._device.type == "cuda",
        )
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "trace.json"
            self._profiler.export_chrome_trace(str(path))
            trace = gzip.compress(path.read_bytes(), 1)
        return Report(breakdown, trace, self._last - 1)

    def _give_up(self) -> None:
        if self._watching:
            self._profiler.stop()
        self._watching, self._calls = False, self._last + 1  # nothing begins any more
        self._done(None)

    def _watch(self, trainee: Trainee) -> Iterator[Callable[[], None]]:
        signal, weigher = trainee.signal, trainee.weigher
        yield self._around(signal, "forward", "forward")
        yield self._around(signal, "backward", "backward")
        yield self._around(trainee.optimizer, "step", "optimizer")
        for owner, method in ((signal, "begin"), (signal, "end"), (weigher, "ask"), (weigher, "learn")):
            yield self._around(owner, method, "balancing")
        if isinstance(signal, Boundary):
            yield self._around(signal, "weigh", "balancing")

    def _around(self, owner: object, method: str, phase: str) -> Callable[[], None]:
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._phase(phase):
                return inner(*args, **kwargs)

        setattr(owner, method, timed)
        return lambda: delattr(owner, method)

    @contextmanager
    def _phase(self, name: str) -> Generator[None]:
        """Time the inside as `name`, and what is within another phase as that one alone."""
        if not self._watching:
            yield
            return
        self._turn()
        self._stack.append(name)
        with record_function(_MARK + name):
            try:
                yield
            finally:
                self._turn()
                self._stack.pop()

    def _turn(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now_s = time.perf_counter()
        if self._stack:
            self._seconds[self._stack[-1]] += now_s - self._since_s
        self._since_s = now_s


def profiled(
    loader: Batches,
    trainee: Trainee,
    device: torch.device,
    *,
    clock: Callable[[], float],
    store: Store,
    attempt: int,
    say: Callable[[str], None],
) -> Profiled:
    """`loader` under watch; the report is said, and its trace put into the run's storage."""

    def done(report: Report | None) -> None:
        if report is None:
            say(f"training is too short to be profiled: that takes {WARM_UP + STEPS + 1} steps")
            return
        for line in report.breakdown.lines():
            say(line)
        key = f"profile/a{attempt}-{report.last_step:06d}.json.gz"
        try:
            store.put(key, report.trace)
            say(f"the trace is {key} of the run: open it in ui.perfetto.dev or chrome://tracing")
        except StoreError as error:
            say(f"the trace could not be kept: {error.what}")

    return Profiled(loader, trainee, device, clock=clock, done=done)


def exposed(events: list[Any], seconds: Mapping[str, float], total_s: float) -> dict[str, float]:
    """Seconds by phase, with those in which nothing but collectives ran taken out of each, and `collective` and `other`
    added: they sum to total_s.

    Args:
        events: of the profiler.
        seconds: by phase.
    """
    on_gpu = kernels(events)
    running = on_gpu or [event for event in events if event.name.startswith(("aten::", "gloo:", "c10d::"))]
    # The call that issues a collective (c10d::) is not the collective.
    collectives = [event for event in running if _collective(event.name) and not event.name.startswith("c10d::")]
    computing = [event for event in running if not _collective(event.name)]
    left = without(spans(collectives), spans(computing))
    found = dict(seconds)
    found["collective"] = 0.0
    for phase in sorted(seconds, key=lambda name: name != "balancing"):  # it lies within others
        within = spans(
            [event for event in events if event.name == _MARK + phase and event.device_type == DeviceType.CPU]
        )
        rest = without(left, within)
        taken_s = min((length(left) - length(rest)) * 1e-6, found[phase])
        found[phase] -= taken_s
        found["collective"] += taken_s
        left = rest
    outside_s = max(total_s - sum(found.values()), 0.0)
    waited_s = min(length(left) * 1e-6, outside_s)
    found["collective"] += waited_s
    return {**found, "other": outside_s - waited_s}


def operators(events: list[Any]) -> list[tuple[str, float]]:
    """Operators (kernels, on a GPU) by their own time, the largest first, with their shares of all."""
    on_gpu = kernels(events)
    own = defaultdict[str, float](float)
    for event in on_gpu or events:
        if not event.name.startswith(_MARK):
            own[event.name] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    total = sum(own.values()) or 1
    largest = sorted(own.items(), key=lambda item: -item[1])[:5]
    return [(name, spent / total) for name, spent in largest]


def kernels(events: list[Any]) -> list[Any]:
    """What ran on a GPU; annotations, which the profiler shows there too, are not."""
    return [event for event in events if event.device_type == DeviceType.CUDA and not event.is_user_annotation]


def spans(events: list[Any]) -> Spans:
    """When at least one of the events was under way."""
    if not events:
        return np.empty((0, 2))
    each = np.array(sorted((event.time_range.start, event.time_range.end) for event in events), np.float64)
    ends = np.maximum.accumulate(each[:, 1])
    starts = np.flatnonzero(np.r_[True, each[1:, 0] > ends[:-1]])
    return np.stack([each[starts, 0], ends[np.r_[starts[1:] - 1, len(each) - 1]]], axis=1)


def without(these: Spans, those: Spans) -> Spans:
    """The parts of `these` in which none of `those` was under way."""
    left: list[tuple[float, float]] = []
    for start, end in these.tolist():
        for low, high in those[(those[:, 1] > start) & (those[:, 0] < end)].tolist():
            if low > start:
                left.append((start, low))
            start = max(start, high)
        if end > start:
            left.append((start, end))
    return np.array(left, np.float64).reshape(-1, 2)


def length(of: Spans) -> float:
    """Microseconds in all."""
    return float((of[:, 1] - of[:, 0]).sum())


def _collective(name: str) -> bool:
    return any(part in name.lower() for part in _COLLECTIVES)
