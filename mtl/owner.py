"""Which process claims a run, and whether that process is provably dead."""

import getpass
import os
import platform
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self, final
from uuid import uuid4

from pydantic import BaseModel, ConfigDict


@final
class Owner(BaseModel):
    """One process's claim to a run.

    `boot_id`, `pid_namespace` and `pid_started` (clock ticks since boot) are '' on a system without /proc.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str
    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    pid_started: str
    user: str
    since: str  # UTC, ISO 8601; for people only

    @classmethod
    def here(cls) -> Self:
        """A new claim by this process."""
        return cls(
            id=uuid4().hex,
            host=platform.node(),
            boot_id=_boot_id(),
            pid_namespace=_pid_namespace(),
            pid=os.getpid(),
            pid_started=_pid_stat(os.getpid())[1],
            user=_user(),
            since=utc(),
        )

    def is_dead(self) -> bool:
        """Whether the process is provably gone; False whenever this machine can not tell.

        Containers may share host name and boot id while a process number means another process in each, hence the
        namespace.
        """
        here = (platform.node(), _boot_id(), _pid_namespace())
        if not all((self.boot_id, self.pid_namespace)) or (self.host, self.boot_id, self.pid_namespace) != here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it exists and is another user's
        state, started = _pid_stat(self.pid)
        return state in ("Z", "X") or (bool(started) and started != self.pid_started)

    def __str__(self) -> str:
        return f"process {self.pid} of user {self.user} on {self.host}, since {self.since}"


def utc(in_s: float = 0.0) -> str:
    """The wall clock, `in_s` seconds from now: UTC, ISO 8601 to the second. For people: nothing is decided by it."""
    return (datetime.now(UTC) + timedelta(seconds=in_s)).isoformat(timespec="seconds")


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _pid_stat(pid: int) -> tuple[str, str]:
    """State letter and start time, in clock ticks since boot, of a process; '' each where they can not be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "", ""
    fields = text.rpartition(")")[2].split()  # the name before it may hold spaces and parentheses
    return fields[0], fields[19]


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user id without a passwd entry
        return str(os.getuid())
