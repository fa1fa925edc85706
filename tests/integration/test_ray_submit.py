"""A job submitted to a running cluster, as the README says: it trains, shows its result, keeps its run."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mtl.data.manifest import Manifest
from mtl.data.plan import Layout
from mtl.data.source import shapes
from mtl.data.writer import write
from mtl.record import read
from mtl.store import open_store
from tests.helpers.jobs import ROOT

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A cluster of two CPUs: where it is, how to talk to it, and the home folder of its jobs."""

    dashboard: str
    environment: dict[str, str]
    folder: Path
    home: Path

    def submit(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / "ray", "job", "submit", "--address", self.dashboard, "--working-dir", ".", "--", *command],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=570,
            check=False,
        )


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head` with token authentication, ended by its process id."""
    # Short: below it lie sockets, whose paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="mtl-ray-"))
    home = tmp_path_factory.mktemp("home")
    gcs, dashboard, client, agent = free_ports(4)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "HOME": str(home),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={gcs}", f"--temp-dir={folder}"]
    ports = [f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"]
    ports += [f"--dashboard-agent-listen-port={agent}", "--include-dashboard=true", "--node-ip-address=127.0.0.1"]
    log = folder / "start.log"
    with log.open("w") as out:
        process = subprocess.Popen([*command, *ports], env=environment, cwd=home, stdout=out, stderr=out)
    try:
        until = time.monotonic() + 180
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.5)
        yield Head(f"http://127.0.0.1:{dashboard}", environment, folder, home)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def few_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded data set, but 300 images of it."""
    path = tmp_path_factory.mktemp("few") / "shapes"
    source = shapes(300)
    manifest = write(open_store(str(path)), "shapes", source.examples, source.labels, Layout(row_group_bytes=50_000))
    assert isinstance(manifest, Manifest)
    return path


def test_a_submitted_job(head: Head, few_shapes: Path) -> None:
    flags = f"--epochs 1 --global-batch 64 --data {few_shapes}".split()
    done = head.submit("python", "jobs/train.py", "shapes", *flags)
    assert done.returncode == 0, done.stdout
    run = head.home / "mtl" / "runs" / "shapes"
    assert f"kept in {run.parent}" in done.stdout
    for text in ("joining Ray", "starting 2 workers", "  left  ".strip(), "test: shapes", "succeeded"):
        assert text in done.stdout, done.stdout
    assert re.search(r"│ rotation +│ +\d+ │", done.stdout), done.stdout
    record = read(open_store(str(run)))
    assert record is not None
    assert record.status == "finished"
    assert record.checkpoints

    uploaded = list(head.folder.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*"))
    folders = [path for path in uploaded if path.is_dir()]
    assert len(folders) == 1
    names = {path.name for path in folders[0].iterdir()}
    assert {"jobs", "mtl", "pyproject.toml"} <= names
    assert not names & {".venv", "data", "runs", ".hypothesis", ".pytest_cache", ".ruff_cache"}
    assert sum(path.stat().st_size for path in folders[0].rglob("*") if path.is_file()) < 20e6


@pytest.mark.parametrize("token", ["", "wrong" * 8])
def test_nobody_submits_without_the_token(head: Head, token: str) -> None:
    environment = {name: value for name, value in head.environment.items() if name != "RAY_AUTH_TOKEN"}
    stranger = Head(head.dashboard, environment | ({"RAY_AUTH_TOKEN": token} if token else {}), head.folder, head.home)
    done = stranger.submit("true")
    assert done.returncode != 0
    assert "oken" in done.stdout


@pytest.mark.slow
def test_the_quickstart_unaided(head: Head) -> None:
    """`ray job submit -- python jobs/train.py shapes`, with its data set still to be drawn."""
    done = head.submit("python", "jobs/train.py", "shapes", "--name", "quickstart", "--epochs", "1")
    assert done.returncode == 0, done.stdout
    assert (head.home / "mtl" / "data" / "shapes" / "manifest.json").exists()
    assert "test: quickstart" in done.stdout
