"""Workers that Ray's memory monitor ends, for real: a head whose threshold lies a little above what is in use."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtl.config import Config, Model, Resources
from tests.helpers.datasets import tiny
from tests.helpers.head import RealHead, real_head
from tests.helpers.jobs import ended_well, job, tiny_config, undisturbed, write_config

pytestmark = pytest.mark.slow

ROOM, SPARE = 6 << 30, 3 << 30  # what may be taken, other tests beside included, and what the machine keeps


@pytest.fixture(scope="module")
def head() -> Iterator[RealHead]:
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    memory = {words[0]: int(words[1]) << 10 for words in lines}
    total, free = memory["MemTotal:"], memory["MemAvailable:"]
    if free < ROOM + SPARE:
        pytest.skip(f"the test fills {ROOM >> 30} GiB and leaves {SPARE >> 30}: {free >> 30} are free")
    threshold = (total - free + ROOM) / total
    with real_head(variables={"RAY_memory_usage_threshold": f"{threshold:.4f}"}) as running:
        yield running


def eating(head: RealHead, folder: Path, marker: str) -> Config:
    tiny(folder / "data")
    return tiny_config(
        folder / "data",
        folder / "runs",
        epochs=3,
        model=Model(backbone="tests.helpers.backbones_at_fault:eats", backbone_args={"marker": marker, "at": 5}),
        resources=Resources(workers=1, max_failures=1, address=head.gcs),
    )


def test_a_worker_ended_for_memory_is_named_so_and_restarts(head: RealHead, tmp_path: Path) -> None:
    config = eating(head, tmp_path, str(tmp_path / "ate"))
    done = job("train.py", "--config", write_config(tmp_path / "config.yaml", config), env=head.environment)
    assert done.status == 0, done.said
    assert "worker 0 was ended by Ray, because its machine ran out of memory: set a smaller --max-micro" in done.said
    assert "resumed from the commit of step 3" in done.said, done.said
    assert not Path("/proc", (tmp_path / "ate").read_text()).exists()
    ended_well(config, attempts=2)
    record = json.loads((tmp_path / "runs" / "tiny" / "run.json").read_text())
    assert record["result"]["ledger"] == undisturbed(config)["ledger"]


def test_restarts_for_memory_end_with_what_helps(head: RealHead, tmp_path: Path) -> None:
    config = eating(head, tmp_path, "")
    done = job("train.py", "--config", write_config(tmp_path / "config.yaml", config), env=head.environment)
    assert done.status == 2, done.said
    # Whom the monitor ends besides is its own affair: the worker alone, or the process it is heard through as well.
    assert re.search(r"^(The machine of worker 0|The driver's machine|A machine) ran out of memory", done.err, re.M)
    assert "--max-micro-batch" in done.err
    assert "Traceback" not in done.said
    left = json.loads((tmp_path / "runs" / "tiny" / "run.json").read_text())
    assert (left["status"], left["owner"], left["attempt"]) == ("failed", None, 2)
    assert [commit["step"] for commit in left["checkpoints"]] == [6, 3]
    assert not [pid for pid in head.pids() if b"TrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
