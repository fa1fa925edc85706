"""What can be known only on the cluster: its nodes, their software and clocks, and one step where workers will run."""

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mtl import doctor
from mtl.config import Config, parse
from mtl.console import counted
from mtl.data.manifest import Manifest
from mtl.errors import MtlError
from mtl.findings import Check, Finding, Show, examine
from mtl.on_ray.cluster import joined, usable
from mtl.store import open_store
from mtl.versions import differing, versions

_NODE_S = 45.0  # a node may have to start a first worker process
_SKEW_S = 2.0


@dataclass(frozen=True)
class Node:
    """A node as it answered: its software, and by how much its clock is ahead; `trouble` where it did not answer."""

    host: str
    versions: Mapping[str, str]
    ahead_s: float
    trouble: str = ""


def examine_cluster(case: doctor.Case, show: Show) -> list[Finding]:
    """Join the cluster, look at every node, take one step on a worker, and leave."""
    config = case.config
    with ExitStack() as stack:

        def cluster() -> Iterator[Finding]:
            stack.enter_context(joined(config))
            yield resources(config, ray.nodes())

        found = examine([Check("cluster", cluster, 60)], show)
        if any(finding.level == "fail" for finding in found):
            return found
        later = [
            Check("nodes", lambda: compare(versions(), ask_nodes()), _NODE_S + 10),
            Check("shared", lambda: shared(config, len(usable(ray.nodes())))),
            Check("step", lambda: step(config, case.manifest is not None), doctor.STEP_LIMIT_S),
        ]
        return found + examine(later, show)


def resources(config: Config, nodes: list[dict[str, Any]]) -> Finding:
    """What there is, beside what the workers ask for; too little of it is an error of joining."""
    alive, wanted = usable(nodes), config.resources
    cpus, gpus = (int(sum(node["Resources"].get(kind, 0) for node in alive)) for kind in ("CPU", "GPU"))
    there = f"{counted(len(alive), 'node')} with {counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}"
    asked = f"{counted(wanted.workers, 'worker')} with {counted(wanted.cpus_per_worker, 'CPU')} each"
    told = f"{there}; asked for: {asked}" + (", and a GPU" if wanted.gpu else "")
    if gpus and not wanted.gpu:
        return Finding("warn", "cluster", told, "the GPUs stay idle", "use them: --resources.gpu")
    return Finding("ok", "cluster", told)


class _Probe:
    """Lives on one node for a moment."""

    def versions(self) -> dict[str, str]:
        return versions()

    def clock(self) -> float:
        return time.time()


def ask_nodes() -> list[Node]:
    """Every node's software and clock; one that does not answer in time is named with its trouble."""
    probe: Any = ray.remote(num_cpus=0)(_Probe)
    asked: list[tuple[str, Any, Any]] = []
    for node in usable(ray.nodes()):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        actor = probe.options(scheduling_strategy=there).remote()
        asked.append((node["NodeManagerHostname"], actor, actor.versions.remote()))
    ray.wait([answer for _, _, answer in asked], num_returns=len(asked), timeout=_NODE_S)
    return [_answer(host, actor, answer) for host, actor, answer in asked]


def _answer(host: str, actor: Any, answer: Any) -> Node:
    try:
        told: dict[str, str] = ray.get(answer, timeout=0)
        sent = time.time()
        clock: float = ray.get(actor.clock.remote(), timeout=5)
        return Node(host, told, clock - (sent + time.time()) / 2)
    except RayError as error:
        return Node(host, {}, 0.0, f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")


def compare(ours: Mapping[str, str], nodes: list[Node]) -> Iterator[Finding]:
    """Each node's software and clock against this process's."""
    for node in nodes:
        if node.trouble:
            yield Finding(
                "fail",
                "nodes",
                f"{node.host} does not run mtl.",
                node.trouble,
                "install the same packages and the same checkout on every node, or submit the job: jobs/submit.py",
            )
        elif other := differing(ours, node.versions):
            told = "; ".join(f"{name} {there}, here {here}" for name, (here, there) in other.items())
            yield Finding(
                "fail",
                "nodes",
                f"{node.host} runs other software than this process.",
                told,
                "give all nodes the same image, or the same checkout and a .venv from its requirements.lock",
            )
        elif abs(node.ahead_s) > _SKEW_S:
            yield Finding(
                "warn",
                "nodes",
                f"The clock of {node.host} is {node.ahead_s:+.0f} s from the one here.",
                "times in logs will mislead, and S3 refuses requests that are 15 minutes off",
                "run a time service on every node",
            )
    same = [node for node in nodes if not node.trouble and not differing(ours, node.versions)]
    if same:
        clocks = max(abs(node.ahead_s) for node in same)
        told = f"{len(same)} of {len(nodes)} nodes run the same software; clocks within {clocks:.2f} s"
        yield Finding("ok", "nodes", told)


def shared(config: Config, nodes: int) -> Iterator[Finding]:
    """Whether every node can reach what all of them need."""
    data = [config.data, *(source.data for source in config.mixture.values())]
    for address, what in (*((address, "data set") for address in data), (config.storage, "runs' storage")):
        if nodes > 1 and "://" not in open_store(address).uri:
            yield Finding(
                "fail",
                "shared",
                f"The {what} is a folder of one machine, and the cluster has {nodes} nodes.",
                address,
                "use an address that all of them reach: s3://bucket/prefix",
            )


def step(config: Config, real: bool) -> list[Finding]:
    """One step in a process with the resources of a worker."""
    wanted = config.resources
    task: Any = ray.remote(num_cpus=wanted.cpus_per_worker, num_gpus=int(wanted.gpu))(_step)
    on_node = -(-wanted.workers // len(usable(ray.nodes())))
    try:
        return ray.get(task.remote(config.to_yaml(), real, on_node))
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, MtlError):
            raise cause from error
        raise


def _step(text: str, real: bool, on_node: int) -> list[Finding]:
    import torch

    config = parse(text)
    torch.set_num_threads(config.resources.cpus_per_worker)
    manifest = Manifest.load(open_store(config.data)) if real else None
    found = list(doctor.step(config, manifest, gpu=config.resources.gpu, on_node=on_node))
    return [replace(finding, what=f"on {platform.node()}: {finding.what}") for finding in found]
