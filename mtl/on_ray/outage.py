"""A head of Ray that is gone, told in words.

Ray ends every process that misses the head for a minute, in the middle of whatever it does, with a page of its own.
"""

import socket
import time
from collections.abc import Callable

import ray

from mtl.errors import ResourceError

PATIENCE_S = 40.0
"""How long the head may be gone: it may come back, and what is left of Ray's minute is for ending well."""

_CONNECT_S = 5.0


def wait_for_head(say: Callable[[str], None]) -> None:
    """Return at once where the head answers; else say so, and wait until it does.

    Raises:
        ResourceError: it has been gone for too long.
    """
    address, since_s = ray.get_runtime_context().gcs_address, None
    while not _answers(address):
        if since_s is None:
            since_s = time.monotonic()
            say(f"the head of Ray at {address} does not answer; waiting {PATIENCE_S:g} s for it")
        if time.monotonic() - since_s >= PATIENCE_S:
            raise ResourceError(
                "The head of Ray is gone.",
                got=f"no answer from {address} for {PATIENCE_S:g} s",
                do="start the cluster again, and rerun the command: it resumes from the last commit",
            )
        time.sleep(1)


def connect(address: str) -> None:
    """Whether somebody listens at host:port.

    Raises:
        OSError: nobody does, or not within five seconds.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()


def _answers(address: str) -> bool:
    try:
        connect(address)
    except OSError:
        return False
    return True
