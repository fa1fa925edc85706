"""The objects of a folder over HTTP, as S3 answers GETs of ranges, at the speed of the machine: for measurements.

    python -m tests.helpers.object_server FOLDER      # prints its address; ends with its standard input

Buckets are folders of FOLDER, keys are paths below them. Signatures are not looked at.
"""

import os
import re
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class ObjectServer(ThreadingHTTPServer):
    """Serves `root` on a port of its own."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root: Path) -> None:
        self.root = root
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: ObjectServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 12  # one packet for a head

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        path = self.server.root / unquote(self.path.partition("?")[0]).lstrip("/")
        try:
            file = path.open("rb")
        except OSError:
            body = b"<Error><Code>NoSuchKey</Code><Message>There is none.</Message></Error>"
            self._head(404, "none", len(body))
            self.wfile.write(body)
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            first, last = (int(asked[1]), min(int(asked[2]), size - 1)) if asked else (0, size - 1)
            tag = f"{os.fstat(file.fileno()).st_mtime_ns:x}"
            self._head(206 if asked else 200, tag, last - first + 1, f"bytes {first}-{last}/{size}" if asked else "")
            while first <= last:
                first += os.sendfile(self.connection.fileno(), file.fileno(), first, last - first + 1)

    def _head(self, status: int, tag: str, length: int, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("ETag", f'"{tag}"')
        self.send_header("Content-Length", str(length))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None: ...


if __name__ == "__main__":
    with ObjectServer(Path(sys.argv[1])) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        sys.stdin.read()
        server.shutdown()
