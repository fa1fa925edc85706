"""Workers that hang, or are slow, for real."""

import io
from pathlib import Path
from typing import Any, cast

import pytest

from mtl.config import Model, Resources
from mtl.console import RunConsole, goodput_line
from mtl.store import open_store
from tests.helpers.datasets import tiny
from tests.helpers.jobs import ended_well, tiny_config, undisturbed

# Ray's own warnings are not ours to mend.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "deadline_s", "why"), [("stops_once", 300, "not heard of for 2"), ("sleeps_once", 15, "no progress for 1")]
)
def test_a_worker_that_hangs_is_named_and_killed_and_costs_nothing_but_time(
    name: str, deadline_s: float, why: str, tmp_path: Path
) -> None:
    from mtl.on_ray.train import train

    tiny(tmp_path / "data")
    marker, said = tmp_path / "hangs", io.StringIO()
    model = Model(backbone=f"tests.helpers.backbones_at_fault:{name}", backbone_args={"marker": str(marker), "at": 5})
    resources = Resources(step_deadline_s=deadline_s)
    config = tiny_config(tmp_path / "data", tmp_path / "runs", epochs=3, model=model, resources=resources)
    result = train(config, RunConsole(said))
    log, pid = said.getvalue(), marker.read_text()
    assert f"(process {pid} on " in log, log
    assert why in log, log
    assert "is here:" in log, "the other worker says where it waits"
    assert "all_reduce" in log or "backward" in log, log
    assert "resumed from the commit of step 3" in log, log
    assert not Path("/proc", pid).exists()
    ended_well(config, attempts=2)
    (restart,) = result["restarts"]
    assert (restart["attempt"], restart["cause"]) == (2, "hang")
    assert f"1 restart: hang ({restart['replayed_s']:.0f} s replayed)" in goodput_line(result)
    logs = open_store(config.storage).child(config.name)
    driver = "".join(logs.get(key).decode() for key in logs.list("logs/a1/driver-"))
    assert all(
        text in driver for text in (f"(process {pid} on ", "is here:", "resumed from the commit", "commit at step 9")
    )
    workers = "".join(logs.get(key).decode() for key in logs.list("logs/a1/worker-"))
    assert "training, says the backbone" in workers
    assert result["ledger"] == undisturbed(config)["ledger"]


def test_a_worker_that_is_often_stopped_is_named_slow_once_and_nothing_restarts(tmp_path: Path) -> None:
    from mtl.on_ray.train import train

    tiny(tmp_path / "data")
    marker, release, said = tmp_path / "slow", tmp_path / "release", io.StringIO()
    args = {"marker": str(marker), "until": str(release)}
    model = Model(backbone="tests.helpers.backbones_at_fault:stutters", backbone_args=args)
    config = tiny_config(tmp_path / "data", tmp_path / "runs", epochs=150, model=model)
    console = RunConsole(said)

    class Listening:
        """A console; the stutter ends once it is spoken of."""

        line = console.line

        def __call__(self, event: dict[str, Any]) -> None:
            console(event)
            if event["kind"] == "note" and " is slow: " in event["text"]:
                release.touch()

    result = train(config, cast("RunConsole", Listening()))
    log = said.getvalue()
    assert log.count(" is slow: ") == 1, log
    assert f"(process {marker.read_text()} on " in log.partition(" is slow: ")[0].splitlines()[-1], log
    ended_well(config, attempts=1)
    assert result["restarts"] == []
    assert result["ledger"] == undisturbed(config)["ledger"]
