"""The doctor on a cluster: what only nodes can tell."""

from pathlib import Path
from typing import Any

import pytest

from mtl import recipes
from mtl.config import Config, Resources, Task
from mtl.doctor import Case
from mtl.doctor.dataset import data as look_at_data
from mtl.findings import Finding
from mtl.on_ray.doctor import Node, compare, examine_cluster, resources, shared
from mtl.versions import versions
from tests.helpers.datasets import tiny
from tests.helpers.jobs import job, tiny_config, write_config

OURS = {"python": "3.11.7", "torch": "2.14", "mtl": "abc"}

# Ray's own warnings are not ours to mend.
on_ray = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("doctor-ray") / "tiny"
    tiny(path)
    return path


def visited(config: Config) -> list[Finding]:
    case = Case(config)
    list(look_at_data(case))
    return examine_cluster(case, print)


def test_nodes_that_agree() -> None:
    (found,) = compare(OURS, [Node("a", OURS, 0.01), Node("b", OURS, -0.2)])
    assert found.level == "ok"
    assert "2 of 2 nodes" in found.what
    assert "0.20 s" in found.what


def test_a_node_with_another_version() -> None:
    wrong, rest = compare(OURS, [Node("a", OURS, 0), Node("b", {**OURS, "torch": "2.11"}, 0)])
    assert wrong.level == "fail"
    assert wrong.what.startswith("b runs other software")
    assert wrong.why == "torch 2.11, here 2.14"
    assert "requirements.lock" in wrong.mend
    assert "1 of 2 nodes" in rest.what


def test_a_node_that_can_not_import_mtl() -> None:
    (found,) = compare(OURS, [Node("b", {}, 0, "ModuleNotFoundError: No module named 'mtl'")])
    assert found.level == "fail"
    assert "No module named 'mtl'" in found.why


def test_a_clock_that_is_off() -> None:
    late, _ = compare(OURS, [Node("b", OURS, -75)])
    assert late.level == "warn"
    assert "-75 s" in late.what


def test_folders_of_one_machine_and_many_nodes() -> None:
    config = recipes.get("shapes").model_copy(update={"data": "s3://bucket/shapes"})
    assert list(shared(config, 1)) == []
    (found,) = shared(config, 2)
    assert found.level == "fail"
    assert "runs' storage is a folder of one machine" in found.what


def test_gpus_that_would_stay_idle() -> None:
    nodes: list[dict[str, Any]] = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 8.0}},
    ]
    found = resources(recipes.get("shapes"), nodes)
    assert found.level == "warn"
    assert "1 node with 8 CPUs and 1 GPU;" in found.what


class TestOnRay:
    pytestmark = on_ray

    def test_a_sound_cluster(self, data: Path, tmp_path: Path) -> None:
        cluster, nodes, step = visited(tiny_config(data, tmp_path))
        assert [cluster.level, nodes.level, step.level] == ["ok", "ok", "ok"]
        assert "1 node with 4 CPUs" in cluster.what
        assert "1 of 1 nodes" in nodes.what
        assert "the data set's first images" in step.what

    def test_more_workers_than_the_cluster_holds(self, data: Path, tmp_path: Path) -> None:
        found = visited(tiny_config(data, tmp_path, resources=Resources(workers=4, cpus_per_worker=2)))
        assert [finding.level for finding in found] == ["fail"]
        assert "too small" in found[0].what
        assert "8 CPUs for 4 workers" in found[0].why
        assert "--resources.workers" in found[0].mend

    def test_a_node_that_runs_other_code(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mtl.on_ray.doctor.versions", lambda: {**versions(), "mtl": "edited"})
        _, nodes, _ = visited(tiny_config(data, tmp_path))
        assert nodes.level == "fail"
        assert ", here edited" in nodes.why

    def test_an_error_of_the_step_is_told_as_it_is_here(self, data: Path, tmp_path: Path) -> None:
        tasks = {"object": Task(kind="multiclass", label="object")}
        config = tiny_config(data, tmp_path, tasks=tasks, model={"backbone": "resnet8"})
        _, _, step = visited(config)
        assert step.level == "fail"
        assert "no backbone 'resnet8'" in step.what


def test_a_visit_as_a_user_makes_it(data: Path, tmp_path: Path) -> None:
    """Without Ray: what comes first, what is said of a fault, how it ends."""
    sound = write_config(tmp_path / "sound.yaml", tiny_config(data, tmp_path / "runs", runtime="local"))
    done = job("doctor.py", "--config", sound, cwd=tmp_path)
    assert done.status == 0, done.said
    assert done.out.startswith("examining")
    assert "0 failed" in done.out.splitlines()[-1]
    done = job("doctor.py", "--config", sound, "--data", "none", "--tasks.kind.label", "kindd", cwd=tmp_path)
    assert done.status == 2, done.said
    assert "There is no data set" in done.out
    assert "mend" in done.out
    assert "Traceback" not in done.said
