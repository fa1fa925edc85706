"""Two jobs and one run name: one writes, the other says who it is. Real processes."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mtl.config import Checkpoint, Config
from mtl.record import read
from mtl.store import open_store
from tests.helpers.datasets import tiny
from tests.helpers.engine import SMALL, assert_same_run, result_of, tiny_config, train
from tests.helpers.faults import Fault
from tests.helpers.ranks import Group, values

ROOT = Path(__file__).resolve().parents[2]
PATIENT = (30.0, 0.2)  # seconds of silence before a takeover, and between heartbeats
HASTY, MUTE = (0.3, 1e6), (30.0, 1e6)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("writers")
    tiny(folder / "data", rows={"train": 100, "val": 24, "test": 24})
    return tiny_config(
        folder / "data", folder / "runs", model=SMALL, checkpoint=Checkpoint(every_s=1e-9, background=False)
    )


def job(folder: Path, config: Config, world_size: int, lease: tuple[float, float], *faults: Fault) -> Group:
    return Group(folder, world_size, train, config, torch.float64, faults, *lease)


def until(condition: object) -> None:
    deadline = time.monotonic() + 240
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_of_two_jobs_one_proceeds(config: Config, tmp_path: Path) -> None:
    config = config.model_copy(update={"name": "contended"})
    # Whoever owns the run waits in its second step until the other has given up.
    hold = Fault("step", 1, "hold", until=tmp_path / "go")
    groups = [job(tmp_path / f"job-{i}", config, 2, PATIENT, hold) for i in (0, 1)]
    until(lambda: any(not group.alive() for group in groups))
    (tmp_path / "go").touch()
    outcomes = [group.wait() for group in groups]
    (winner, loser) = sorted(outcomes, key=lambda ranks: ranks[0].error or "")
    assert {result["status"] for result in values(winner)} == {"finished"}
    assert [outcome.error for outcome in loser] == ["RunOwned", "RunError"]
    record = read(open_store(config.storage).child(config.name))
    assert record is not None
    assert record.attempt == 1
    assert f"process {groups[outcomes.index(winner)].processes[0].pid} of user" in loser[0].text


def test_zombie_can_not_commit(config: Config, tmp_path: Path) -> None:
    config = config.model_copy(update={"name": "haunted"})
    alone = config.model_copy(update={"name": "alone"})
    values(job(tmp_path / "alone", alone, 1, PATIENT).wait())
    store = open_store(config.storage).child(config.name)
    zombie = job(tmp_path / "zombie", config, 1, MUTE, Fault("step", 3, "hold", until=tmp_path / "go"))
    until(lambda: (record := read(store)) is not None and record.checkpoints)
    values(job(tmp_path / "successor", config, 1, HASTY).wait())
    finished = result_of(config)
    (tmp_path / "go").touch()
    (outcome,) = zombie.wait()
    assert outcome.error == "RunLost"
    assert result_of(config) == finished
    assert_same_run(config, alone)


def torchrun(config: Config, file: Path) -> subprocess.CompletedProcess[str]:
    file.write_text(config.to_yaml())
    launcher = ["torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command = [sys.executable, "-m", *launcher, str(ROOT / "jobs/train.py"), "--config", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_finished_job_shows_its_result_again_under_torchrun(config: Config, tmp_path: Path) -> None:
    config = config.model_copy(update={"name": "job"})
    first, second = (torchrun(config, tmp_path / "config.yaml") for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "is finished; this is its result" not in first.stdout
    assert "is finished; this is its result" in second.stdout
    assert "loading torch" not in second.stdout
    record = read(open_store(config.storage).child(config.name))
    assert record is not None
    assert (record.status, record.attempt) == ("finished", 1)
    # Two ranks ran the script, and one of them spoke.
    ledger = result_of(config)["ledger"]
    assert first.stdout.count(ledger) == second.stdout.count(ledger) == 1
