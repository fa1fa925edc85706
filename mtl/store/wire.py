"""HTTP GETs straight into the caller's memory, over connections that are kept.

boto3's get_object takes 3.5 ms of CPU for 3 MB, of which urllib3 and its copies are most; this takes 1.1 ms, and sees
every piece of a body arrive (benchmarks/results/).
"""

import base64
import select
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import final
from urllib.parse import unquote, urlsplit

from mtl.store.hedging import Hedging
from mtl.store.patience import Patience

_ERROR_BYTES = 1 << 16

FAILURES = (OSError, HTTPException)
"""What a request raises when the network or the server breaks off."""


@dataclass(frozen=True)
class Address:
    """Where a GET goes: scheme http or https, host and port, path with query."""

    scheme: str
    host: str
    path: str

    @classmethod
    def of(cls, url: str) -> "Address":
        parts = urlsplit(url)
        return cls(parts.scheme, parts.netloc, f"{parts.path}?{parts.query}".rstrip("?"))


@final
class Answer:
    """The start of an answer; `receive` takes its body. Close it."""

    def __init__(
        self,
        connection: HTTPConnection,
        response: HTTPResponse,
        patience: Patience,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection, self._response, self._patience, self._clock = connection, response, patience, clock
        self.status = response.status
        self.headers = response.headers
        self.length = response.length
        self._whole = False

    def receive(self, into: memoryview) -> tuple[int, Exception | None]:
        """Fill `into`, no larger than the body. Returns bytes received, and what went wrong, if it did."""
        got, mark, mark_at = 0, 0, self._clock()
        file = self._response.fp
        try:
            while got < len(into):
                part = file.readinto1(into[got:])
                if part == 0:
                    return got, ConnectionError(f"the body ended after {got} of {len(into)} bytes")
                got += part
                now = self._clock()
                if now - mark_at >= self._patience.window_s:
                    if got - mark < self._patience.window_bytes:
                        return got, TimeoutError(f"{got - mark} bytes in {now - mark_at:.1f} s")
                    mark, mark_at = got, now
        except FAILURES as error:
            return got, error
        self._whole = got == self.length
        return got, None

    def error_text(self) -> str:
        """The body of an answer that is an error, as far as it comes."""
        size = min(_ERROR_BYTES, self.length or 0)
        body = bytearray(size)
        got, _ = self.receive(memoryview(body))
        return body[:got].decode("utf-8", "replace")

    def close(self) -> HTTPConnection | None:
        """The connection, if it can serve another request; closed otherwise."""
        reusable = self._whole and not self._response.will_close
        self._response.close()
        if reusable:
            return self._connection
        self._connection.close()
        return None


@final
class Wires:
    """The connections of one process. A thread takes one for a request, so there are as many as threads that read.

    Args:
        patience: deadlines.
        cafile: certificates that https servers are checked against.
        proxies: the proxy for a URL, or None.
    """

    def __init__(self, patience: Patience, cafile: Callable[[], str], proxy: Callable[[str], str | None]) -> None:
        self._patience, self._cafile, self._proxy = patience, cafile, proxy
        self._lock = threading.Lock()
        self._tls: ssl.SSLContext | None = None
        self._idle: dict[tuple[str, str], list[HTTPConnection]] = {}
        weakref.finalize(self, _close_all, self._idle)

    def ask(
        self, address: Address, headers: Mapping[str, str], hedging: Hedging, on_hedge: Callable[[], None]
    ) -> Answer:
        """Send a GET and wait for the start of its answer, asking again on another connection if that is slow.

        Raises:
            OSError, HTTPException: no answer came.
        """
        began = time.monotonic()
        racing = [self._send(address, headers)]
        try:
            delay_s = hedging.delay_s
            if (
                delay_s is not None
                and delay_s < self._patience.answer_s
                and _first(racing, delay_s) is None
                and hedging.spend()
            ):
                on_hedge()
                with suppress(*FAILURES):  # the first request may still be answered
                    racing.append(self._send(address, headers))
            winner = _first(racing, began + self._patience.answer_s - time.monotonic())
            if winner is None:
                raise TimeoutError(f"no answer in {self._patience.answer_s:g} s")
            hedging.observe(time.monotonic() - began)
            response = winner.getresponse()
        except BaseException:
            for connection in racing:
                connection.close()
            raise
        for connection in racing:
            if connection is not winner:
                connection.close()
        return Answer(winner, response, self._patience)

    def finish(self, address: Address, answer: Answer) -> None:
        """Close `answer` and keep its connection for the next request, if that is possible."""
        connection = answer.close()
        if connection is not None:
            with self._lock:
                self._idle.setdefault((address.scheme, address.host), []).append(connection)

    def _send(self, address: Address, headers: Mapping[str, str]) -> HTTPConnection:
        connection = self._kept(address) or self._connect(address)
        try:
            connection.request("GET", address.path, headers=dict(headers))
        except BaseException:
            connection.close()
            raise
        return connection

    def _kept(self, address: Address) -> HTTPConnection | None:
        while True:
            with self._lock:
                idle = self._idle.get((address.scheme, address.host))
                if not idle:
                    return None
                connection = idle.pop()
            # The server has nothing to say yet: what can be read is the end of the connection.
            if _first([connection], 0) is None:
                return connection
            connection.close()

    def _connect(self, address: Address) -> HTTPConnection:
        proxy = self._proxy(f"{address.scheme}://{address.host}")
        host = urlsplit(proxy).netloc.rpartition("@")[2] if proxy else address.host
        wait_s = self._patience.connect_s
        if address.scheme == "https":
            connection = HTTPSConnection(host, timeout=wait_s, context=self._trust())
        else:
            connection = HTTPConnection(host, timeout=wait_s)
        if proxy:
            connection.set_tunnel(address.host, headers=_credentials(proxy))
        try:
            connection.connect()
            _socket(connection).settimeout(self._patience.window_s)
        except BaseException:
            connection.close()
            raise
        return connection

    def _trust(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                self._tls = ssl.create_default_context(cafile=self._cafile())
            return self._tls


def _first(connections: Sequence[HTTPConnection], wait_s: float) -> HTTPConnection | None:
    """The first of `connections` that has something to read, or has ended, within `wait_s`."""
    by_number = {_socket(connection).fileno(): connection for connection in connections}
    poll = select.poll()
    for number in by_number:
        poll.register(number, select.POLLIN)
    ready = poll.poll(max(0.0, wait_s) * 1000)
    return by_number[ready[0][0]] if ready else None


def _socket(connection: HTTPConnection) -> socket.socket:
    assert connection.sock is not None
    return connection.sock


def _credentials(proxy: str) -> dict[str, str]:
    parts = urlsplit(proxy)
    if parts.username is None:
        return {}
    told = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(told.encode()).decode()}"}


def _close_all(idle: dict[tuple[str, str], list[HTTPConnection]]) -> None:
    for connections in idle.values():
        for connection in connections:
            connection.close()
