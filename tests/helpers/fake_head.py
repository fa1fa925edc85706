"""The dashboard of a head as far as submission needs it: in this process, without Ray."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeHead:
    """What the server answers, and what it was asked.

    Attributes:
        token: what a request must carry; None asks for none.
        jobs: as Ray's API lists them.
        logs: by submission id.
        requests: method, path, headers and body of every request.
        failures: this many requests are answered with status 500 first.
        version: what /api/version answers.
    """

    address: str = ""
    token: str | None = None
    jobs: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    failures: int = 0
    version: Any = field(default_factory=lambda: {"version": "4", "ray_version": "2.60.0"})

    def add(self, job_id: str, status: str = "RUNNING", **more: Any) -> dict[str, Any]:
        """Let the head have a job."""
        row = {"type": "SUBMISSION", "submission_id": job_id, "status": status, "entrypoint": "exec python jobs/x.py"}
        row |= {"message": None, "driver_exit_code": None, "start_time": 1000 * len(self.jobs), **more}
        self.jobs.append(row)
        return row

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        """Status and content of the answer to one request."""
        self.requests.append((method, path, headers, body))
        if self.failures:
            self.failures -= 1
            return 500, "Traceback\nnot ready"
        if self.token is not None and headers.get("authorization") != f"Bearer {self.token}":
            return (403 if "authorization" in headers else 401), "Unauthorized"
        match [method, *path.strip("/").split("/")]:
            case ["GET", "api", "version"]:
                return 200, self.version
            case ["GET", "api", "jobs"]:
                return 200, self.jobs
            case ["POST", "api", "jobs"]:
                return self._submit(json.loads(body))
            case ["GET", "api", "packages", *_]:
                return 404, "no such package"
            case ["PUT", "api", "packages", *_]:
                return 200, ""
            case ["GET", "api", "jobs", job_id, "logs"]:
                return 200, {"logs": self.logs.get(job_id, "")}
            case ["POST", "api", "jobs", job_id, "stop"]:
                self._row(job_id)["status"] = "STOPPED"
                return 200, {"stopped": True}
            case ["GET", "api", "jobs", job_id] if any(row["submission_id"] == job_id for row in self.jobs):
                return 200, self._row(job_id)
            case _:
                return 404, f"{path} does not exist"

    def _row(self, job_id: str) -> dict[str, Any]:
        return next(row for row in self.jobs if row["submission_id"] == job_id)

    def _submit(self, asked: dict[str, Any]) -> tuple[int, Any]:
        job_id = asked["submission_id"]
        if any(row["submission_id"] == job_id for row in self.jobs):
            return 400, f"Traceback\nValueError: Job with submission_id {job_id} already exists."
        self.add(job_id, "PENDING", entrypoint=asked["entrypoint"])
        return 200, {"job_id": job_id, "submission_id": job_id}


@contextmanager
def fake_head(**settings: Any) -> Iterator[FakeHead]:
    """A head at `.address`, a port of this machine."""
    head = FakeHead(**settings)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, content = head.answer(self.command, self.path, headers, body)
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_PUT = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    head.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield head
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
