"""Where the time of training goes: seconds by cause, the ceilings of this machine, and what they mean in words.

A step waits for storage, for decoding, for the copy to the device, for a slower worker, and for commits; the rest of it
computes. Times are this rank's own, taken on the host without waiting for the device: what a GPU computes shows where
the host next has to wait for it, in `compute`. So does a worker whose computing is slow, since gradients are averaged
inside the backward; `straggler` is what others make this rank wait for their data.
"""

from dataclasses import astuple, dataclass, fields
from typing import Self, final

from mtl.config import Config

_WAITS = ("storage", "decode", "copy", "straggler", "commit")
_WORTH_SAYING = 0.1  # share of the time below which all waits together are no bottleneck


@final
@dataclass
class Sums:
    """Sums over some steps of one rank, in seconds, samples and bytes; they add up over windows.

    Attributes:
        total_s: wall time.
        storage_s, decode_s: waited for a batch, split as the threads that made it spent theirs.
        copy_s: host time of the copies to the device.
        straggler_s: waited for another rank's data.
        commit_s: commits between steps.
        samples: of this rank.
        cpu_s: CPU time of the decoding threads.
        fetching_s, fetched_bytes: of the reads, summed over io threads.
    """

    total_s: float = 0.0
    storage_s: float = 0.0
    decode_s: float = 0.0
    copy_s: float = 0.0
    straggler_s: float = 0.0
    commit_s: float = 0.0
    samples: float = 0
    cpu_s: float = 0.0
    fetching_s: float = 0.0
    fetched_bytes: float = 0

    def add(self, other: "Sums") -> None:
        """Add the sums of other steps."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))

    def values(self) -> list[float]:
        """All of them, to be reduced over ranks."""
        return [float(value) for value in astuple(self)]

    @classmethod
    def mean(cls, values: list[float], ranks: int) -> Self:
        """What `values`, summed over ranks, say of one rank on average."""
        return cls(*(value / ranks for value in values))  # type: ignore[arg-type]

    def shares(self) -> dict[str, float]:
        """Each cause's share of the time, `compute` being the rest; they sum to one."""
        waits = {name: float(getattr(self, f"{name}_s")) for name in _WAITS}
        total = max(self.total_s, sum(waits.values()), 1e-9)
        shares = {name: seconds / total for name, seconds in waits.items()}
        return {**shares, "compute": 1 - sum(shares.values())}


@final
@dataclass(frozen=True)
class Machine:
    """What feeds one worker: decoding threads, concurrent reads, and the kinds of storage, such as "S3"."""

    threads: int
    io_threads: int
    storage: str


def machine(config: Config) -> Machine:
    """What feeds a worker of this configuration."""
    addresses = [config.data, *(source.data for source in config.mixture.values())]
    storage = " and ".join(dict.fromkeys(map(_storage, addresses)))
    return Machine(config.loader.threads or config.resources.cpus_per_worker, config.loader.io_threads, storage)


def _storage(address: str) -> str:
    scheme, found, _ = address.partition("://")
    return {"s3": "S3", "file": "local files"}.get(scheme, scheme) if found else "local files"


def ceilings(sums: Sums, machine: Machine) -> dict[str, float]:
    """Images per second that this worker could decode and fetch at most, at the rates measured; only what is known."""
    found: dict[str, float] = {}
    if sums.cpu_s > 0 and sums.samples:
        found["decode"] = machine.threads * sums.samples / sums.cpu_s
    if sums.fetching_s > 0 and sums.fetched_bytes and sums.samples:
        # Each image costs its share of what was fetched; io threads are taken to be as fast together as alone.
        found["storage"] = machine.io_threads * sums.samples / sums.fetching_s
    return found


def verdict(sums: Sums, machine: Machine) -> str:
    """One sentence: what bounds the speed, by how much, and what would help."""
    shares = sums.shares()
    waiting = 1 - shares["compute"]
    if waiting < _WORTH_SAYING:
        return f"compute-bound: {shares['compute']:.0%} of the step computes; data, copies and commits hide behind it"
    cause = max(_WAITS, key=lambda name: shares[name])
    most = ceilings(sums, machine)
    limit = f" (at most {most[cause]:,.0f} images/s a worker" if cause in most else ""
    match cause:
        case "storage":
            reads = limit and f"{limit}, {machine.io_threads} reads at a time)"
            what = f"waits for {machine.storage}{reads}"
            cure = "more loader.io_threads or loader.prefetch_mb, or keeping the data (loader.memory), would help"
        case "decode":
            threads = limit and f"{limit}, {machine.threads} thread{'' if machine.threads == 1 else 's'})"
            what = f"waits for decoding{threads}"
            cure = "more CPU cores (loader.threads), smaller stored images (jobs/prepare.py --short-side-px), or "
            cure += "keeping decoded ones (loader.memory) would help"
        case "copy":
            what, cure = "copies to the device", "fewer CPU threads beside it, or a faster bus, would help"
        case "straggler":
            what, cure = "waits for the data of a slower worker", "look at that worker's CPU, network and neighbours"
        case _:
            what, cure = "commits checkpoints", "a larger checkpoint.every_s would help"
    return f"{cause}-bound: {shares[cause]:.0%} of the step {what}; {cure}"
