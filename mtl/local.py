"""Training without Ray: this process alone, or the processes that torchrun started."""

import torch
import torch.distributed as dist

from mtl.config import Config
from mtl.console import RunConsole
from mtl.errors import ConfigError, RunError
from mtl.job import Job, Result
from mtl.limit import Limit
from mtl.memory import attributed
from mtl.record import read
from mtl.rewind import persevere
from mtl.runtime import LocalRuntime
from mtl.session import train as owned
from mtl.store import open_store


def train(config: Config, console: RunConsole) -> Result:
    """Train in this process; under torchrun, rank 0 owns the run and the others follow."""
    threads = config.resources.cpus_per_worker if dist.is_torchelastic_launched() else torch.get_num_threads()
    over = Limit(config.max_hours, console.line)
    with LocalRuntime(gpu=config.resources.gpu, threads=threads, listen=console, over=over) as runtime:
        groups = config.model.batch_norm_groups
        if config.model.batch_norm == "groups" and groups % runtime.world_size:
            raise ConfigError(
                "The number of processes must divide model.batch_norm_groups.",
                got=f"{runtime.world_size} processes, {groups} groups",
                do="start another number of processes, or choose another model.batch_norm",
            )
        return lead(config, console, runtime) if runtime.rank == 0 else follow(config, runtime)


def lead(config: Config, console: RunConsole, runtime: LocalRuntime, dtype: torch.dtype = torch.float32) -> Result:
    """Rank 0's part: own the run, tell the others under which id, train."""
    told = False

    def launch(owner: str) -> Result:
        nonlocal told
        told = True
        return _train(config, runtime, runtime.share(owner), dtype)

    try:
        return owned(config, console, launch)
    finally:
        if not told:
            runtime.share("")  # there is nothing to train: the others must not wait for ever


def follow(config: Config, runtime: LocalRuntime, dtype: torch.dtype = torch.float32) -> Result:
    """The part of every other rank: train if rank 0 does, else end as it did.

    Raises:
        RunError: rank 0 could not begin.
    """
    if owner := runtime.share(""):
        return _train(config, runtime, owner, dtype)
    record = read(open_store(config.storage).child(config.name))
    if record is not None and record.status == "finished":
        return dict(record.result or {})
    raise RunError(f"Rank 0 could not begin the run '{config.name}'.", do="see its message")


def _train(config: Config, runtime: LocalRuntime, owner: str, dtype: torch.dtype) -> Result:
    with attributed(config, runtime.world_size):
        return persevere(lambda: Job(config, runtime, owner, dtype).run())


def solitary(gpu: bool = False) -> LocalRuntime:
    """A runtime of this process alone, for work around training that tells nobody."""
    return LocalRuntime(gpu=gpu, threads=torch.get_num_threads(), listen=lambda _: None)
