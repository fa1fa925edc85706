"""What is refused before torch and Ray are imported, and what a run says of itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtl.attempt import begin_attempt
from mtl.config import Config, Loader, Optimizer, Order, Resources, Task
from mtl.errors import CheckpointError, ConfigError, DataError, MtlError, RunError
from mtl.lease import Lease, acquire
from mtl.preflight import Plan, check, check_saved, world_size
from mtl.store import open_store
from tests.helpers.datasets import tiny
from tests.helpers.jobs import tiny_config
from tests.helpers.runs import make_commit


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preflight") / "tiny"
    tiny(path)
    return path


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data, tmp_path / "tiny"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def left(config: Config, status: Any = "stopped", commits: int = 0) -> None:
    """A run of `config` that somebody trained before."""
    store = open_store(config.storage).child(config.name)
    lease = acquire(store, config.name, on_wait=print)
    assert isinstance(lease, Lease)
    store.put("config.yaml", config.to_yaml().encode())
    attempt = begin_attempt(store, lease.owner.id)
    for step in range(commits):
        attempt.commit(make_commit(step + 1))
    lease.release(status)


def refused(config: Config, kind: type[MtlError]) -> MtlError:
    with pytest.raises(kind) as caught:
        check(config)
    error = caught.value
    assert all(part is not None for part in (error.got, error.expected, error.do)), error
    return error


def test_a_plan_says_the_arithmetic(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path)
    plan = check(config)
    assert plan.record is None
    assert plan.order.steps == 3
    text = "\n".join(plan.describe(config))
    assert "tiny: 96 training images, 4 labels" in text
    assert "32 = 2 workers x 16; 3 steps an epoch, 6 in all" in text
    assert "4 lanes, balance 100% with 2, 100% with 1, 2, 4, at worst 67% with 3" in text
    assert "MB a worker, for reading and decoding" in text


def test_a_local_run_is_one_worker_whatever_is_asked_of_ray(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(data, tmp_path, runtime="local", epochs=1, global_batch=96)
    text = "\n".join(check(config).describe(config))
    assert "96 = 1 worker x 96; 1 step an epoch, 1 in all" in text
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert world_size(config) == 4
    assert world_size(tiny_config(data, tmp_path)) == 2


def test_balance_counts_idle_lanes(data: Path, tmp_path: Path) -> None:
    local = {"batch_norm": "local", "backbone": "resnet18"}

    def plan(workers: int) -> Plan:
        resources = Resources(workers=workers)
        return check(tiny_config(data, tmp_path, resources=resources, model=local))

    with_three = plan(3).describe(tiny_config(data, tmp_path, resources=Resources(workers=3), model=local))
    assert any("balance 67% with 3, 100% with 1, 2, 4, at worst 67% with 3" in line for line in with_three)
    assert plan(1).memory.total >= plan(2).memory.total >= plan(4).memory.total > 0


@pytest.mark.parametrize(
    ("task", "kind", "fragments"),
    [
        (Task(kind="binary", label="smiles"), DataError, ("smiles", "object, kind, angle, amount")),
        (Task(kind="regression", label="object"), ConfigError, ("kind class", "real or angle")),
        (Task(kind="multiclass", label="kind"), ConfigError, ("kind binary", "kind class")),
        (Task(kind="multiclass", label="object", classes=5), ConfigError, ("5 in the configuration", "3 in the data")),
        (Task(kind="binary", label="object"), ConfigError, ("2 in the configuration", "red, green, blue")),
    ],
)
def test_tasks_that_do_not_fit_the_data_set(
    task: Task, kind: type[MtlError], fragments: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    error = refused(tiny_config(data, tmp_path, tasks={"mine": task}), kind)
    assert "'mine'" in error.what
    assert all(fragment in str(error) for fragment in fragments)


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (lambda m: m["splits"]["val"]["labels"]["object"].update(high=3.0), ("'object'", "'val'", "0 to 2")),
        (lambda m: m["splits"]["train"]["labels"]["object"].update(low=-1.0), ("'object'", "'train'", "from -1")),
        (lambda m: m["splits"]["test"]["labels"]["kind"].update(high=2.0), ("'kind'", "'test'", "0 to 1")),
        (lambda m: m["splits"]["train"]["labels"]["angle"].update(valid=0, nulls=96), ("'angle'", "96 rows")),
        (lambda m: m["splits"]["val"].update(rows=0), ("'val'", "an empty split")),
        (lambda m: m["splits"].pop("test"), ("'test'", "splits train, val")),
        (lambda m: m.update(format_version=3), ("newer mtl", "format_version 3", "at most 2")),
        (lambda m: m.pop("fingerprint"), ("manifest.json is damaged", "fingerprint")),
        (lambda m: m.pop("format_version"), ("manifest.json is damaged", "format_version")),
    ],
)
def test_data_sets_that_can_not_be_trained_on(
    change: Callable[[dict[str, Any]], object], fragments: tuple[str, ...], copy: Path, tmp_path: Path
) -> None:
    edit(copy, change)
    error = refused(tiny_config(copy, tmp_path / "runs"), DataError)
    assert all(fragment in str(error) for fragment in fragments), error


@pytest.mark.parametrize("name", ["manifest.json", "index.parquet"])
@pytest.mark.parametrize("content", [b"", b"{]", b"PAR1 but not really PAR1"])
def test_damaged_descriptions(name: str, content: bytes, copy: Path, tmp_path: Path) -> None:
    (copy / name).write_bytes(content)
    assert f"{name} is damaged" in refused(tiny_config(copy, tmp_path / "runs"), DataError).what


def test_no_data_set(tmp_path: Path) -> None:
    error = refused(tiny_config(tmp_path / "nowhere", tmp_path), DataError)
    assert "There is no data set at" in error.what
    assert "nowhere" in str(error.got)


def test_fewer_rows_than_a_global_batch(data: Path, tmp_path: Path) -> None:
    error = refused(tiny_config(data, tmp_path, global_batch=128), ConfigError)
    assert error.got == "96 rows"
    kept = tiny_config(data, tmp_path, global_batch=128, order=Order(lanes=4, block_row_groups=None, keep_tail=True))
    assert check(kept).order.steps == 1


def test_read_ahead_that_does_not_fit(data: Path, tmp_path: Path) -> None:
    error = refused(tiny_config(data, tmp_path, loader=Loader(memory_gb=1e-5)), ConfigError)
    assert "1e-05" in str(error.expected)
    assert " use " not in str(error.do)


def test_it_is_said_how_many_workers_would_fit(tmp_path: Path) -> None:
    tiny(tmp_path / "many", row_group_bytes=1_500)

    def config(workers: int, memory_gb: float) -> Config:
        return tiny_config(
            tmp_path / "many",
            tmp_path,
            order=Order(lanes=4, block_row_groups=1),
            loader=Loader(memory_gb=memory_gb, prefetch_batches=1),
            resources=Resources(workers=workers),
        )

    one, two = (check(config(workers, 1)).memory.total for workers in (1, 2))
    assert two < one
    between = (one + two) / 2e9
    assert check(config(2, between)).memory.total == two
    assert "use 2 workers" in str(refused(config(1, between), ConfigError).do)


def test_an_elastic_run_is_planned_for_its_fewest_workers(data: Path, tmp_path: Path) -> None:
    elastic = tiny_config(data, tmp_path, max_micro_batch=8, resources=Resources(workers=4, min_workers=1))
    plan = check(elastic)
    assert "elastic  1 to 4 workers, 32 samples a step with any; with 1 in 4 parts each" in plan.describe(elastic)
    alone = tiny_config(data, tmp_path, resources=Resources(workers=1))
    assert plan.memory.total == check(alone).memory.total
    assert not any("elastic" in line for line in check(alone).describe(alone))


def test_another_configuration_is_refused_with_the_difference(data: Path, tmp_path: Path) -> None:
    left(tiny_config(data, tmp_path))
    other = tiny_config(data, tmp_path, optimizer=Optimizer(lr=0.5), seed=7, epochs=9)
    error = refused(other, CheckpointError)
    lines = str(error.got).split("\n")
    assert [" ".join(line.split()) for line in lines] == ["seed 0 -> 7", "optimizer.lr 0.001 -> 0.5"]
    assert "config.yaml" in str(error.do)


def test_what_a_resumed_run_may_change_is_shown(data: Path, tmp_path: Path) -> None:
    left(tiny_config(data, tmp_path))
    config = tiny_config(data, tmp_path, epochs=9, resources=Resources(workers=1))
    plan = check(config)
    assert plan.changed == {"epochs": (2, 9), "resources.workers": (2, 1)}
    assert "changed  epochs: 2 -> 9" in plan.describe(config)


def test_a_finished_run_is_found_whatever_the_configuration(data: Path, tmp_path: Path) -> None:
    left(tiny_config(data, tmp_path), "finished")
    plan = check(tiny_config(data, tmp_path, seed=7))
    assert plan.record is not None
    assert plan.record.status == "finished"


def test_a_damaged_run_is_refused(data: Path, tmp_path: Path) -> None:
    left(tiny_config(data, tmp_path))
    (tmp_path / "tiny" / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        check(tiny_config(data, tmp_path))


def test_a_run_can_be_evaluated_once_it_has_committed(data: Path, tmp_path: Path) -> None:
    config, uri = tiny_config(data, tmp_path), str(tmp_path / "tiny")
    with pytest.raises(RunError, match="There is no run"):
        check_saved(uri, "test")
    left(config)
    with pytest.raises(RunError, match="no commit yet"):
        check_saved(uri, "test")
    left(config, commits=1)
    assert check_saved(uri, "test").config == config
    with pytest.raises(DataError, match="split 'holdout'"):
        check_saved(uri, "holdout")
    with pytest.raises(DataError, match="no data set at"):
        check_saved(uri, "test", str(tmp_path / "nowhere"))
