"""The checks before a job: each fault by itself, found, explained, and nothing left behind."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.core import set_initial_no_auth_action_count
from moto.server import ThreadedMotoServer

from mtl import recipes
from mtl.attempt import begin_attempt
from mtl.config import Augment, Checkpoint, Config, Model, Order, Resources, Task
from mtl.doctor import Case, dataset, dry_run, examination, process, runs
from mtl.errors import Conflict, MtlError, StoreError
from mtl.findings import Finding, examine
from mtl.lease import Lease, acquire
from mtl.store import Store, open_store
from mtl.store.identity import identity
from tests.helpers.datasets import tiny
from tests.helpers.memory_store import MemoryStore

SECRET = "canary-secret-of-this-test"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("doctor") / "tiny"
    tiny(path)
    return path


def config(data: Path | str, storage: Path | str, **changes: object) -> Config:
    values: dict[str, object] = {
        "recipe": "tiny",
        "name": "tiny",
        "data": str(data),
        "storage": str(storage),
        "runtime": "local",
        "global_batch": 32,
        "tasks": {
            "object": Task(kind="multiclass", label="object"),
            "angle": Task(kind="circular", label="angle", flip="negate"),
        },
        "augment": Augment(size_px=32, crop="none", eval_resize_px=32),
        "model": Model(backbone="mtl.model.resnet9:resnet9", backbone_args={"width": 8}),
        "order": Order(lanes=8, block_row_groups=None),
        "checkpoint": Checkpoint(every_s=60),
        "resources": Resources(workers=2),
    }
    return Config.model_validate(values | changes)


def failures(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.level == "fail"]


def looked(check: Iterator[Finding]) -> list[Finding]:
    return list(check)


def test_a_sound_job(data: Path, tmp_path: Path) -> None:
    shown: list[str] = []
    found = examine(examination(Case(config(data, tmp_path / "runs"))), shown.append)
    assert not failures(found), shown
    about = [finding.about for finding in found]
    assert about == ["software", "batch", "data", "labels", "labels", "order", "storage", "run"]
    assert "96 train, 24 val, 24 test" in found[2].what
    assert open_store(str(tmp_path)).list() == []


class TestData:
    def test_no_data_set(self, tmp_path: Path) -> None:
        found = examine(examination(Case(config(tmp_path / "none", tmp_path / "runs"))), print)
        (failure,) = failures(found)
        assert (failure.about, "no data set" in failure.what) == ("data", True)
        assert "jobs/prepare.py" in failure.mend
        assert [finding.about for finding in found][-1] == "run"  # the rest is looked at all the same

    def test_a_missing_label_beside_a_sound_one(self, data: Path, tmp_path: Path) -> None:
        tasks = {"object": Task(kind="multiclass", label="objekt"), "angle": Task(kind="circular", label="angle")}
        case = Case(config(data, tmp_path, tasks=tasks))
        looked(dataset.data(case))
        wrong, sound = looked(dataset.labels(case))
        assert wrong.level == "fail"
        assert "objekt" in wrong.why
        assert "object, kind, angle, amount" in wrong.why
        assert "--tasks.object.label" in wrong.mend
        assert sound.level == "ok"
        assert "angle: " in sound.what

    def test_a_missing_shard(self, tmp_path: Path) -> None:
        tiny(tmp_path / "data")
        gone = sorted((tmp_path / "data" / "shards").iterdir())[-1]
        gone.unlink()
        with pytest.raises(MtlError, match=r"1 of the \d shards of split 'val' are not what was written") as caught:
            looked(dataset.data(Case(config(tmp_path / "data", tmp_path))))
        assert gone.name in str(caught.value)

    def test_a_damaged_shard(self, tmp_path: Path) -> None:
        tiny(tmp_path / "data")
        shard = next((tmp_path / "data" / "shards").glob("val-*"))
        raw = bytearray(shard.read_bytes())
        raw[200] ^= 1
        shard.write_bytes(raw)
        with pytest.raises(MtlError, match="is not what was written"):
            looked(dataset.data(Case(config(tmp_path / "data", tmp_path))))

    def test_a_read_ahead_that_does_not_fit(self, data: Path, tmp_path: Path) -> None:
        case = Case(config(data, tmp_path, loader={"memory_gb": 1e-6}))
        looked(dataset.data(case))
        with pytest.raises(MtlError, match="does not fit into memory"):
            looked(dataset.order(case))


class Careless(MemoryStore):
    """A store that takes every write for the first."""

    def put_if(self, key: str, data: bytes, *, version: str | None) -> str:
        return self.put(key, data)


class Forgetful(MemoryStore):
    """A store that heeds only whether an object exists."""

    def put_if(self, key: str, data: bytes, *, version: str | None) -> str:
        if version is None and self.list(key):
            raise Conflict("exists")
        return self.put(key, data)


class Stale(MemoryStore):
    """A store that shows an object as it was before."""

    def get(self, key: str) -> bytes:
        super().get(key)
        return b"{}"


class TestStorage:
    @pytest.mark.parametrize("kind", [Careless, Forgetful, Stale])
    def test_storage_that_breaks_its_promise(self, kind: type[MemoryStore]) -> None:
        store = kind()
        (found,) = looked(runs.storage(store))
        assert found.level == "fail"
        assert "does not compare-and-swap" in found.what
        assert "two jobs could own one run" in found.why
        assert store.list() == []

    def test_nothing_stays_where_a_step_fails(self) -> None:
        for nth in range(8):
            store = MemoryStore()
            store.fail(nth)
            with pytest.raises(StoreError):
                looked(runs.storage(store))
            assert store.list() == []

    def test_a_folder_that_may_not_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "runs"
        folder.mkdir()
        folder.chmod(0o500)
        if os.getuid() == 0:  # root may write everywhere

            def refuse(*_: object, **__: object) -> None:
                raise PermissionError(13, "Permission denied")

            monkeypatch.setattr("mtl.store.local._create", refuse)
        case = Case(config(tmp_path, folder))
        (check,) = [check for check in examination(case) if check.about == "storage"]
        (found,) = examine([check], print)
        assert found.level == "fail"
        assert "was refused" in found.what
        assert f"user id {os.getuid()}" in found.why
        assert "owner and mode" in found.mend

    def test_storage_that_only_reads(self) -> None:
        with pytest.raises(StoreError, match="gs://"):
            looked(runs.storage(open_store("gs://bucket/runs")))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A bucket, and in the environment a user who may read it and no more."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"ACCESS_KEY_ID": "root", "SECRET_ACCESS_KEY": "root", "DEFAULT_REGION": "us-east-1"}
    settings |= {"ENDPOINT_URL": f"http://{host}:{port}", "EC2_METADATA_DISABLED": "true"}
    settings |= {"CONFIG_FILE": str(tmp_path / "none"), "SHARED_CREDENTIALS_FILE": str(tmp_path / "none")}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3, iam = boto3.Session().client("s3"), boto3.Session().client("iam")
    s3.create_bucket(Bucket="runs")
    iam.create_user(UserName="reader")
    statement = {"Effect": "Allow", "Action": ["s3:Get*", "s3:List*"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_user_policy(UserName="reader", PolicyName="reads", PolicyDocument=policy)
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    yield "s3://runs"
    for client in (s3, iam):
        client.close()
    server.stop()


def test_a_bucket_that_may_only_be_read(bucket: str, tmp_path: Path) -> None:
    (check,) = [c for c in examination(Case(config(tmp_path, f"{bucket}/mine"))) if c.about == "storage"]
    (found,) = set_initial_no_auth_action_count(0)(examine)([check], print)
    assert found.level == "fail"
    assert "'runs' was refused" in found.what
    assert os.environ["AWS_ACCESS_KEY_ID"] in found.why
    assert "policy of this identity" in found.mend
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(found)


def test_the_identity_is_named_without_its_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "access-of-this-test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    told = identity(open_store("s3://bucket"))
    assert told == "access key access-of-this-test (from env) at http://127.0.0.1:9"
    assert identity(open_store(str(tmp_path))) == f"user id {os.getuid()}"


class TestRun:
    def held(self, store: Store) -> Lease:
        lease = acquire(store, "tiny", on_wait=lambda _: None)
        assert isinstance(lease, Lease)
        return lease

    def look(self, storage: Path, **changes: object) -> Finding:
        (found,) = looked(runs.run(config("data", storage, **changes)))
        return found

    def test_a_life_of_a_run(self, tmp_path: Path) -> None:
        assert "new run" in self.look(tmp_path).what
        store = open_store(str(tmp_path)).child("tiny")
        lease = self.held(store)
        owned = self.look(tmp_path)
        assert (owned.level, f"process {os.getpid()}" in owned.what) == ("warn", True)
        begin_attempt(store, lease.owner.id)
        lease.release("stopped", None)
        assert "goes on from step 0" in self.look(tmp_path).what
        lease = self.held(store)
        lease.release("finished", {})
        assert self.look(tmp_path).what == "'tiny' is finished."

    def test_another_configuration(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path)).child("tiny")
        self.held(store).release("stopped", None)
        store.put("config.yaml", config("data", tmp_path).to_yaml().encode())
        with pytest.raises(MtlError, match="another configuration"):
            self.look(tmp_path, seed=7)


class TestBatch:
    def test_workers_that_do_not_divide_the_lanes(self) -> None:
        (found,) = looked(
            process.batch(config("d", "r", runtime="ray", model=Model(batch_norm="local"), resources={"workers": 3}))
        )
        assert found.level == "warn"
        assert "at best 89% of the speed" in found.why

    def test_more_workers_than_lanes_are_no_configuration(self) -> None:
        with pytest.raises(MtlError, match="contradicts itself") as caught:
            config("d", "r", resources={"workers": 9})
        assert "order.lanes (8)" in str(caught.value)


class TestStep:
    def test_with_data_and_without(self, data: Path, tmp_path: Path) -> None:
        changes = {"tasks": {"object": Task(kind="multiclass", label="object", classes=3)}}
        for folder, of in ((data, "first images"), (tmp_path / "none", "blank images")):
            found = examine(dry_run(Case(config(folder, tmp_path / "runs", **changes))), print)
            assert not failures(found)
            assert found[-1].about == "step"
            assert of in found[-1].what
            assert "object 1." in found[-1].what  # the loss of a guess: log 3
        assert not (tmp_path / "runs").exists()

    def test_unknown_classes_are_said_to_be_unknown(self, tmp_path: Path) -> None:
        found = examine(dry_run(Case(config(tmp_path / "none", tmp_path))), print)
        assert [finding.level for finding in found[-2:]] == ["warn", "warn"]
        assert "object" in found[-1].what

    def test_a_backbone_that_does_not_exist(self, tmp_path: Path) -> None:
        tasks = {"angle": Task(kind="circular", label="angle")}
        wrong = config(tmp_path, tmp_path, tasks=tasks, model=Model(backbone="resnet8"))
        found = examine(dry_run(Case(wrong)), print)
        assert [finding.about for finding in failures(found)] == ["step"]
        assert "resnet8" in found[-1].what

    def test_more_memory_than_there_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(process, "memory_bytes", lambda: 1_000_000)
        tasks = {"angle": Task(kind="circular", label="angle")}
        found = examine(dry_run(Case(config(tmp_path, tmp_path, tasks=tasks))), print)
        assert found[-1].level == "warn"
        assert "--max-micro-batch" in found[-1].mend

    @pytest.mark.slow
    def test_imagenet_without_its_data(self, tmp_path: Path) -> None:
        wanted = recipes.get("imagenet-resnet50").model_copy(update={"data": str(tmp_path / "none")})
        found = examine(dry_run(Case(wanted)), print)
        assert not failures(found)
        assert "25,622,600 parameters" in found[-1].what  # torchvision's 25,557,032, and two small heads
