"""Training on Ray: the result of one process, whatever happens to workers and driver on the way."""

import io
import json
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mtl.config import Checkpoint, Config, Model, Resources
from mtl.console import RunConsole
from mtl.errors import DataError, MtlError, NotFound, ResourceError, Truncated
from tests.helpers import nodes
from tests.helpers.datasets import tiny
from tests.helpers.jobs import ended_well, job, read_until, started, tiny_config, undisturbed, write_config

# Ray's own warnings are not ours to mend.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("ray_cluster")]

AT_FAULT = "tests.helpers.backbones_at_fault"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ray") / "tiny"
    tiny(path)
    return path


def trained(config: Config) -> tuple[dict[str, Any], str]:
    """The result, and what a person saw."""
    from mtl.on_ray.train import train

    stream = io.StringIO()
    return train(config, RunConsole(stream)), stream.getvalue()


def agrees_with_one_process(result: dict[str, Any], config: Config) -> None:
    """Whether `result` is that of the same run in this process, undisturbed: samples exactly, metrics closely."""
    alone = undisturbed(config)
    assert result["ledger"] == alone["ledger"]
    for split in ("val", "test"):
        for task, metrics in alone["metrics"][split].items():
            assert result["metrics"][split][task] == pytest.approx(metrics, rel=1e-2, abs=5e-3), (split, task)


def record(config: Config) -> dict[str, Any]:
    return json.loads((Path(config.storage) / config.name / "run.json").read_text())


def striking(name: str, **args: str | int) -> Model:
    return Model(backbone=f"{AT_FAULT}:{name}", backbone_args=dict(args))


