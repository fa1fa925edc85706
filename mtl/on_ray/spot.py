"""Turns the notice that EC2 gives a spot instance into a drain of its Ray node. `cluster.yaml` starts it on workers.

A file on its own, because that is all a node has before a job comes: it imports nothing but Ray. Ends when the node has
left the cluster. (On Kubernetes `ray start --block` drains its own node when the pod is told to go.)

    python spot.py --address HEAD:6379
"""

import argparse
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPConnection, HTTPException
from typing import Any, Protocol, final
from urllib.parse import urlsplit

ENDPOINT = "http://169.254.169.254"  # the instance metadata service, the same on every instance
INTERRUPTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
TOKEN = "/latest/api/token"
WARNING_S = 120.0  # between notice and interruption
_TOKEN_LIFE_S = 21_600
_TIMEOUT_S = 2.0

log = logging.getLogger("spot")


@final
@dataclass(frozen=True)
class Notice:
    """What is going to happen to this instance, and when (Unix time)."""

    what: str
    deadline_s: float


class Node(Protocol):
    """The Ray node of this instance. Both methods raise OSError while the cluster can not be asked."""

    def alive(self) -> bool:
        """Whether it is part of the cluster."""
        ...

    def drain(self, notice: Notice) -> None:
        """Tell the cluster that it will be gone by the deadline."""
        ...


@final
class Metadata:
    """The instance metadata service, version 2: every question needs a token, and tokens expire.

    Args:
        endpoint: scheme, host and port. Proxies of the environment are not used.
    """

    def __init__(self, endpoint: str) -> None:
        url = urlsplit(endpoint)
        self._host, self._port = url.hostname or "", url.port or 80
        self._token: str | None = None

    def get(self, path: str) -> str | None:
        """What the service knows under `path`; None for nothing.

        Raises:
            OSError: it does not answer, or not as it should.
        """
        for _ in range(2):
            if self._token is None:
                asked = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_LIFE_S)}
                status, token = self._ask("PUT", TOKEN, asked)
                if status != 200:
                    raise OSError(f"no token: status {status}")
                self._token = token
            status, text = self._ask("GET", path, {"X-aws-ec2-metadata-token": self._token})
            if status == 200:
                return text
            if status == 404:
                return None
            if status != 401:
                raise OSError(f"{path}: status {status}")
            self._token = None
        raise OSError(f"{path}: a new token is refused too")

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        connection = HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except HTTPException as error:
            raise OSError(f"{path}: {type(error).__name__}") from error
        finally:
            connection.close()


def notice(metadata: Metadata, *, rebalance: bool, now_s: float) -> Notice | None:
    """What EC2 has announced so far. One that can not be read counts, as the usual two minutes from now.

    Args:
        rebalance: a recommendation to leave, which comes earlier and often for nothing, counts too.

    Raises:
        OSError: the service can not be asked.
    """
    text = metadata.get(INTERRUPTION)
    if text is not None:
        try:
            said = json.loads(text)
            return Notice(f"EC2: {said['action']}", datetime.fromisoformat(said["time"]).timestamp())
        except (ValueError, LookupError, TypeError):
            return Notice(f"EC2: {text[:80]!r}", now_s + WARNING_S)
    if rebalance and metadata.get(REBALANCE) is not None:
        return Notice("EC2: rebalance recommendation", now_s + WARNING_S)
    return None


def watch(
    metadata: Metadata,
    node: Node,
    *,
    rebalance: bool = False,
    poll_s: float = 5.0,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Drain `node` once for every new notice, until it has left the cluster. What fails is tried again.

    Args:
        poll_s: seconds between two looks; EC2 asks for five.
    """
    drained_for, trouble = "", ""
    while True:
        try:
            if not node.alive():
                log.info("the node has left the cluster")
                return
            found = notice(metadata, rebalance=rebalance, now_s=now())
            if found is not None and found.what != drained_for:
                node.drain(found)
                drained_for = found.what
                log.info("%s; the node drains, %.0f s are left", found.what, found.deadline_s - now())
            trouble = ""
        except OSError as error:
            if str(error) != trouble:
                trouble = str(error)
                log.warning("%s; trying again", trouble)
        sleep(poll_s)


@final
class RayNode:
    """The worker node that `ray start` has made of this machine.

    Args:
        address: of the cluster's GCS, host and port.
        patience_s: how long the node may take to join.

    Raises:
        OSError: the cluster can not be asked, or has no such node.
    """

    def __init__(self, address: str, patience_s: float = 60.0) -> None:
        self._address, end = address, time.monotonic() + patience_s
        self._client: Any = None
        # By its process: what its address is depends on who asks.
        from ray._private.services import find_node_ids

        while True:
            try:
                here = self._workers() & set(find_node_ids())
                if not here:
                    raise OSError(f"{address} knows no worker node on this machine")
                break
            except OSError:
                if time.monotonic() > end:
                    raise
            time.sleep(1)
        self._id = min(here)

    def alive(self) -> bool:
        """Whether it is part of the cluster."""
        return self._id in self._workers()

    def drain(self, notice: Notice) -> None:
        """Tell the cluster that it will be gone by the deadline."""
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # pyright: ignore

        reason: Any = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, why = self._ask("drain_node", self._id, reason, notice.what, round(notice.deadline_s * 1000))
        if not accepted:
            raise OSError(f"the drain is refused: {why}")

    def _workers(self) -> set[str]:
        from ray.core.generated.gcs_pb2 import GcsNodeInfo  # pyright: ignore

        nodes = self._ask("get_all_node_info", timeout=_TIMEOUT_S, state_filter=GcsNodeInfo.GcsNodeState.ALIVE)
        return {key.hex() for key, info in nodes.items() if not info.is_head_node}

    def _ask(self, method: str, *args: Any, **more: Any) -> Any:
        from ray._raylet import GcsClient  # pyright: ignore
        from ray.exceptions import RayError

        try:
            self._client = self._client or GcsClient(address=self._address)
            return getattr(self._client, method)(*args, **more)
        except (RayError, RuntimeError) as error:
            self._client = None
            raise OSError(f"{self._address}: {(str(error).splitlines() or [type(error).__name__])[0]}") from error


def main() -> None:
    """Parse, find the node, watch."""
    parser = argparse.ArgumentParser(description="Drains this machine's Ray node when EC2 takes the instance away.")
    parser.add_argument("--address", required=True, help="GCS of the cluster, host:port")
    parser.add_argument("--poll-s", type=float, default=5.0, help="seconds between two looks (default: 5)")
    parser.add_argument("--rebalance", action="store_true", help="drain on a rebalance recommendation too")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    log.info("watching for the end of this instance")
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", ENDPOINT)
    watch(Metadata(endpoint), RayNode(asked.address), rebalance=asked.rebalance, poll_s=asked.poll_s)


if __name__ == "__main__":
    main()
