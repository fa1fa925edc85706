"""Worker nodes of Ray beside the test's own cluster, on this machine."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util import placement_group_table


@contextmanager
def extra_node(
    address: str, log: Path, *, cpus: int = 0, drain_s: float = 0.0, **resources: float
) -> Iterator["Extra"]:
    """A worker node, as a pod would start it: `ray start --block`.

    Args:
        address: of the cluster that this process has joined.
        log: what the node says.
        drain_s: how long it drains after a SIGTERM.
        resources: custom ones.
    """
    before = workers()
    asked = ",".join(f'"{name}": {amount}' for name, amount in resources.items())
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={address}"]
    command += [f"--num-cpus={cpus}", "--object-store-memory=80000000", f"--resources={{{asked}}}"]
    env = {**os.environ, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(drain_s)}
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out)
    try:
        wait_for(lambda: process.poll() is not None or workers() - before, 60, "the node has not joined")
        assert process.poll() is None, log.read_text()
        (node,) = workers() - before
        yield Extra(process, node)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=60)


class Extra:
    """A node: its `ray start`, and its id."""

    def __init__(self, process: subprocess.Popen[bytes], node_id: str) -> None:
        self.process, self.id = process, node_id

    def drain(self, deadline_s: float) -> None:
        """Tell the cluster that the node will be gone at this Unix time."""
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        gcs = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
        accepted, why = gcs.drain_node(self.id, reason, "a test", round(deadline_s * 1000))
        assert accepted, why

    def deadline_s(self) -> float | None:
        """Until when it drains, in Unix time; None if it does not."""
        draining = ray._private.state.state.get_draining_nodes()  # pyright: ignore
        return draining[self.id] / 1000 if self.id in draining else None


class _Idle:
    def ready(self) -> bool:
        return True


def occupy(**needs: Any) -> Any:
    """An actor that holds what it needs until `ray.kill`."""
    idle = ray.remote(**needs)(_Idle).remote()
    assert ray.get(idle.ready.remote())
    return idle


def workers() -> set[str]:
    """The nodes that live, but the head."""
    return {n["NodeID"] for n in ray.nodes() if n["Alive"] and "node:__internal_head__" not in n["Resources"]}


def claims() -> list[str]:
    """What runs claim of the cluster: names known to Train's coordinator, and placement groups.

    The coordinator is made to look at the nodes there are, which it else does every 20 s.
    """
    from mtl.on_ray.claims import COORDINATOR

    groups = [name for name, group in placement_group_table().items() if group["state"] != "REMOVED"]
    try:
        coordinator = ray.get_actor(COORDINATOR, namespace=COORDINATOR)
    except ValueError:
        return groups  # it comes with the first run, and looks then
    return groups + ray.get(coordinator.__ray_call__.remote(lambda it: it._tick() or [*it._ongoing_reqs]))


def forget_claims() -> None:
    """Withdraw what drivers that were killed claim of the cluster, which would last three minutes."""
    from mtl.on_ray.claims import COORDINATOR

    if left := claims():
        coordinator = ray.get_actor(COORDINATOR, namespace=COORDINATOR)
        ray.get([coordinator.cancel_request.remote(name) for name in left])


def wait_for(what: Callable[[], object], seconds: float, otherwise: str) -> None:
    """Until `what` is true.

    Raises:
        AssertionError: with `otherwise`, when it is not in time.
    """
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, otherwise
        time.sleep(0.1)
