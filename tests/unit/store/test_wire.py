"""HTTP over loopback: progress, hedges, connections, TLS, proxies."""

import datetime
import gc
import io
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mtl.store.hedging import Hedging
from mtl.store.patience import Patience
from mtl.store.wire import Address, Answer, Wires

PATIENCE = Patience(connect_s=5, answer_s=5, window_s=1.0, window_bytes=1000)


class Server:
    """Answers "hello" on any number of connections; `wait` holds back the first `late` requests."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.late, self.connections, self.wait, self.length = 0, 0, threading.Event(), 5
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                server.connections += 1
                super().setup()

            def handle(self) -> None:
                with suppress(ConnectionError):
                    super().handle()

            def do_GET(self) -> None:
                if server.late:
                    server.late -= 1
                    server.wait.wait()
                self.send_response(200)
                self.send_header("Content-Length", str(server.length))
                self.end_headers()
                self.wfile.write(b"hello")
                self.close_connection = server.length != 5

            def do_CONNECT(self) -> None:
                self.send_response(200)
                self.end_headers()
                server.tunnels.append((self.path, self.headers.get("Proxy-Authorization", "")))
                host, _, port = self.path.rpartition(":")
                with socket.create_connection((host, int(port))) as beyond:
                    back = threading.Thread(target=pump, args=(beyond, self.connection))
                    back.start()
                    pump(self.connection, beyond)
                    back.join()
                self.close_connection = True

            def log_message(self, format: str, *args: object) -> None: ...

        self.tunnels: list[tuple[str, str]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self) -> None:
        self.wait.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):  # either end may have gone
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def wires(cafile: str = "", proxy: str | None = None) -> Wires:
    return Wires(PATIENCE, lambda: cafile, lambda _: proxy)


def ask(wires: Wires, address: Address, hedging: Hedging | None = None, hedges: list[None] | None = None) -> bytes:
    answer = wires.ask(address, {}, hedging or Hedging(0), lambda: (hedges if hedges is not None else []).append(None))
    body = bytearray(answer.length or 0)
    got, _ = answer.receive(memoryview(body))
    wires.finish(address, answer)
    return bytes(body[:got])


def test_connections_are_kept_and_a_dead_one_is_noticed(server: Server) -> None:
    made, address = wires(), Address("http", server.host, "/a?b")
    for _ in range(5):
        assert ask(made, address) == b"hello"
    assert server.connections == 1
    server.length = 9  # a body that ends early ends the connection
    assert ask(made, address) == b"hello"
    server.length = 5
    assert ask(made, address) == b"hello"
    assert server.connections == 2


def test_connections_end_with_their_owner(server: Server) -> None:
    made = wires()
    ask(made, Address("http", server.host, "/"))
    del made
    gc.collect()  # an open socket would be a warning, which fails


def test_a_slow_answer_is_asked_for_again(server: Server) -> None:
    made, address, hedging, hedges = wires(), Address("http", server.host, "/"), Hedging(0.05), [None][:0]
    for _ in range(64):
        hedging.observe(0.001)
    server.late = 1  # until the test ends
    assert ask(made, address, hedging, hedges) == b"hello"
    assert len(hedges) == 1
    assert server.connections == 2
    assert ask(made, address, hedging, hedges) == b"hello"
    assert server.connections == 2


class Pieces(io.RawIOBase):
    """An answer whose body comes in 40 pieces of `size` bytes, each after `seconds` of a clock of its own."""

    def __init__(self, size: int, seconds: float) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {40 * size}\r\n\r\n".encode()
        self.left, self.seconds, self.now = [head, *[bytes(size)] * 40], seconds, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self.left.pop(0)
        self.now += self.seconds
        buffer[: len(piece)] = piece
        return len(piece)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, 64)  # smaller than a piece, which so is not read ahead

    def answer(self) -> Answer:
        response = HTTPResponse(cast(socket.socket, self))
        response.begin()
        return Answer(HTTPConnection("unused"), response, PATIENCE, lambda: self.now)


@pytest.mark.parametrize(("size", "cut"), [(100, True), (240, True), (260, False), (2000, False)])
def test_a_trickle_is_cut_and_a_slow_body_is_not(size: int, cut: bool) -> None:
    """A piece each quarter of a second; 1,000 bytes a second are demanded."""
    answer = Pieces(size, 0.25).answer()
    got, trouble = answer.receive(memoryview(bytearray(40 * size)))
    assert (got < 40 * size, isinstance(trouble, TimeoutError)) == (cut, cut)
    if cut:
        assert got <= 1.5 * PATIENCE.window_bytes
    answer.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of its own for 127.0.0.1."""
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(secret, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    return path


@pytest.fixture
def secure(certificate: Path) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = Server(context)
    yield server
    server.close()


def test_tls(secure: Server, certificate: Path) -> None:
    made, address = wires(str(certificate)), Address("https", secure.host, "/")
    for _ in range(3):
        assert ask(made, address) == b"hello"
    assert secure.connections == 1


def test_a_certificate_that_is_not_trusted(secure: Server) -> None:
    import certifi

    with pytest.raises(ssl.SSLCertVerificationError):
        ask(wires(certifi.where()), Address("https", secure.host, "/"))


def test_tls_through_a_proxy(server: Server, secure: Server, certificate: Path) -> None:
    made = wires(str(certificate), f"http://user:pass%21@{server.host}")
    assert ask(made, Address("https", secure.host, "/")) == b"hello"
    assert server.tunnels == [(secure.host, "Basic dXNlcjpwYXNzIQ==")]
