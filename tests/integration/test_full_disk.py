"""A disk that fills up: the run says so, keeps its last commit, and goes on once there is space."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mtl.config import Checkpoint
from mtl.record import read
from mtl.store import open_store
from tests.helpers.datasets import tiny
from tests.helpers.engine import SMALL, assert_same_run, tiny_config, train
from tests.helpers.faults import Fault
from tests.helpers.nodes import wait_for
from tests.helpers.ranks import Group, values


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 32 megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_the_last_commit_stays_and_the_run_goes_on_once_there_is_space(disk: Path, tmp_path: Path) -> None:
    tiny(tmp_path / "data", rows={"train": 200, "val": 24, "test": 24})
    whole, full = (
        tiny_config(tmp_path / "data", storage, model=SMALL, checkpoint=Checkpoint())
        for storage in (tmp_path / "runs", disk)
    )
    values(Group(tmp_path / "whole", 1, train, whole).wait())
    # An epoch has six steps, and a commit at its end.
    hold = Fault("step", 8, "hold", until=tmp_path / "go")
    group = Group(tmp_path / "full", 1, train, full, torch.float64, (hold,))
    store = open_store(full.storage).child(full.name)
    wait_for(lambda: (found := read(store)) is not None and found.checkpoints, 200, "no commit was made")
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
    (tmp_path / "go").touch()
    (outcome,) = group.wait()
    assert outcome.error == "NoSpace"
    assert f"There is no space left for {disk}" in outcome.text
    assert "free some space" in outcome.text
    left = read(store)
    assert left is not None
    assert [commit.step for commit in left.checkpoints] == [6]

    filler.unlink()
    values(Group(tmp_path / "again", 2, train, full).wait())
    assert_same_run(full, whole)
