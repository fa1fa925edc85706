"""Nodes that are taken away, with real nodes of Ray on this machine."""

import io
import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import ray

from mtl.config import Model, Resources
from mtl.console import RunConsole
from mtl.on_ray import spot
from mtl.on_ray.preemption import MARGIN_S
from tests.helpers.datasets import tiny
from tests.helpers.fake_metadata import fake_metadata
from tests.helpers.jobs import ended_well, tiny_config, undisturbed
from tests.helpers.nodes import extra_node, occupy, wait_for

# Ray's own warnings are not ours to mend.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


def test_a_run_outlives_a_node_with_a_notice(ray_cluster: str, tmp_path: Path) -> None:
    """Two workers, one on a node that goes: commits at the notice and before the end, and no failure is counted."""
    from mtl.on_ray.train import train

    tiny(tmp_path / "data")
    release = tmp_path / "release"
    model = Model(backbone="tests.helpers.backbones_at_fault:slow_until", backbone_args={"file": str(release)})
    resources = Resources(workers=2, max_failures=0)
    config = tiny_config(tmp_path / "data", tmp_path / "runs", epochs=40, model=model, resources=resources)
    busy = occupy(num_cpus=3)
    ends_s, commits = list[float](), list[tuple[int, float]]()
    said = io.StringIO()
    console = RunConsole(said)

    class Listening:
        """A console; at the first progress of a run the node gets its notice, and its place on the head is free."""

        line = console.line

        def __call__(self, event: dict[str, Any]) -> None:
            console(event)
            if event["kind"] == "progress" and not ends_s:
                ends_s.append(time.time() + 15)
                node.drain(ends_s[0])
                ray.kill(busy)
            elif event["kind"] == "commit":
                commits.append((event["step"], time.time()))
            elif event["kind"] == "note" and "resumed from the commit" in event["text"]:
                release.touch()

    with extra_node(ray_cluster, tmp_path / "node.log", cpus=1) as node:
        result = train(config, cast("RunConsole", Listening()))
        log = said.getvalue()
        assert result["status"] == "finished", log
        ended_well(config, attempts=2)
        assert re.search(r"the node of worker \d goes in 1\d s: committing, going on", log), log
        before = [step for step, at in commits if at <= ends_s[0]]
        assert ends_s[0] - max(at for _, at in commits if at <= ends_s[0]) < MARGIN_S + 2, log
        (resumed,) = re.findall(r"resumed from the commit of step (\d+)", log)
        assert int(resumed) >= before[-1], log  # it may commit once more while its node ends
        assert [one["cause"] for one in result["restarts"]] == ["preempted"]
        assert result["ledger"] == undisturbed(config)["ledger"]


def test_a_node_drains_at_a_notice_of_ec2_and_at_a_sigterm(ray_cluster: str, tmp_path: Path) -> None:
    with fake_metadata() as service, extra_node(ray_cluster, tmp_path / "node.log", drain_s=40, spot=1) as node:
        # A node that drains and has nothing to do ends at once.
        busy = occupy(num_cpus=0, resources={"spot": 1})
        log = tmp_path / "spot.log"
        with log.open("wb") as out:
            watcher = subprocess.Popen(
                [sys.executable, spot.__file__, "--address", ray_cluster, "--poll-s", "0.2"],
                env={**os.environ, "AWS_EC2_METADATA_SERVICE_ENDPOINT": service.endpoint},
                stdout=out,
                stderr=out,
            )
        try:
            wait_for(lambda: service.log or watcher.poll() is not None, 60, "the metadata service was never asked")
            assert watcher.poll() is None, log.read_text()
            assert node.deadline_s() is None
            ends = datetime.fromtimestamp(round(time.time() + 120), UTC)
            said = {"action": "terminate", "time": ends.isoformat().replace("+00:00", "Z")}
            service.known[spot.INTERRUPTION] = json.dumps(said)
            wait_for(node.deadline_s, 10, f"the node does not drain:\n{log.read_text()}")
            assert node.deadline_s() == ends.timestamp()

            told_s = time.time()
            node.process.terminate()
            wait_for(lambda: node.deadline_s() != ends.timestamp(), 10, "SIGTERM changed nothing")
            deadline_s = node.deadline_s()
            assert deadline_s is not None
            assert told_s + 35 < deadline_s < told_s + 50
            ray.kill(busy)
            assert node.process.wait(timeout=30) == 1, "it waits for the work on it, and no longer"
            assert watcher.wait(timeout=30) == 0, log.read_text()
            assert "the node has left the cluster" in log.read_text()
        finally:
            watcher.kill()
            watcher.wait()
