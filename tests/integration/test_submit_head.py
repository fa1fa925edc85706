"""Submission to a real head with a dashboard and a token, as a user of the command line sees it."""

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mtl.on_ray.head import Head
from mtl.record import read
from mtl.store import open_store
from tests.helpers.datasets import tiny
from tests.helpers.head import RealHead, real_head

pytestmark = pytest.mark.slow

SUBMIT = str(Path(__file__).resolve().parents[2] / "jobs" / "submit.py")
TIMEOUT_S = 300
STEP = re.compile(r"step \d+/\d+")


@pytest.fixture(scope="module")
def head() -> Iterator[RealHead]:
    with real_head() as running:
        yield running


class Wire:
    """A way to a head that can be cut: a port of this machine that forwards to the head's."""

    def __init__(self, address: str) -> None:
        self._to = ("127.0.0.1", urlsplit(address).port)
        self._open: list[socket.socket] = []
        self._whole = True
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, for_s: float) -> None:
        """End every connection, and those that are made within a while."""
        self._whole = False
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        time.sleep(for_s)
        self._whole = True

    def close(self) -> None:
        """Accept no more."""
        self._server.close()
        for one in self._open:
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                if not self._whole:
                    near.close()
                    continue
                far = socket.create_connection(self._to)
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=_pump, args=pair, daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for one in (source, sink):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def wire(head: RealHead) -> Iterator[Wire]:
    with closing(Wire(head.address)) as made:
        yield made


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def submit(head: RealHead, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [sys.executable, SUBMIT, *words],
            env={**head.environment, "RAY_API_SERVER_ADDRESS": head.address, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"no end after {TIMEOUT_S} s:\n{(late.stdout or b'').decode()}")


def test_without_the_token(head: RealHead) -> None:
    words = ("--", "train", "shapes", "--name", "uninvited")
    nothing = submit(head, *words, RAY_AUTH_TOKEN_PATH="", RAY_AUTH_MODE="disabled")
    wrong = submit(head, *words, RAY_AUTH_TOKEN="wrong")
    assert (nothing.returncode, wrong.returncode) == (2, 2)
    assert "needs a token" in nothing.stderr
    assert "does not accept the token" in wrong.stderr
    assert submit(head, "list").stdout == ""


def test_a_run_is_submitted_followed_stopped_and_resumed(
    head: RealHead, wire: Wire, stack: ExitStack, tmp_path: Path
) -> None:
    tiny(tmp_path / "tiny")
    words = ["train", "auto", "--data", str(tmp_path / "tiny"), "--storage", str(tmp_path / "runs"), "--name", "mine"]
    words += ["--resources.workers", "1", "--model.batch-norm-groups", "1", "--log-every-s", "0.5", "--epochs"]
    run = open_store(str(tmp_path / "runs")).child("mine")
    following = stack.enter_context(
        subprocess.Popen(
            [sys.executable, SUBMIT, "--address", wire.address, "--", *words, "2000"],
            env=head.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    )
    stack.callback(following.kill)
    assert following.stdout is not None
    shown: list[str] = []
    for line in following.stdout:
        shown.append(line)
        if STEP.search(line):
            break
    assert STEP.search(shown[-1]), "".join(shown)
    wire.cut(for_s=1)

    second = submit(head, "--", *words, "2000")
    assert second.returncode == 2
    assert "The run 'mine' has a job already: mine-a1." in second.stderr
    assert "mine-a1                   running" in submit(head, "list").stdout

    stopped = submit(head, "stop", "mine")
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped after" in stopped.stdout
    shown += following.stdout.readlines()
    assert following.wait(60) == 143
    assert "committed" in "".join(shown)
    log = Head(head.address, head.token).log("mine-a1")
    ours = (
        "upload  ",
        "head    ",
        "job     ",
        "        submitted",
        "mine-a1 is",
        "the connection to",
        "connected again",
    )
    assert [line for line in shown if not line.startswith(ours)] == log.splitlines(keepends=True)
    record = read(run)
    assert record is not None
    assert (record.status, record.owner) == ("stopped", None)
    reached = record.checkpoints[0]

    resumed = submit(head, "--", *words, str(reached.epoch + 2))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "job     mine-a2: python jobs/train.py auto" in resumed.stdout
    assert f"resumed from the commit of step {reached.step:,}" in resumed.stdout
    record = read(run)
    assert record is not None
    assert record.status == "finished"


def test_the_exit_status_and_the_message_are_the_jobs(head: RealHead, tmp_path: Path) -> None:
    failed = submit(head, "--", "train", "shapes", "--data", str(tmp_path / "nothing"), "--name", "astray")
    assert failed.returncode == 2
    assert str(tmp_path / "nothing") in failed.stdout
    again = submit(head, "follow", "astray-a1")
    assert again.returncode == 2
    gone = submit(head, "--python", "no-such-python", "--", "train", "shapes", "--name", "nowhere")
    assert gone.returncode == 127


def test_what_the_head_stores_of_a_job_holds_no_secret(head: RealHead) -> None:
    canary = "canary-2b1c"
    done = submit(head, "--no-follow", "--", "evaluate", "--help", AWS_SECRET_ACCESS_KEY=canary, MY_PASSWORD=canary)
    assert done.returncode == 0, done.stderr
    log = submit(head, "follow", "evaluate").stdout
    assert "--split" in log
    status, listed = Head(head.address, head.token).request("GET", "/api/jobs/")
    assert status == 200
    assert "evaluate-a1" in listed
    assert canary not in listed + log
    assert head.token not in listed + log
