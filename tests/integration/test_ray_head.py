"""A head of Ray that is lost, for real, with the driver left over."""

import json
from pathlib import Path

import pytest

from mtl.config import Checkpoint, Config, Model, Resources
from tests.helpers.datasets import tiny
from tests.helpers.head import RealHead, real_head
from tests.helpers.jobs import ended_well, job, read_until, started, tiny_config, undisturbed, write_config

pytestmark = pytest.mark.slow


def waiting(head: RealHead, folder: Path) -> Config:
    """A run on `head` that waits in its second epoch for folder/until."""
    args = {"until": str(folder / "until"), "at": 4, "pids": str(folder / "pids")}
    return tiny_config(
        folder / "data",
        folder / "runs",
        epochs=3,
        model=Model(backbone="tests.helpers.backbones_at_fault:waits", backbone_args=args),
        checkpoint=Checkpoint(background=False),
        resources=Resources(workers=2, address=head.gcs),
    )


def test_a_lost_head_ends_the_job_in_words_and_the_run_goes_on_elsewhere(tmp_path: Path) -> None:
    tiny(tmp_path / "data")
    (tmp_path / "pids").mkdir()
    with real_head() as head:
        path = write_config(tmp_path / "config.yaml", waiting(head, tmp_path))
        with started("train.py", "--config", path, env=head.environment) as process:
            read_until(process, "commit at step 3")
            head.lose()
            said, _ = process.communicate(timeout=120)
        assert process.returncode == 2, said
        assert "does not answer; waiting" in said
        assert "The head of Ray is gone." in said
        assert "resumes from the last commit" in said
        assert not [word for word in ("Traceback", "rpc_client", "raylet") if word in said], said
        pids = [path.name for path in (tmp_path / "pids").iterdir()]
        assert len(pids) == 2
        assert not [pid for pid in pids if Path("/proc", pid).exists()], "workers outlive their node"
    left = json.loads((tmp_path / "runs" / "tiny" / "run.json").read_text())
    assert (left["status"], left["owner"], left["checkpoints"][0]["step"]) == ("failed", None, 3)

    (tmp_path / "until").touch()
    with real_head() as head:
        config = waiting(head, tmp_path)
        done = job("train.py", "--config", write_config(tmp_path / "config.yaml", config), env=head.environment)
        assert done.status == 0, done.said
        assert "resumed from the commit of step 3" in done.out
    ended_well(config, attempts=2)
    ledger = json.loads((tmp_path / "runs" / "tiny" / "run.json").read_text())["result"]["ledger"]
    assert ledger == undisturbed(config)["ledger"]
