"""One measurement in a process of its own: python -m benchmarks.peers.process JSON. See TASKS.

The CPU time is that of the whole process tree. Linux only: it is read from /proc.
"""

import contextlib
import ctypes
import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.peers import BATCH, SIZE

_PR_SET_CHILD_SUBREAPER = 36
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CORE_IMAGES = 1000
_SHAPES = ((BATCH, SIZE, SIZE, 3), (BATCH, 3, SIZE, SIZE))


def prepare(loader: str, images: str, folder: str, **more: Any) -> dict[str, Any]:
    """Convert the tree `images` into the loader's format."""
    importlib.import_module(f"benchmarks.peers.{loader}").prepare(Path(images), Path(folder), **more)
    return {}


def prepare_small(folder: str, count: int) -> dict[str, Any]:
    """Write the CIFAR-10-sized data set."""
    from benchmarks.peers import ours

    ours.prepare_small(Path(folder), count)
    return {}


def rate(loader: str, source: str, decoder: str, workers: int, warmup: int, images: int) -> dict[str, Any]:
    """Rate and CPU time over at least `images` images, after `warmup`."""
    module = importlib.import_module(f"benchmarks.peers.{loader}")
    batches = module.batches(source, decoder, workers)
    pixels = next(batches)[0]
    if tuple(pixels.shape) not in _SHAPES or str(pixels.dtype).removeprefix("torch.") != "uint8":
        raise ValueError(f"{loader} delivers {pixels.dtype} {tuple(pixels.shape)}, not uint8 of one of {_SHAPES}")
    return _timed(batches, warmup, images)


def small_rate(source: str, workers: int, warmup: int, images: int) -> dict[str, Any]:
    """The same for ours with CIFAR-10-sized images."""
    from benchmarks.peers import ours

    return _timed(ours.small_batches(source, workers), warmup, images)


def steps(source: str, workers: int, warmup_steps: int, steps: int) -> dict[str, Any]:
    """Ours over exactly the first `steps` steps, with the ledger that tells whether a row was lost or doubled."""
    from benchmarks.peers import ours

    begun, images, ledger, bad = time.perf_counter(), 0, 0, 0
    for number, batch in enumerate(itertools.islice(ours.loader(source, workers), steps), 1):
        ledger, bad = (ledger + batch.ledger) % 2**64, bad + len(batch.bad)
        images += len(batch.images) if number > warmup_steps else 0
        begun = time.perf_counter() if number == warmup_steps else begun
    return {"images_per_s": images / (time.perf_counter() - begun), "ledger": ledger, "bad": bad}


def first(source: str, workers: int, step: int) -> dict[str, Any]:
    """Seconds from nothing but imports to the first batch, at `step`."""
    from benchmarks.peers import ours

    begun = time.perf_counter()
    next(ours.loader(source, workers, start=step))
    return {"seconds": time.perf_counter() - begun}


def memory(source: str, workers: int, images: int) -> dict[str, Any]:
    """Most resident bytes while reading `images` images, above those of the interpreter with its imports."""
    from benchmarks.peers import ours

    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    seen = 0
    for batch in ours.loader(source, workers):
        seen += len(batch.images)
        if seen >= images:
            break
    return {"rss_bytes": _status_bytes("VmHWM") - before}


def core(images: str, count: int, warmup: int) -> dict[str, Any]:
    """Images that one core decodes and crops in a second, with nothing around it, from memory."""
    from benchmarks.peers.decode import Ours
    from benchmarks.peers.images import files

    data = [path.read_bytes() for path, _ in files(Path(images))[:_CORE_IMAGES]]
    view, order = Ours(), itertools.cycle(data)
    for _ in range(warmup):
        view(next(order))
    begun = time.perf_counter()
    for _ in range(count):
        view(next(order))
    return {"images_per_s": count / (time.perf_counter() - begun)}


def all_cores(images: str, count: int, warmup: int, workers: int) -> dict[str, Any]:
    """The same of all cores at once, a process for each: cores that share a cache or a power budget slow each other."""
    with ProcessPoolExecutor(workers) as pool:
        made = list(pool.map(core, [images] * workers, [count] * workers, [warmup] * workers))
    return {"images_per_s": sum(one["images_per_s"] for one in made)}


_TASKS = (prepare, prepare_small, rate, small_rate, steps, first, memory, core, all_cores)
TASKS: dict[str, Callable[..., dict[str, Any]]] = {function.__name__: function for function in _TASKS}


def _timed(batches: Iterator[tuple[Any, Any]], warmup: int, images: int) -> dict[str, Any]:
    """`halves`, the second half's rate over the first's, is far from one where a loader worked in large stretches."""
    _take(batches, warmup)
    began, cpu_s = time.perf_counter(), tree_cpu_s()
    first = _take(batches, images // 2)
    middle = time.perf_counter()
    second = _take(batches, images - first)
    ended, cpu_s = time.perf_counter(), tree_cpu_s() - cpu_s
    return {
        "images_per_s": (first + second) / (ended - began),
        "cpu_ms_per_image": cpu_s / (first + second) * 1000,
        "halves": (second / (ended - middle)) / (first / (middle - began)),
    }


def _take(batches: Iterator[tuple[Any, Any]], images: int) -> int:
    """Take at least `images` images; how many."""
    seen = 0
    while seen < images:
        seen += len(next(batches)[0])
    return seen


def tree_cpu_s() -> float:
    """CPU seconds of this process and all below it, those that have ended included."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
                parents[int(entry)] = int(fields[1])
                ticks[int(entry)] = sum(int(field) for field in fields[11:15])  # own and of reaped children
    mine = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return sum(ticks.get(pid, 0) for pid in mine) / _TICKS_PER_S


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Run the task that the first argument describes; its result goes to the file that this names."""
    spec = json.loads(sys.argv[1])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: spec.pop("cores")])
    # Daemons that detach themselves, as Ray's may, stay below this process and count.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    result = Path(spec.pop("result"))
    made = TASKS[spec.pop("task")](**spec)
    result.write_text(json.dumps(made))


if __name__ == "__main__":
    main()
