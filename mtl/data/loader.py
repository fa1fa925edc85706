"""Batches of one rank, in exact order: threads fetch row groups, decode into the batch's own memory, and stay ahead.

What is ahead is bounded by bytes: finished batches take up to half of the budget, row groups beyond the lanes' current
blocks the rest (see `lanes`). A batch is made in chunks; a chunk of samples goes through every stage together.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, final

import numpy as np
import numpy.typing as npt

from mtl.data.batch import EMPTY, OK, QUARANTINED, Bad, Batch, Cost, ledger
from mtl.data.columns import LabelArray
from mtl.data.footprint import split_prefetch
from mtl.data.lanes import Lanes, Located, Reads
from mtl.data.memory import Decoded, Encoded, Source
from mtl.data.mixture import AnyOrder
from mtl.data.order import slots
from mtl.data.reader import RowGroup
from mtl.data.target import Target as Target
from mtl.data.transforms import U8, Draws, View

_CHUNK, _CHUNK_BYTES = 32, 2**21  # samples that one thread makes at a stretch: at least, and at most in pixels
_LITTLE_BYTES = 2**16  # pixels in memory, of which the copy costs less than handing it to a thread
_WORTH_BYTES = 2**14  # images, on average, whose memory is given back as they are decoded: several pages


@final
class Loader:
    """An iterator over this rank's batches of the given steps.

    Args:
        reader: row groups of the split.
        order: its order, or that of a mixture of splits.
        view: the transform.
        targets: one for each task.
        steps: half-open range of steps to deliver; step s is batch s mod steps-per-epoch of its epoch.
        rank, world_size: which lanes are ours.
        groups: batch-norm groups; see `order.slots`.
        threads, io_threads: parallelism, never the result.
        prefetch_batches, prefetch_bytes: bounds on what is ahead. One batch and one block always may be.
        memory: what is kept from epoch to epoch; "decoded" needs a view that is `fixed`.
    """

    def __init__(
        self,
        reader: Source,
        order: AnyOrder,
        view: View,
        targets: tuple[Target, ...],
        steps: range,
        *,
        rank: int = 0,
        world_size: int = 1,
        groups: int = 1,
        threads: int = 1,
        io_threads: int = 8,
        prefetch_batches: int = 4,
        prefetch_bytes: int = 2**27,
        memory: Literal["none", "encoded", "decoded"] = "none",
    ) -> None:
        assert memory != "decoded" or view.fixed
        self._reader = Encoded(reader) if memory == "encoded" else reader
        self._order, self._view, self._targets = order, view, targets
        self._steps: Iterator[int] = iter(steps)
        self._rank, self._world_size, self._groups = rank, world_size, groups
        self.size_px = view.size_px
        self._io = ThreadPoolExecutor(io_threads, "mtl-read")
        self._decode, self._threads = ThreadPoolExecutor(threads, "mtl-decode"), threads
        self._pending: deque[_Pending] = deque()
        self._decoded: Decoded | None = None
        index = reader.index
        if memory == "decoded":
            labels = {t.task: t.empty(index.images) for t in targets}
            self._decoded = Decoded(index, view.size_px, labels)
        local_batch = -(-order.lanes // world_size) * (order.global_batch // order.lanes)
        batch_bytes = local_batch * 3 * view.size_px**2
        self._prefetch, ahead_bytes = split_prefetch(prefetch_bytes, prefetch_batches, batch_bytes)
        self._once = (index.length >= _WORTH_BYTES * index.rows) & (memory == "none")
        self._lanes = Lanes(
            order,
            range(rank, order.lanes, world_size),
            steps[-1] // order.steps if steps else 0,
            self._fetch,
            self._io,
            index.length,
            ahead_bytes,
            self._once,
            self._decoded.unknown if self._decoded else lambda rows: np.ones(len(rows), np.bool_),
        )
        self._fetched: deque[tuple[float, int]] = deque()  # seconds and bytes of reads; threads append, ours empties

    def __iter__(self) -> Iterator[Batch]:
        try:
            while (step := next(self._steps, None)) is not None:
                self._pending.append(self._start(step))
                if len(self._pending) > self._prefetch:
                    yield self._finish(self._pending.popleft())
            while self._pending:
                yield self._finish(self._pending.popleft())
        finally:
            self.close()

    def close(self) -> None:
        """Stop the threads and end the iteration; what was read ahead is dropped. Does not wait."""
        for pool in (self._io, self._decode):
            pool.shutdown(wait=False, cancel_futures=True)
        self._steps = iter(())
        self._pending.clear()
        self._lanes.close()

    def _fetch(self, number: int) -> RowGroup:
        began = time.perf_counter()
        group = self._reader.read(number)
        self._fetched.append((time.perf_counter() - began, int(self._reader.index.length[number])))
        return group

    def _start(self, step: int) -> "_Pending":
        epoch, batch = divmod(step, self._order.steps)
        positions = slots(self._order, batch, self._rank, self._world_size, self._groups)
        filled = np.flatnonzero(positions >= 0)
        n, size = len(positions), self.size_px
        images = np.empty((n, size, size, 3), np.uint8)
        status = np.full(n, OK, np.uint8)
        if len(filled) < n:
            images[positions < 0], status[positions < 0] = 0, EMPTY
        labels = {t.task: t.empty(n) for t in self._targets}
        made = Batch(step, epoch, images, labels, np.ones((n, 3), np.float32), status, 0, [], positions)
        positions = positions[filled]
        found = self._lanes.locate(epoch, positions)
        chunks: list[Future[_Made]] = []
        for begin, end in self._cuts(filled):
            part = found.part(begin, end)
            wanted = part.which if self._decoded is None else part.which[self._decoded.unknown(part.rows)]
            needs = {number: found.reads[number] for number in np.unique(wanted).tolist()}
            at = slice(int(filled[begin]), int(filled[end - 1]) + 1)
            submit = _now if not needs and images[at].nbytes <= _LITTLE_BYTES else self._decode.submit
            chunks.append(submit(self._fill, made, at, positions[begin:end], part, needs))
        self._lanes.read_ahead()  # only now: what this batch needs of other lanes is read first
        return _Pending(made, chunks)

    def _cuts(self, filled: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """Where the chunks of a batch begin and end among its filled slots; the slots of each are consecutive."""
        n = len(filled)
        most = min(-(-n // self._threads), _CHUNK_BYTES // (3 * self.size_px**2))
        gaps = [0, *(np.flatnonzero(np.diff(filled) != 1) + 1).tolist(), n] if n and filled[-1] != n - 1 else [0, n]
        for first, last in pairwise(gaps):
            for begin in range(first, last, max(most, _CHUNK)):
                yield begin, min(begin + max(most, _CHUNK), last)

    def _fill(self, made: Batch, at: slice, positions: npt.NDArray[np.int64], part: Located, reads: Reads) -> "_Made":
        """Make the samples of the consecutive slots `at`, which are `part`, with those of its reads that they need."""
        rows = part.rows
        began = time.perf_counter()
        groups = {number: read.result() for number, read in reads.items()}
        working, cpu = time.perf_counter(), time.thread_time()
        draws = self._view.draw(made.epoch, positions)
        images, status, colour = made.images[at], made.status[at], made.colour[at]
        labels = {task: values[at] for task, values in made.labels.items()}
        ids, refused = self._render(images, labels, part, groups, draws)
        status[[*refused]] = QUARANTINED
        self._view.finish(images, draws)
        for target in self._targets:
            if target.negated_by_flip != "no":
                values = labels[target.task]
                values[:] = target.mirror(values, draws.flip)
        colour[:] = draws.colour
        return _Made(
            ledger(made.epoch, positions, ids, status),
            [self._bad(int(positions[i]), rows.group[i], rows.row[i], why) for i, why in sorted(refused.items())],
            reading_s=working - began,
            making_s=time.perf_counter() - working,
            cpu_s=time.thread_time() - cpu,
        )

    def _bad(self, position: int, group: np.int64, row: np.int64, reason: str) -> Bad:
        index = self._reader.index
        return Bad(position, index.shard_path[int(index.shard[group])], index.on_storage(int(group), int(row)), reason)

    def _render(
        self, images: U8, labels: dict[str, LabelArray], part: Located, groups: dict[int, RowGroup], draws: Draws
    ) -> tuple[npt.NDArray[np.uint64], dict[int, str]]:
        """Pixels before `finish`, and labels; returns the image ids, and why images were refused, by place."""
        rows, decoded, refused, todo = part.rows, self._decoded, dict[int, str](), np.arange(len(part.rows))
        ids, numbers = np.empty(len(rows), np.uint64), todo
        if decoded is not None:
            numbers = decoded.number(rows)
            todo, refused = decoded.recall(numbers, images, ids, labels)
        if len(todo):
            its_groups, its_rows = part.which[todo], rows.row[todo]
            for number in np.unique(its_groups).tolist():
                group, those = groups[number], np.flatnonzero(its_groups == number)
                places, in_group = todo[those], its_rows[those]
                ids[places] = group.ids[in_group]
                for target in self._targets:
                    for values, column in target.places(labels[target.task]):
                        values[places] = group.labels[column][in_group]
            data = [groups[g].image(row) for g, row in zip(its_groups.tolist(), its_rows.tolist(), strict=True)]
            new = self._view.render(data, images, draws, todo.tolist())
            for place, number, row in zip(todo.tolist(), its_groups.tolist(), its_rows.tolist(), strict=True):
                if self._once[rows.group[place]]:
                    groups[number].give_back(row)
            for i in new:
                images[i] = 0
                for values in labels.values():
                    values[i] = -1 if np.issubdtype(values.dtype, np.integer) else np.nan
            if decoded is not None:
                its_labels = {task: values[todo] for task, values in labels.items()}
                why = {int(numbers[i]): reason for i, reason in new.items()}
                decoded.keep(numbers[todo], images[todo], ids[todo], its_labels, why)
            refused |= new
        return ids, refused

    def _finish(self, pending: "_Pending") -> Batch:
        batch, parts = pending.batch, [chunk.result() for chunk in pending.chunks]
        batch.ledger = sum(part.ledger for part in parts) % 2**64
        batch.bad = [bad for part in parts for bad in part.bad]
        fetched = [self._fetched.popleft() for _ in range(len(self._fetched))]
        batch.cost = Cost(
            reading_s=sum(part.reading_s for part in parts),
            making_s=sum(part.making_s for part in parts),
            cpu_s=sum(part.cpu_s for part in parts),
            fetching_s=sum(seconds for seconds, _ in fetched),
            fetched_bytes=sum(size for _, size in fetched),
        )
        return batch


@dataclass(frozen=True)
class _Made:
    """What a chunk leaves besides its samples."""

    ledger: int
    bad: list[Bad]
    reading_s: float
    making_s: float
    cpu_s: float


@dataclass(frozen=True)
class _Pending:
    batch: Batch
    chunks: list[Future[_Made]]


def _now(make: Callable[..., _Made], *args: object) -> Future[_Made]:
    """Like `submit`, but in this thread."""
    done: Future[_Made] = Future()
    done.set_result(make(*args))
    return done
