"""Checks of the process that trains: its software, its share of the batch, one step and the memory that it takes."""

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from mtl.config import Config
from mtl.console import counted
from mtl.data.balance import balance
from mtl.data.manifest import Manifest
from mtl.doctor.case import Case
from mtl.findings import Finding
from mtl.preflight import world_size
from mtl.task_config import WITH_CLASSES
from mtl.versions import unlocked, versions

STEP_LIMIT_S = 240.0
"""Torch takes seconds to load, a large model's step on a CPU longer."""


def software() -> Iterator[Finding]:
    """The versions here, against the lock file."""
    found = versions()
    told = ", ".join(f"{name} {version}" for name, version in found.items())
    if other := unlocked():
        yield Finding(
            "warn",
            "software",
            f"{len(other)} packages are not those of requirements.lock.",
            "; ".join(f"{name} {here}, locked {locked}" for name, (here, locked) in list(other.items())[:6]),
            "results were not tested with them; `make test` tests them, a new .venv has the locked ones",
        )
    else:
        yield Finding("ok", "software", told)


def batch(config: Config) -> Iterator[Finding]:
    """The arithmetic of batch, workers and lanes."""
    lanes, workers = config.order.lanes, world_size(config)
    told = f"{config.global_batch:,} samples a step; {counted(lanes, 'lane')} over {counted(workers, 'worker')}"
    if config.model.batch_norm == "groups":
        groups = config.model.batch_norm_groups
        told += f"; batch norm over {groups} groups of {config.global_batch // groups}"
    if scaled := config.optimizer.scaled(config.global_batch):
        told += f"; {scaled}"
    if lanes % workers:
        yield Finding(
            "warn",
            "batch",
            told,
            f"{workers} workers do not divide {lanes} lanes, so that some wait: at best {balance(lanes, workers):.0%} "
            "of the speed",
            "use a number of workers that divides order.lanes",
        )
    else:
        yield Finding("ok", "batch", told)


def step(config: Config, manifest: Manifest | None, *, gpu: bool = False, on_node: int = 1) -> Iterator[Finding]:
    """One training step in this process.

    Args:
        gpu: take it on a GPU.
        on_node: workers that share this node's memory.
    """
    from mtl.rehearsal import rehearse

    found = rehearse(config, manifest, gpu=gpu)
    losses = ", ".join(f"{task} {loss:.2f}" for task, loss in found.losses.items())
    of = "the data set's first images" if manifest else "blank images"
    told = (
        f"{found.parameters:,} parameters; a step on {found.samples} of {of} took {found.seconds:.1f} s "
        f"(losses: {losses}); about {found.memory_bytes / 1e9:.1f} GB for {found.micro_batch} samples of "
        f"{config.augment.size_px} px on {'the GPU' if config.resources.gpu else 'each worker'}"
    )
    if found.initial:
        yield Finding("ok", "weights", "; ".join(found.initial))
    have = memory_bytes()
    if not config.resources.gpu and found.memory_bytes * on_node > 0.8 * have:
        yield Finding(
            "warn",
            "step",
            told,
            f"{on_node} workers share {have / 1e9:.0f} GB on {platform.node()}",
            "set --max-micro-batch (gradients are accumulated, with the same result), or use fewer workers a node",
        )
    else:
        yield Finding("ok", "step", told)


def step_if_known(case: Case) -> Iterator[Finding]:
    """As `step`, on this machine's CPU; without data, a number of classes that is not known is no failure."""
    tasks = case.config.tasks.items()
    unknown = [name for name, task in tasks if task.kind in WITH_CLASSES and not task.class_count]
    if case.manifest is None and unknown:
        what = f"Without a data set the classes of {', '.join(unknown)} are not known: no step is taken."
        yield Finding(
            "warn", "step", what, mend=f"write the data set, or set --tasks.{unknown[0]}.classes and the like"
        )
    else:
        yield from step(case.config, case.manifest)


def memory_bytes() -> int:
    """The memory that this process may use: the machine's, or its container's."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text()))
    return min(limits)
