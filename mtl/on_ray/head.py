"""A cluster's head as submission sees it: reached over HTTP, with a token, before Ray itself is imported."""

import ipaddress
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any, Literal, final
from urllib.parse import quote, urlsplit

from mtl.errors import ConfigError, ResourceError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
TIMEOUT_S = 10.0

Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]


@final
class HeadLost(ConnectionError):
    """The head can not be reached, or is not ready: asking again may help."""


@final
@dataclass(frozen=True)
class Job:
    """A submitted job, as its head knows it.

    Attributes:
        exit_code: of the driver; None while it runs, and where it was stopped or never started.
        began_ms: Unix time.
    """

    id: str
    status: Status
    entrypoint: str
    message: str
    exit_code: int | None
    began_ms: int

    @property
    def run(self) -> str:
        """The run, or the script, that the job was named after."""
        return re.sub(r"-a\d+$", "", self.id)

    @property
    def over(self) -> bool:
        """Whether its status is final."""
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


@final
@dataclass(frozen=True)
class Head:
    """The dashboard of a head.

    Args:
        address: http:// or https://, host, port.
        token: sent with every request; None sends none.
    """

    address: str
    token: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What authenticates a request."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def version(self) -> str:
        """The version of Ray that runs there. Raises as `_ask`."""
        return str(self._ask("GET", "/api/version")["ray_version"])

    def jobs(self) -> list[Job]:
        """All submitted jobs, oldest first. Raises as `_ask`."""
        found = [_job(row) for row in self._ask("GET", "/api/jobs/") if row["submission_id"]]
        return sorted(found, key=lambda job: job.began_ms)

    def job(self, job_id: str) -> Job:
        """One job. Raises as `_ask`."""
        return _job(self._ask("GET", f"/api/jobs/{quote(job_id)}"))

    def log(self, job_id: str) -> str:
        """All that a job has written so far. Raises as `_ask`."""
        return str(self._ask("GET", f"/api/jobs/{quote(job_id)}/logs")["logs"])

    def stop(self, job_id: str) -> None:
        """Ask a job to stop: SIGTERM, and after `submission.STOP_WAIT_S` SIGKILL. Does not wait. Raises as `_ask`."""
        self._ask("POST", f"/api/jobs/{quote(job_id)}/stop")

    def _ask(self, method: str, path: str) -> Any:
        """Send one request; the answer's JSON.

        Raises:
            HeadLost: no answer, or one of the kind that passes.
            ResourceError: refused.
        """
        status, text = self.request(method, path)
        if status == 200:
            try:
                return json.loads(text)
            except ValueError as error:
                raise HeadLost(f"an answer that is not Ray's: {text[:80]!r}") from error
        last = text.strip().splitlines()[-1:] or ["no message"]
        if status >= 500:
            raise HeadLost(f"status {status}: {last[0]}")
        if status in (401, 403):
            raise _refused(self.address, self.token)
        raise ResourceError(
            f"The head {self.address} refused a request.", got=f"{method} {path}: status {status}: {last[0]}"
        )

    def request(self, method: str, path: str) -> tuple[int, str]:
        """Send one request; status and text of the answer. Redirections are not followed: they would pass on the token.

        Raises:
            HeadLost: no answer within `TIMEOUT_S`.
        """
        url = urlsplit(self.address)
        make = HTTPSConnection if url.scheme == "https" else HTTPConnection
        connection = make(url.hostname or "", url.port, timeout=TIMEOUT_S)
        try:
            connection.request(method, url.path.rstrip("/") + path, headers=self.headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except (OSError, HTTPException) as error:
            raise HeadLost(str(error) or type(error).__name__) from error
        finally:
            connection.close()


def connect(address: str | None, environment: Mapping[str, str] | None = None) -> tuple[Head, str]:
    """The head at `address`, and a line about it for people; a remote one must ask for a token, and get one.

    Args:
        address: of the dashboard; None takes it from the environment, or else this machine's.
        environment: os.environ unless given.

    Raises:
        ConfigError: the address or the token is malformed.
        ResourceError: no head there, no token here, a wrong one, or a remote head that asks for none.
    """
    environment = os.environ if environment is None else environment
    address = _address(address, environment)
    token, local = find_token(environment), is_local(address)
    if token is None and not local:
        raise _refused(address, None, environment.get("RAY_AUTH_MODE"))
    head = Head(address)
    try:
        # Asked without the token first: one that asks for none shall not learn it either.
        status, _ = head.request("GET", "/api/version")
        if status not in (200, 401, 403):
            raise _unreachable(address, f"status {status}: something else than a head of Ray", local)
        guarded = status != 200
        if guarded and token is None:
            raise _refused(address, None, environment.get("RAY_AUTH_MODE"))
        head = Head(address, token) if guarded else head
        version = head.version()
    except HeadLost as error:
        raise _unreachable(address, str(error), local) from error
    except (LookupError, TypeError, UnicodeError) as error:
        raise _unreachable(address, "something else than a head of Ray", local) from error
    if not guarded and not local:
        raise _open_to_all(address)
    return head, f"Ray {version}, {_guard(address, guarded, local)}"


def find_token(environment: Mapping[str, str]) -> str | None:
    """The token, from where Ray looks for it: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    Raises:
        ConfigError: RAY_AUTH_TOKEN_PATH names a file that can not be read, or the token is empty or of several lines.
    """
    if environment.get("RAY_AUTH_MODE", "token").lower() == "disabled":
        return None
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    if "RAY_AUTH_TOKEN" in environment:
        token, where = environment["RAY_AUTH_TOKEN"].strip(), "RAY_AUTH_TOKEN"
    elif named or path.exists():
        try:
            token, where = path.read_text().strip(), str(path)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The token file {path} can not be read.", got=error, do="mend or remove it") from error
    else:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ConfigError(f"{where} holds no token.", got=f"{len(token)} characters", expected="one word of ASCII")
    return token


def is_local(address: str) -> bool:
    """Whether the address is this machine's own, by its looks: no name is resolved."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(given: str | None, environment: Mapping[str, str]) -> str:
    address = given or environment.get("RAY_API_SERVER_ADDRESS")
    if address is None:
        # RAY_ADDRESS may name the cluster itself (host:6379, auto), which is not where jobs are submitted.
        named = environment.get("RAY_ADDRESS", "")
        address = named if named.startswith(("http://", "https://")) else DEFAULT_ADDRESS
    if "://" not in address:
        address = f"http://{address}"
    url = urlsplit(address)
    try:
        sound = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0 and not url.query
    except ValueError:
        sound = False
    if not sound or url.username is not None:
        raise ConfigError(
            "The address is not that of a head's dashboard.",
            got=url._replace(netloc=url.netloc.rpartition("@")[2]).geturl(),
            expected="http://host:8265 or https://host",
        )
    return address.rstrip("/")


def _job(row: dict[str, Any]) -> Job:
    return Job(
        id=row["submission_id"],
        status=row["status"],
        entrypoint=row["entrypoint"].removeprefix("exec "),
        message=row["message"] or "",
        exit_code=row["driver_exit_code"],
        began_ms=row["start_time"] or 0,
    )


def _guard(address: str, guarded: bool, local: bool) -> str:
    if not guarded:
        return "no token asked for: open to everybody on its machine"
    if local or address.startswith("https:"):
        return "token accepted"
    return "token accepted, but sent unencrypted: prefer https, or a tunnel (ray dashboard cluster.yaml)"


def _unreachable(address: str, why: str, local: bool) -> ResourceError:
    start = "start one with `ray start --head`, or name another with --address"
    forward = "check --address; `ray dashboard cluster.yaml` forwards a cluster's to 127.0.0.1:8265"
    return ResourceError(
        f"No Ray head answers at {address}.", got=why, expected="its dashboard", do=start if local else forward
    )


def _refused(address: str, token: str | None, mode: str | None = None) -> ResourceError:
    return ResourceError(
        f"The head {address} " + ("does not accept the token." if token else "needs a token, and there is none here."),
        got=f"RAY_AUTH_MODE={mode}" if mode and not token else None,
        expected="the cluster's token in RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH, or in ~/.ray/auth_token",
        do="copy it from the head (`ray get-auth-token` prints it there) into a file that only you can read",
    )


def _open_to_all(address: str) -> ResourceError:
    return ResourceError(
        f"The head {address} is open to everybody who can reach it.",
        got="it answers without a token, so anybody could run code there",
        expected="a head that asks for a token",
        do="start it with RAY_AUTH_MODE=token, or reach it by a tunnel: ssh -L 8265:127.0.0.1:8265 HOST",
    )
