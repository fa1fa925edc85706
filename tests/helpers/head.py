"""A real head of Ray for tests: its own ports and folder, a token, ended by process id."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mtl.errors import MtlError
from mtl.on_ray.head import connect

_START_S = 120


@dataclass(frozen=True)
class RealHead:
    """A running head.

    Attributes:
        address: of its dashboard.
        gcs: what a driver on this machine joins.
        environment: of a user of this machine who has the token; HOME is a folder of the test's own.
        folder: that folder.
    """

    address: str
    gcs: str
    environment: dict[str, str]
    folder: Path

    @property
    def token(self) -> str:
        """What the head asks for."""
        return Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()

    def pids(self) -> list[int]:
        """The head's processes, workers and drivers of jobs too: all that were started with its HOME."""
        found: list[int] = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"HOME={self.folder}".encode() in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
        return found

    def lose(self) -> None:
        """Kill the head itself; its workers, and drivers with its HOME, may see how they get on."""
        (self.folder / "lost").touch()
        for pid in self.pids():
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if not command.startswith(b"ray::") and b"jobs/" not in command:
                os.kill(pid, signal.SIGKILL)


@contextmanager
def real_head(*, cpus: int = 2, variables: Mapping[str, str] | None = None) -> Iterator[RealHead]:
    """Start a head with a dashboard that asks for a token; the jobs on it find this interpreter as `python`.

    Args:
        variables: more of its environment, which workers inherit.
    """
    # Sockets lie in Ray's folder, and a socket's path has 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="mtl-head-"))
    token = folder / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    ports = _free_ports(6)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        **(variables or {}),
    }
    options = {
        "node-ip-address": "127.0.0.1",
        "port": ports[0],
        "dashboard-host": "127.0.0.1",
        "dashboard-port": ports[1],
        "dashboard-agent-listen-port": ports[2],
        "dashboard-agent-grpc-port": ports[3],
        "metrics-export-port": ports[4],
        "ray-client-server-port": ports[5],
        "num-cpus": cpus,
        "object-store-memory": 200_000_000,
        "temp-dir": folder / "ray",
    }
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    words += [f"--{name}={value}" for name, value in options.items()]
    head = RealHead(f"http://127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}", environment, folder)
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(words, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        _await(head, process)
        yield head
        if process.poll() is not None and not (folder / "lost").exists():
            raise RuntimeError(f"the head ended by itself:\n{(folder / 'out').read_text()[-4000:]}")
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        for pid in head.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _await(head: RealHead, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            connect(head.address, head.environment)[0].jobs()
            return
        except (MtlError, OSError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the head did not start:\n{(head.folder / 'out').read_text()[-2000:]}") from error
        time.sleep(0.5)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
