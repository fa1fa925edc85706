"""Training without Ray: this process alone, or the processes that torchrun started."""

from typing import Any

import torch
import torch.distributed as dist

from mtl.config import Config
from mtl.console import RunConsole
from mtl.errors import ConfigError
from mtl.job import Job
from mtl.preflight import Plan
from mtl.runtime import LocalRuntime
from mtl.session import train as owned


def train(config: Config, plan: Plan, console: RunConsole) -> dict[str, Any]:
    """Train in this process; under torchrun, rank 0 owns the run and the others follow."""
    threads = config.resources.cpus_per_worker if dist.is_torchelastic_launched() else torch.get_num_threads()
    with LocalRuntime(gpu=config.resources.gpu, threads=threads, listen=console) as runtime:
        groups = config.model.batch_norm_groups
        if config.model.batch_norm == "groups" and groups % runtime.world_size:
            raise ConfigError(
                "The number of processes must divide model.batch_norm_groups.",
                got=f"{runtime.world_size} processes, {groups} groups",
                do="start another number of processes, or choose another model.batch_norm",
            )
        if runtime.rank == 0:
            return owned(config, plan, console, lambda owner: Job(config, runtime, runtime.share(owner)).run())
        return Job(config, runtime, runtime.share("")).run()


def solitary(gpu: bool = False) -> LocalRuntime:
    """A runtime of this process alone, for work around training that tells nobody."""
    return LocalRuntime(gpu=gpu, threads=torch.get_num_threads(), listen=lambda _: None)
