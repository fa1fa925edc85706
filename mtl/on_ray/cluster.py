"""Joining a cluster, and what it must have."""

import logging
import os

import ray

from mtl.config import Config
from mtl.errors import ResourceError

ENVIRONMENT = {
    # Polls of worker health bound how long a metrics report takes; the default of 2 s is felt on every epoch.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # GPU nodes take minutes to boot; the default of 60 s would count each minute as a controller failure.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "900",
    # Workers keep the driver's working directory, so that relative addresses mean what they meant to the user.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Nothing is sent to anybody.
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Set in the driver, for Ray's own processes, unless the user set them; docs/operations.md says the same."""


def join(config: Config) -> None:
    """Join the cluster at hand, or start one here.

    Raises:
        ResourceError: the cluster can not be reached, or lacks what the workers need.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        ray.init(address=config.resources.address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:
        raise ResourceError(
            "The Ray cluster can not be reached.",
            got=f"{config.resources.address}: {str(error).splitlines()[0]}",
            do="start one with `ray start --head`, or leave --resources.address out to use this machine",
        ) from error
    _check(config)


def _check(config: Config) -> None:
    have, resources = ray.cluster_resources(), config.resources
    need = {"CPU": resources.workers * resources.cpus_per_worker}
    if resources.gpu:
        need["GPU"] = resources.workers
    short = {kind: (int(have.get(kind, 0)), amount) for kind, amount in need.items() if have.get(kind, 0) < amount}
    if short:
        raise ResourceError(
            "The cluster is too small for the workers asked for.",
            got=", ".join(f"{has} {kind}s" for kind, (has, _) in short.items()),
            expected=", ".join(f"{wants} {kind}s" for kind, (_, wants) in short.items())
            + f" for {resources.workers} workers",
            do="lower --resources.workers or --resources.cpus-per-worker, or add nodes",
        )
