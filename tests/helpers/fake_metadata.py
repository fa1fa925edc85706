"""The instance metadata service of an EC2 instance, version 2, on loopback."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FakeMetadata:
    """What the service knows, and what it was asked.

    Attributes:
        known: text by path.
        tokens: those given out and not expired; `clear` expires them.
        failing: the status that every request gets, 0 for none.
        log: method and path of every request, with the status of its answer.
    """

    endpoint: str = ""
    known: dict[str, str] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    failing: int = 0
    log: list[tuple[str, str, int]] = field(default_factory=list)

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """Status and text of the answer to one request."""
        status, text = self._answer(method, path, headers)
        self.log.append((method, path, status))
        return status, text

    def _answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        if self.failing:
            return self.failing, ""
        if (method, path) == ("PUT", "/latest/api/token"):
            if not 1 <= int(headers.get("x-aws-ec2-metadata-token-ttl-seconds", "0")) <= 21_600:
                return 400, ""
            token = f"token-{len(self.log)}"
            self.tokens.add(token)
            return 200, token
        if headers.get("x-aws-ec2-metadata-token") not in self.tokens:
            return 401, ""
        return (200, self.known[path]) if path in self.known else (404, "")


@contextmanager
def fake_metadata() -> Iterator[FakeMetadata]:
    """The service, running."""
    service = FakeMetadata()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, text = service.answer(self.command, self.path, headers)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        service.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()
