"""An HTTP proxy on loopback before an S3 server, which spoils answers by rule.

    with FaultProxy("http://127.0.0.1:9000", [Rule("slow_down", share=0.02)]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)

or, as a process of its own, which prints its address and ends with its standard input:

    python -m tests.helpers.fault_proxy http://127.0.0.1:9000 --rough

Requests go on as they came, Host included, which is what their signature is about: the server must not insist on its
own name. Whether a request is hit depends on the seed, the rule, the request's line and range, and how often these came
before, and on nothing else: not on threads, and not on other requests.
"""

import argparse
import io
import re
import select
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from socketserver import StreamRequestHandler, ThreadingTCPServer
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

import xxhash

FAULTS = Literal[
    "slow_down", "error", "expired", "missing", "reset", "reset_inside", "truncated", "short", "stalled", "trickle",
    "corrupt", "late", "rewritten",
]  # fmt: skip
_ANSWERS = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "expired": (403, "ExpiredToken", "The provided token has expired."),
    "missing": (404, "NoSuchKey", "The specified key does not exist."),
    "rewritten": (412, "PreconditionFailed", "At least one of the preconditions you specified did not hold."),
}
_PIECE = 256 << 10
_TRICKLE_S = 0.02


@dataclass(frozen=True)
class Rule:
    """What happens to a `share` of the requests whose "METHOD path" matches `match`.

    slow_down, error, expired, missing   503, 500, 403 and 404 with S3's codes
    reset          the connection is reset instead of an answer
    reset_inside   ... in the middle of the body
    truncated      the connection ends, properly, in the middle of the body
    short          half of the body, and a Content-Length that says so
    stalled        half of the body, then nothing for `seconds`
    trickle        the body, a byte at a time
    corrupt        a byte of the body is another one
    late           the answer starts after `seconds`
    rewritten      another ETag; with If-Match the object's being another one

    `times`: how often the same request is hit at most. `credentials`: only requests signed with this access key.
    """

    fault: FAULTS
    share: float = 1.0
    match: str = r"GET .*\.parquet"
    times: int | None = None
    seconds: float = 2.0
    credentials: str | None = None


ROUGH = (
    *(Rule(fault, share=0.005) for fault in ("slow_down", "error", "reset", "truncated")),
    Rule("late", share=0.01, seconds=2.0),
)
"""2 % of requests fail, 1 % are slow by 2 s."""


@dataclass(frozen=True)
class _Request:
    head: bytes
    body: bytes

    @property
    def line(self) -> str:
        """ "METHOD path", without the query, which holds the signature and its time."""
        method, target, _ = self.head.split(b"\r\n", 1)[0].decode().split(" ")
        return f"{method} {target.partition('?')[0]}"

    def header(self, name: str) -> str:
        found = re.search(rf"(?im)^{name}: *(.*?)\r?$", self.head.decode("latin-1"))
        return found[1] if found else ""


class FaultProxy:
    """Serves on a port of its own from `start`, or from the beginning of a `with` block, to the end of it.

    Args:
        upstream: URL of the server behind.
        rules: the first one that hits counts.
        seed: of which requests are hit.
    """

    def __init__(self, upstream: str, rules: Sequence[Rule] = (), seed: int = 0) -> None:
        self.upstream = urlsplit(upstream)
        self.rules, self.seed = rules, seed
        self.hits: Counter[str] = Counter()  # by fault
        self.requests: list[str] = []  # "METHOD path range" of each, in order of arrival
        self.connections = 0
        self._seen: Counter[tuple[int, str]] = Counter()
        self._hit: Counter[tuple[int, str]] = Counter()
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="fault-proxy")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.end_connections()
        self._server.server_close()

    def choose(self, request: _Request) -> Rule | None:
        """The rule that hits `request`, which is thereby counted."""
        identity = f"{request.line} {request.header('range')}".strip()
        signed_by = re.search(r"Credential=([^/%]+)", request.head.decode("latin-1"))
        with self._lock:
            self.requests.append(identity)
            for number, rule in enumerate(self.rules):
                if re.match(rule.match, request.line) is None:
                    continue
                if rule.credentials is not None and (signed_by is None or signed_by[1] != rule.credentials):
                    continue
                this = (number, identity)
                self._seen[this] += 1
                if rule.times is not None and self._hit[this] >= rule.times:
                    continue
                draw = xxhash.xxh3_64_intdigest(repr((self.seed, *this, self._seen[this])).encode()) / 2**64
                if draw < rule.share:
                    self._hit[this] += 1
                    self.hits[rule.fault] += 1
                    return rule
        return None


