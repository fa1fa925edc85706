"""Faults that a whole job meets, as processes: what it says, how it ends, and what it leaves."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mtl.config import Config, Model
from mtl.config_evaluation import Evaluation
from mtl.store import open_store
from tests.helpers.datasets import tiny
from tests.helpers.fault_proxy import ROUGH, FaultProxy, Rule
from tests.helpers.jobs import ROOT, job, read_until, started, tiny_config, write_config
from tests.helpers.moto_server import simulated_s3

AT_FAULT = "tests.helpers.backbones_at_fault"
ADDRESS_SPACE_KIB = 9 << 20


def local(data: str, storage: str, backbone: str, **arguments: Any) -> Config:
    model = Model(backbone=f"{AT_FAULT}:{backbone}", backbone_args=arguments)
    return tiny_config(data, storage, runtime="local", epochs=40, model=model)


def record(config: Config) -> dict[str, Any]:
    return json.loads(open_store(config.storage).child(config.name).get("run.json"))


def test_of_two_jobs_one_trains_and_the_other_names_it(tmp_path: Path) -> None:
    tiny(tmp_path / "data")
    release = tmp_path / "release"
    config = local(str(tmp_path / "data"), str(tmp_path / "runs"), "slow_until", file=str(release))
    path = write_config(tmp_path / "mine.yaml", config)
    with started("train.py", "--config", path) as first:
        read_until(first, "commit at step 3")
        second = job("train.py", "--config", path)
        assert second.status == 2, second.said
        assert f"process {first.pid}" in second.err
        assert "The run 'tiny' belongs to another live job" in second.err
        assert record(config)["owner"]["pid"] == first.pid
        release.touch()
        out, _ = first.communicate(timeout=300)
    assert first.returncode == 0, out
    assert (record(config)["status"], record(config)["owner"], record(config)["attempt"]) == ("finished", None, 1)


def test_a_job_whose_address_space_is_limited_says_what_ran_out(tmp_path: Path) -> None:
    tiny(tmp_path / "data")
    config = local(str(tmp_path / "data"), str(tmp_path / "runs"), "eats", marker="", at=4)
    words = [sys.executable, ROOT / "jobs" / "train.py", "--config", write_config(tmp_path / "mine.yaml", config)]
    limited = ["bash", "-c", f'ulimit -v {ADDRESS_SPACE_KIB}; exec "$@"', "bash", *map(str, words)]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "The memory of a worker ran out" in done.stderr
    assert "--max-micro-batch" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert (record(config)["status"], record(config)["owner"]) == ("failed", None)
    assert [commit["step"] for commit in record(config)["checkpoints"]] == [3]


@pytest.mark.slow
@pytest.mark.parametrize("every_epochs", [1, 40])
def test_a_run_outlives_rough_storage_and_a_cut_of_it(every_epochs: int, tmp_path: Path) -> None:
    """The cut meets an evaluation, which waits, or where there is none a commit, which does not hold the steps."""
    release, bucket = tmp_path / "release", f"faults-{every_epochs}"
    with simulated_s3(bucket) as variables, FaultProxy(variables["AWS_ENDPOINT_URL"]) as proxy:
        tiny(open_store(f"s3://{bucket}/data"))
        env = {**variables, "AWS_ENDPOINT_URL": proxy.url}
        config = local(f"s3://{bucket}/data", f"s3://{bucket}/runs", "slow_until", file=str(release))
        config = config.model_copy(update={"evaluation": Evaluation(every_epochs=every_epochs)})
        alone = config.model_copy(update={"name": "alone", "storage": str(tmp_path / "runs")})
        proxy.rules = tuple(Rule(rule.fault, rule.share, match=".*", seconds=rule.seconds) for rule in ROUGH)
        with started("train.py", "--config", write_config(tmp_path / "mine.yaml", config), env=env) as run:
            read_until(run, "commit at step 3")
            rough, proxy.rules = proxy.rules, (Rule("reset", match=".*"),)
            time.sleep(5)
            proxy.rules = rough
            said = "".join(read_until(run, "commit at step"))
            release.touch()
            rest, _ = run.communicate(timeout=300)
        assert run.returncode == 0, said + rest
        assert said.count("a commit waits for storage: The connection to") == (every_epochs > 1), said
        assert sum(proxy.hits.values()) > 10
        found = record(config)
        assert (found["status"], found["owner"], found["attempt"]) == ("finished", None, 1)
        release.touch()
        assert job("train.py", "--config", write_config(tmp_path / "alone.yaml", alone), env=variables).status == 0
        assert found["result"]["ledger"] == record(alone)["result"]["ledger"]