def test_two_workers_give_the_result_of_one_process(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"

    @contextmanager
    def kept(**_: object) -> Generator[str]:
        scratch.mkdir()
        yield str(scratch)

    monkeypatch.setattr("mtl.on_ray.train.tempfile.TemporaryDirectory", kept)
    config = tiny_config(data, tmp_path / "runs")
    result, said = trained(config)
    assert result["status"] == record(config)["status"] == "finished"
    agrees_with_one_process(result, config)
    assert all(text in said for text in ("starting 2 workers", "2 workers", "step 6/6", "test after epoch 2"))
    files = [path.name for path in scratch.rglob("*") if path.is_file()]
    assert files == [".validate_storage_marker"], "Ray holds something of the run"


def test_a_killed_worker_costs_nothing_but_time(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    marker = tmp_path / "killed"
    model = striking("dies_once", marker=str(marker), at=5)
    checkpoint = Checkpoint(background=False)  # or the death could come before the commit
    config = tiny_config(data, tmp_path / "runs", epochs=3, model=model, checkpoint=checkpoint)
    result, said = trained(config)
    assert marker.exists()
    ended_well(config, attempts=2)
    assert "resumed from the commit of step 3" in said
    assert re.search(r"worker \d failed: its process died", said), said
    assert [restart["cause"] for restart in result["restarts"]] == ["failed"]
    assert "raylet" not in "".join(capfd.readouterr()), "Ray speaks in the middle of ours"
    (kept,) = (tmp_path / "runs" / "tiny" / "logs" / "a1").glob("ray-*")
    assert "died or was killed" in kept.read_text()
    agrees_with_one_process(result, config)


def overwrite(shard: Path) -> None:
    damaged = bytearray(shard.read_bytes())
    damaged[100:200] = bytes(100)
    shard.write_bytes(damaged)


def truncate(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:200])


def test_deaths_without_end_use_up_the_restarts(data: Path, tmp_path: Path, ray_cluster: str) -> None:
    checkpoint, resources = Checkpoint(background=False), Resources(workers=2, max_failures=1, address=ray_cluster)
    model = striking("always_dies", at=4)
    config = tiny_config(data, tmp_path / "runs", epochs=3, model=model, checkpoint=checkpoint, resources=resources)
    done = job("train.py", "--config", write_config(tmp_path / "mine.yaml", config))
    assert done.status == 2, done.said
    assert re.search(r"Worker \d failed, and the restarts allowed are used up", done.err), done.err
    assert "resumes from the last commit" in done.err
    assert "Traceback" not in done.said
    left = record(config)
    assert (left["status"], left["attempt"], left["owner"]) == ("failed", 2, None)
    assert [commit["step"] for commit in left["checkpoints"]] == [6, 3]
    assert not nodes.claims()


@pytest.mark.parametrize(
    ("damage", "kind", "said"),
    [
        (overwrite, DataError, "is not what was written"),
        (truncate, Truncated, "ended inside the range"),
        (Path.unlink, NotFound, "There is no object"),
    ],
)
def test_an_error_that_no_restart_mends_ends_the_job_at_once(
    damage: Callable[[Path], None], kind: type[MtlError], said: str, data: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    for shard in (copy / "shards").glob("train-*"):
        damage(shard)
    config = tiny_config(copy, tmp_path / "runs")
    with pytest.raises(kind, match=said) as caught:
        trained(config)
    assert "train-" in str(caught.value)
    assert caught.value.do
    left = record(config)
    assert (left["status"], left["attempt"], left["owner"]) == ("failed", 1, None)


def test_more_workers_than_the_cluster_has_room_for(data: Path, tmp_path: Path, ray_cluster: str) -> None:
    config = tiny_config(data, tmp_path / "runs", resources=Resources(workers=2, cpus_per_worker=3))
    with pytest.raises(ResourceError, match="too small"):
        trained(config)
    path = write_config(tmp_path / "mine.yaml", config)
    done = job("train.py", "--config", path, "--resources.address", ray_cluster)
    assert done.status == 2
    assert "Traceback" not in done.said
    assert all(text in done.err for text in ("got:      4 CPUs", "expected: 6 CPUs for 2 workers", "do: "))
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def occupied() -> Iterator[None]:
    """Somebody else has three of the cluster's four CPUs."""
    import ray

    other = nodes.occupy(num_cpus=3)
    yield
    ray.kill(other)


@pytest.mark.usefixtures("occupied")
def test_workers_are_not_waited_for_for_ever(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "runs", resources=Resources(workers=2, pending_deadline_s=3))
    with pytest.raises(ResourceError, match="could not be had in time") as caught:
        trained(config)
    assert caught.value.got == "none after 3 s; the cluster has 4 CPUs (1 free)"
    assert (record(config)["status"], record(config)["owner"]) == ("failed", None)
    assert not nodes.claims()


@pytest.mark.usefixtures("occupied")
def test_a_job_whose_time_is_over_does_not_wait_for_workers(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "runs", max_hours=3 / 3600)
    result, said = trained(config)
    assert result == {"status": "stopped", "steps": 0}
    assert "the time of this job is over" in said
    assert RunConsole(io.StringIO()).conclude(config, result) == 143
    assert not nodes.claims()


@pytest.mark.parametrize("named", ["flag", "variable"])
def test_an_address_where_nobody_listens(data: Path, tmp_path: Path, named: str) -> None:
    path = write_config(tmp_path / "mine.yaml", tiny_config(data, tmp_path / "runs"))
    gone = "127.0.0.1:1"
    args, env = (("--resources.address", gone), {}) if named == "flag" else ((), {"RAY_ADDRESS": gone})
    done = job("train.py", "--config", path, *args, env=env, timeout_s=60)  # Ray would look for three minutes
    assert done.status == 2
    assert "Traceback" not in done.said
    assert all(text in done.err for text in ("can not be reached", "127.0.0.1:1: ", "ray start --head"))
    assert not (tmp_path / "runs").exists()


def alive(pids: Path) -> list[str]:
    return [path.name for path in pids.iterdir() if Path("/proc", path.name).exists()]


def stopped(config: Config, until: Path, number: signal.Signals, *args: str, **env: str) -> str:
    """What a job says that is told to stop while its workers are at their third step."""
    path = write_config(until.with_suffix(".yaml"), config)
    with started("train.py", "--config", path, *args, env=env) as process:
        said = read_until(process, "attempt 1: ")
        process.send_signal(number)
        said += read_until(process, "stopping: the workers commit first")
        time.sleep(0.5)
        until.touch()
        rest, _ = process.communicate(timeout=300)
        assert process.returncode == 143, rest
    return "".join(said) + rest


def test_a_stopped_driver_commits_and_goes_on_later(data: Path, tmp_path: Path, ray_cluster: str) -> None:
    until, pids = tmp_path / "until", tmp_path / "pids"
    pids.mkdir()
    model = striking("waits", until=str(until), at=3, pids=str(pids))
    config = tiny_config(data, tmp_path / "runs", epochs=4, model=model)
    join = ("--resources.address", ray_cluster)
    said = stopped(config, until, signal.SIGTERM, *join)
    assert "committed; rerun the same command to go on" in said
    assert "Traceback" not in said
    left = record(config)
    assert (left["status"], left["owner"]) == ("stopped", None)
    assert 0 < left["checkpoints"][0]["step"] < 12
    wait_for_the_end_of(pids)

    resumed = job("train.py", "--config", until.with_suffix(".yaml"), *join)
    assert (resumed.status, resumed.err) == (0, "")
    assert f"resumed from the commit of step {left['checkpoints'][0]['step']}" in resumed.out
    agrees_with_one_process(record(config)["result"], config)


@pytest.mark.slow
def test_a_killed_driver_takes_its_workers_along_and_the_run_goes_on(
    data: Path, tmp_path: Path, ray_cluster: str
) -> None:
    until, pids = tmp_path / "until", tmp_path / "pids"
    pids.mkdir()
    model = striking("waits", until=str(until), at=4, pids=str(pids))  # in the second epoch
    checkpoint = Checkpoint(background=False)  # or the commit would be told of at the next step
    config = tiny_config(data, tmp_path / "runs", epochs=3, model=model, checkpoint=checkpoint)
    path, join = write_config(tmp_path / "mine.yaml", config), ("--resources.address", ray_cluster)
    with started("train.py", "--config", path, *join) as process:
        read_until(process, "commit at step 3")
        process.kill()
        assert process.wait() == -signal.SIGKILL
    wait_for_the_end_of(pids)
    nodes.forget_claims()
    left = record(config)
    assert (left["status"], left["checkpoints"][0]["step"]) == ("running", 3)

    until.touch()
    resumed = job("train.py", "--config", path, *join)
    assert (resumed.status, resumed.err) == (0, "")
    assert "resumed from the commit of step 3" in resumed.out
    ended_well(config, attempts=2)
    agrees_with_one_process(record(config)["result"], config)


def wait_for_the_end_of(pids: Path) -> None:
    deadline = time.monotonic() + 30
    while left := alive(pids):
        assert time.monotonic() < deadline, f"workers outlive their driver: {left}"
        time.sleep(0.2)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short name: below it lie sockets, whose paths may have 107 characters."""
    path = Path(tempfile.mkdtemp(prefix="mtl-ray-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def using(folder: Path) -> list[str]:
    """The processes whose command line names `folder`."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in command:
            found.append(f"{process.name} {command[:80]!r}")
    return found


def test_ctrl_c_leaves_nothing_of_a_cluster_started_for_the_job(data: Path, tmp_path: Path, short_folder: Path) -> None:
    until, pids = tmp_path / "until", tmp_path / "pids"
    pids.mkdir()
    model = striking("waits", until=str(until), at=3, pids=str(pids))
    config = tiny_config(data, tmp_path / "runs", epochs=4, model=model)
    (short_folder / "ray").mkdir()
    (short_folder / "ray/ray_current_cluster").write_text("127.0.0.1:1")  # as a killed head leaves it behind
    said = stopped(config, until, signal.SIGINT, RAY_TMPDIR=str(short_folder))
    assert "Traceback" not in said
    assert record(config)["status"] == "stopped"
    wait_for_the_end_of(pids)
    deadline = time.monotonic() + 30
    while left := using(short_folder):
        assert time.monotonic() < deadline, f"processes of Ray outlive the job: {left}"
        time.sleep(0.2)