class _Server(ThreadingTCPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: socket.socket, client_address: object) -> None:
        self._open.add(request)
        self.proxy.connections += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(StreamRequestHandler):
    server: _Server
    connection: socket.socket
    disable_nagle_algorithm = True

    def handle(self) -> None:
        proxy = self.server.proxy
        with (
            suppress(ConnectionError, TimeoutError),
            closing(HTTPConnection(proxy.upstream.netloc, timeout=30)) as upstream,
        ):
            while (request := self._request()) is not None and not proxy.closing.is_set():
                rule = proxy.choose(request)
                if not self._serve(request, rule, upstream):
                    return

    def _request(self) -> _Request | None:
        lines: list[bytes] = []
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            lines.append(line)
        if not lines:
            return None
        head = b"".join(lines)
        request = _Request(head, b"")
        if request.header("expect"):
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return _Request(head, self.rfile.read(int(request.header("content-length") or 0)))

    def _serve(self, request: _Request, rule: Rule | None, upstream: HTTPConnection) -> bool:
        """Answer; returns whether the connection goes on."""
        fault = rule.fault if rule else None
        if rule and fault == "late":
            self.server.proxy.closing.wait(rule.seconds)
        if fault == "reset":
            self._reset()
            return False
        if fault in _ANSWERS and (fault != "rewritten" or request.header("if-match")):
            self._answer(*_ANSWERS[fault])
            return True
        answer = _forward(upstream, request)
        if answer.chunked:  # a long listing
            whole = answer.read()
            answer.headers["Content-Length"], stream = str(len(whole)), io.BytesIO(whole)
        else:
            stream = answer
        length = 0 if request.line.startswith("HEAD ") else int(answer.headers.get("Content-Length", 0))
        self._head(answer, length, length // 2 if fault == "short" else length, other_etag=fault == "rewritten")
        if fault == "trickle":
            self._trickle(stream.read())
            return False
        if fault in ("short", "truncated", "stalled", "reset_inside"):
            body = stream.read()
            self.wfile.write(body[: length // 2])
            if rule and fault == "stalled":
                self.server.proxy.closing.wait(rule.seconds)
            if fault == "reset_inside":
                self._reset()
            return fault == "short"
        if fault == "corrupt":
            body = bytearray(stream.read())
            body[length // 2] ^= 1
            self.wfile.write(body)
            return True
        piece = bytearray(min(_PIECE, length))
        while size := stream.readinto(piece):
            self.wfile.write(memoryview(piece)[:size])
        answer.close()
        return True

    def _head(self, answer: HTTPResponse, length: int, told: int, *, other_etag: bool) -> None:
        lines = [f"HTTP/1.1 {answer.status} {answer.reason}"]
        for name, value in answer.headers.items():
            match name.lower():
                case "connection" | "keep-alive" | "transfer-encoding":
                    pass
                case "content-length" if length:
                    lines.append(f"Content-Length: {told}")
                case "etag" if other_etag:
                    lines.append('ETag: "another"')
                case _:
                    lines.append(f"{name}: {value}")
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def _answer(self, status: int, code: str, message: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
        self.wfile.write(head.encode() + body)

    def _trickle(self, body: bytes) -> None:
        for byte in body:
            if self.server.proxy.closing.wait(_TRICKLE_S):
                return
            self.wfile.write(bytes([byte]))

    def _reset(self) -> None:
        # Lingering for 0 s makes closing a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.wfile.close()
        self.connection.close()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()


def _forward(upstream: HTTPConnection, request: _Request) -> HTTPResponse:
    if upstream.sock is not None and select.select([upstream.sock], [], [], 0)[0]:
        upstream.close()  # by the server, which keeps no idle connections; the next request opens another
    line, *headers = request.head.decode("latin-1").splitlines()
    method, target, _ = line.split(" ")
    upstream.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    for header in headers:
        name, _, value = header.partition(":")
        if name.lower() != "expect":
            upstream.putheader(name, value.strip())
    upstream.endheaders(request.body or None)
    return upstream.getresponse()


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description="A proxy that spoils answers of an S3 server.")
    parser.add_argument("upstream", help="URL of the server")
    parser.add_argument("--rough", action="store_true", help="2 percent of GETs fail, 1 percent are slow by 2 s")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with FaultProxy(args.upstream, ROUGH if args.rough else (), args.seed) as proxy:
        sys.stdout.write(f"{proxy.url}\n")
        sys.stdout.flush()
        sys.stdin.read()
    sys.stderr.write(f"{len(proxy.requests)} requests; {dict(proxy.hits)}\n")


if __name__ == "__main__":
    main()
