"""Sweeps as a user runs them: jobs/tune.py in processes of its own, on a tiny data set."""

import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtl.config import Resources, Task
from mtl.store import open_store
from tests.helpers.datasets import tiny
from tests.helpers.jobs import Done, job, read_until, started, tiny_config, write_config

ONE = {"object": Task(kind="multiclass", label="object")}
TWO = {**ONE, "angle": Task(kind="circular", label="angle", flip="negate")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny(folder)
    return folder


@pytest.fixture
def ray_folder() -> Iterator[dict[str, str]]:
    """Variables of a driver whose Ray is its own; whatever it leaves behind is ended."""
    with tempfile.TemporaryDirectory(prefix="mtl-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield {"RAY_TMPDIR": folder}
        for pid in _processes_of(folder):
            os.kill(pid, signal.SIGKILL)


def _processes_of(folder: str) -> list[int]:
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"RAY_TMPDIR={folder}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def write(folder: Path, data: Path, **changes: Any) -> Path:
    config = tiny_config(data, folder / "runs", **{"tasks": TWO, "resources": Resources(workers=1), **changes})
    return write_config(folder / "tiny.yaml", config)


def record(folder: Path) -> dict[str, dict[str, Any]]:
    """The trials in sweep.json, by id."""
    found = json.loads((folder / "runs/tiny-sweep/sweep.json").read_text())
    return {trial["id"]: trial for trial in found["trials"]}


def runs(folder: Path) -> dict[str, dict[str, Any]]:
    """The run.json of each trial, by id."""
    return {
        path.parent.name: json.loads(path.read_text())
        for path in sorted((folder / "runs/tiny-sweep/trials").glob("*/run.json"))
    }


def finished(folder: Path) -> dict[str, Any]:
    return {name: run["write"] for name, run in runs(folder).items() if run["status"] == "finished"}


def assert_refused(done: Done, *texts: str) -> None:
    assert done.status == 2, done.said
    assert "Traceback" not in done.said
    assert all(text in done.err for text in texts), done.err


def test_in_this_process_killed_and_restored_without_repeating_anything(tmp_path: Path, data: Path) -> None:
    config = write(tmp_path, data, runtime="local")
    command = ("tune.py", "--config", config, "--sweep.trials", 4, "--sweep.search", "tpe")
    with started(*command) as driver:
        read_until(driver, "single-angle   finished")
        read_until(driver, "uniform        epoch 1/2")
        driver.kill()
        driver.wait()
    before = finished(tmp_path)
    assert {"single-object", "single-angle"} <= before.keys()

    done = job(*command)

    assert done.status == 0, done.said
    assert "single-object  started" not in done.out
    assert finished(tmp_path).items() >= before.items()
    assert list(record(tmp_path)) == ["single-object", "single-angle", "uniform", "t001", "t002", "t003", "t004"]
    assert {trial["status"] for trial in record(tmp_path).values()} == {"finished"}
    store = open_store(str(tmp_path / "runs/tiny-sweep"))
    assert store.get("pareto.png").startswith(b"\x89PNG")
    assert "baseline" in store.get("table.txt").decode()
    (best,) = [line for line in done.out.splitlines() if "train it  " in line]
    assert f"python jobs/train.py --config {config} --name tiny-sweep-best --" in best

    again = job(*command)
    assert again.status == 0
    assert "started" not in again.out
    assert_refused(job(*command, "--epochs", 3), "begun with another search space or configuration", "epochs")
    space = tmp_path / "space.yaml"
    space.write_text("space: {optimizer.lr: {low: 1.0e-5, high: 1.0e-2, scale: log}}\n")
    assert_refused(job(*command, "--sweep-file", space), "another search space", "space.optimizer.lr", "--name")


def test_a_metric_that_no_task_produces(tmp_path: Path, data: Path) -> None:
    done = job("tune.py", "--config", write(tmp_path, data), "--sweep.metric", "object/mae")
    assert_refused(done, "No task produces the metric", "object/mae", "object/accuracy", "angle/error_degrees")
    assert not (tmp_path / "runs").exists()


def test_more_gpus_for_a_trial_than_exist(tmp_path: Path, data: Path, ray_folder: dict[str, str]) -> None:
    config = write(tmp_path, data, order=tiny_config("", "").order.model_copy(update={"lanes": 32}))
    done = job("tune.py", "--config", config, "--resources.gpu", "--resources.workers", 32, env=ray_folder)
    assert_refused(done, "too small", "32 GPUs")
    assert not runs(tmp_path)


@pytest.mark.slow
def test_on_ray_killed_restored_and_pruned(tmp_path: Path, data: Path, ray_folder: dict[str, str]) -> None:
    config = write(tmp_path, data, tasks=ONE, epochs=24)
    space = tmp_path / "space.yaml"
    space.write_text(
        "trials: 2\nsearch: random\nseed: 3\ngrace: 2\nconcurrent: 1\n"  # t001 learns, t002 hardly at all
        "space: {optimizer.lr: {low: 1.0e-7, high: 1.0e-2, scale: log}}\n"
    )
    command = ("tune.py", "--config", config, "--sweep-file", space)
    with started(*command, env=ray_folder) as driver:
        read_until(driver, "t001           epoch 3/24")
        orphans = set(_processes_of(ray_folder["RAY_TMPDIR"]))
        driver.kill()
        driver.wait()
    before, committed = finished(tmp_path), runs(tmp_path)["t001"]["checkpoints"][0]["step"]
    assert list(before) == ["single-object"]

    done = job(*command, env=ray_folder, timeout_s=300)

    assert done.status == 0, done.said
    after, trials = runs(tmp_path), record(tmp_path)
    assert after["single-object"]["write"] == before["single-object"]
    (resumed,) = re.findall(r"resumed from the commit of step (\d+)", done.out)
    assert int(resumed) >= committed  # its workers outlive the driver by a moment
    assert [trials[name]["status"] for name in ("single-object", "t001", "t002")] == ["finished", "finished", "pruned"]
    assert after["t001"]["attempt"] == 2
    assert after["t002"]["status"] == "stopped"
    assert 2 <= trials["t002"]["epoch"] < 24
    assert trials["t002"]["val"]["object"]["accuracy"] <= trials["t001"]["val"]["object"]["accuracy"]
    assert "t002" in done.out.partition("on the validation split")[2]
    deadline = time.monotonic() + 60  # Ray's agents look for their head for a minute
    while (left := orphans.intersection(_processes_of(ray_folder["RAY_TMPDIR"]))) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left, "a killed driver leaves nothing of its Ray"
