"""Joining a cluster, and what it must have."""

import logging
import os
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private.services import find_bootstrap_address
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.job_config import JobConfig

from mtl.config import Config, Resources
from mtl.errors import ResourceError
from mtl.on_ray.outage import connect

ENVIRONMENT = {
    # Polls of worker health bound how long a metrics report takes; the default of 2 s is felt on every epoch.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # GPU nodes take minutes to boot; the default of 60 s would count each minute as a controller failure.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "900",
    # A drain gives two minutes, and a commit may take one: the default of 5 s is too much of it.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    # Workers keep the driver's working directory, so that relative addresses mean what they meant to the user.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Nothing is sent to anybody.
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Set in the driver, for Ray's own processes, unless the user set them; docs/operations.md says the same."""

ELASTIC = {
    # Such a run asks for nodes that are there. Ray looks at the nodes every 20 s, so one that has gone may be among
    # them, and the next try counts anew.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
}
"""The same for runs with `resources.min_workers`."""

_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_CHECKOUT = Path(__file__).resolve().parents[2]


@contextmanager
def joined(config: Config) -> Generator[None]:
    """A connection to the cluster at hand, or to one started here; left again at the end, unless it was there before.

    Raises:
        ResourceError: the cluster can not be reached, or lacks what the workers need.
    """
    if ray.is_initialized():
        _check(config)
        yield
        return
    for name, value in (ENVIRONMENT | (ELASTIC if config.resources.min_workers else {})).items():
        os.environ.setdefault(name, value)
    # Workers import mtl from the driver's checkout, wherever it was called from. A submitted job brings its own copy.
    search = [] if _SUBMITTED in os.environ else [str(_CHECKOUT)]
    address = _address(config.resources)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            job_config=JobConfig(_py_driver_sys_path=search),
        )
    except Exception as error:  # a bare one, where a node does not start in time
        raise _unreachable(address or "the cluster at hand", error) from error
    try:
        _check(config)
        yield
    finally:
        ray.shutdown()


def _address(resources: Resources) -> str | None:
    """Where to connect. Ray would wait minutes for a head that is gone, also for one that an address file outlived."""
    named = resources.address or os.environ.get("RAY_ADDRESS")
    address = named or find_bootstrap_address(None)
    host, _, port = (address or "").rpartition(":")
    if "://" in host or not port.isdecimal():  # nothing, `auto`, `local`, another protocol
        return address
    try:
        connect(address)
    except OSError as error:
        if named:
            raise _unreachable(named, error) from error
        return "local"  # a cluster that is killed leaves its address behind
    return address


def _unreachable(address: str, error: Exception) -> ResourceError:
    return ResourceError(
        "The Ray cluster can not be reached.",
        got=f"{address}: {next(iter(str(error).splitlines()), type(error).__name__)}",
        expected="the address of a running cluster, host:port",
        do="start one with `ray start --head`, or leave --resources.address and RAY_ADDRESS out to use this machine",
    )


def labels(resources: Resources) -> dict[str, str]:
    """The labels that a node needs for workers to run on it; none where any node will do."""
    return {"ray.io/accelerator-type": resources.accelerator} if resources.accelerator else {}


def usable(nodes: Iterable[dict[str, Any]], resources: Resources | None = None) -> list[dict[str, Any]]:
    """Those of `ray.nodes()` that live, and on which workers with `resources` may run."""
    wanted = labels(resources).items() if resources else ()
    return [node for node in nodes if node["Alive"] and all(item in node["Labels"].items() for item in wanted)]


def _check(config: Config) -> None:
    if is_autoscaler_v2(fetch_from_server=True):
        return  # nodes that are missing now are added when the workers ask for them
    resources, have = config.resources, Counter[str]()
    for node in usable(ray.nodes(), resources):
        have.update(node["Resources"])
    workers = resources.min_workers or resources.workers
    need = {"CPU": workers * resources.cpus_per_worker}
    if resources.gpu:
        need["GPU"] = workers
    short = {kind: (int(have[kind]), amount) for kind, amount in need.items() if have[kind] < amount}
    if short:
        nodes = f" on nodes with {resources.accelerator}" if resources.accelerator else ""
        raise ResourceError(
            "The cluster is too small for the workers asked for.",
            got=", ".join(f"{has} {kind}s" for kind, (has, _) in short.items()) + nodes,
            expected=", ".join(f"{wants} {kind}s" for kind, (_, wants) in short.items()) + f" for {workers} workers",
            do="lower --resources.workers or --resources.cpus-per-worker, or add nodes",
        )
