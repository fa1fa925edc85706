"""Bad input to the job scripts, as a user meets it: a message that says what to do, at once, without torch or Ray."""

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from mtl.attempt import begin_attempt
from mtl.config import Optimizer
from mtl.lease import Lease, acquire
from mtl.store import open_store
from tests.helpers.datasets import tiny
from tests.helpers.jobs import Done, job, tiny_config, without, write_config
from tests.helpers.runs import make_commit

LIMIT_S = 10


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bad") / "tiny"
    tiny(path)
    return path


@pytest.fixture
def data(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "data"))


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def aws(folder: Path, **settings: str) -> dict[str, str | None]:
    """Variables that hold one identity and nothing of this machine's."""
    return {
        "AWS_PROFILE": None,
        "AWS_CONFIG_FILE": str(folder / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": "access-of-this-test",
        "AWS_SECRET_ACCESS_KEY": "canary-secret-of-this-test",
        "AWS_DEFAULT_REGION": "us-east-1",
        **settings,
    }


def refused(folder: Path, script: str, *args: object, env: dict[str, str | None] | None = None) -> Done:
    """What a job says that must end with status 2 within `LIMIT_S`, and can import neither torch nor Ray."""
    blocked = without(folder / "blocked", "torch", "ray")
    done = job(script, *args, cwd=folder, env={**blocked, **(env or {})}, timeout_s=LIMIT_S)
    assert done.status == 2, done.said
    assert "Traceback" not in done.said
    assert "canary" not in done.said
    return done


def explains(done: Done, *fragments: str) -> None:
    """Whether the message says what was got, what was expected, what to do, and each of `fragments`."""
    for fragment in ("\n  got: ", "\n  expected: ", "\n  do: ", *fragments):
        assert fragment in done.err, done.said


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        (["imagnet"], ["There is no recipe 'imagnet'", "shapes", "cifar10", "auto"]),
        (["shapes", "--name", "Bad/Name"], ["name: 'Bad/Name'"]),
        (["shapes", "--data", "nowhere"], ["There is no data set at", "nowhere", "jobs/prepare.py"]),
        (["cifar10"], ["There is no data set at", "data/cifar10"]),
        (["auto"], ["auto needs a data set"]),
        (["--config", "none.yaml"], ["none.yaml can not be read"]),
        (["shapes", "--data", "ftp://host/data"], ["ftp://host/data", "s3://bucket/prefix"]),
    ],
)
def test_wrong_arguments(args: list[str], fragments: list[str], tmp_path: Path) -> None:
    explains(refused(tmp_path, "train.py", *args), *fragments)


@pytest.mark.parametrize("args", [["shapes", "--optimiser.lr", "1"], ["shapes", "--epochs", "many"]])
def test_malformed_flags(args: list[str], tmp_path: Path) -> None:
    assert args[1].replace("optimiser", "optimizer") in refused(tmp_path, "train.py", *args).said


def test_unknown_key_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(tiny_config("data", "runs").to_yaml().replace("  lr:", "  rate:"))
    explains(
        refused(tmp_path, "train.py", "--config", path), "mine.yaml", "optimizer.rate: no such key", "one of name, lr"
    )


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (lambda m: m["labels"].pop("angle"), ["Task 'angle'", "one of object, kind, amount"]),
        (lambda m: m["splits"]["val"]["labels"]["object"].update(high=3.0), ["'object'", "'val'", "0 to 2"]),
        (lambda m: m["splits"]["test"].update(rows=0), ["no rows in split 'test'"]),
        (lambda m: m["splits"].pop("val"), ["no rows in split 'val'"]),
        (lambda m: m.update(format_version=3), ["newer mtl", "format_version 3"]),
        (lambda m: m.pop("splits"), ["manifest.json is damaged"]),
    ],
)
def test_data_sets_that_do_not_fit(
    change: Callable[[dict[str, Any]], object], fragments: list[str], data: Path, tmp_path: Path
) -> None:
    edit(data, change)
    path = write_config(tmp_path / "mine.yaml", tiny_config(data, tmp_path / "runs"))
    explains(refused(tmp_path, "train.py", "--config", path), *fragments)


@pytest.mark.parametrize("name", ["manifest.json", "index.parquet"])
def test_damaged_files(name: str, data: Path, tmp_path: Path) -> None:
    file = data / name
    file.write_bytes(file.read_bytes()[:-100])
    path = write_config(tmp_path / "mine.yaml", tiny_config(data, tmp_path / "runs"))
    explains(refused(tmp_path, "train.py", "--config", path), f"{name} is damaged")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_shards_that_are_truncated_or_gone(split: str, data: Path, tmp_path: Path) -> None:
    first, *_ = shards = sorted((data / "shards").glob(f"{split}-*"))
    whole, path = first.read_bytes(), write_config(tmp_path / "mine.yaml", tiny_config(data, tmp_path / "runs"))
    what = f"1 of the {len(shards)} shards of split '{split}' are not what was written"
    first.write_bytes(whole[:-1])
    explains(
        refused(tmp_path, "train.py", "--config", path),
        what,
        f"{first.name}: {len(whole) - 1:,} bytes",
        f"{len(whole):,} bytes",
    )
    first.unlink()
    explains(refused(tmp_path, "train.py", "--config", path), what, f"{first.name}: missing")
    assert not (tmp_path / "runs").exists()


def test_no_such_bucket(moto_url: str, tmp_path: Path) -> None:
    env = aws(tmp_path, AWS_ENDPOINT_URL=moto_url)
    done = refused(tmp_path, "train.py", "auto", "--data", "s3://no-such-bucket/data", env=env)
    explains(done, "There is no bucket 'no-such-bucket'")


def test_nobody_serves_the_endpoint(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        done = refused(
            tmp_path, "train.py", "shapes", "--data", "s3://bucket/data", env=aws(tmp_path, AWS_ENDPOINT_URL=url)
        )
    explains(done, url, "s3://bucket/data/manifest.json")


def test_no_credentials(moto_url: str, tmp_path: Path) -> None:
    nobody = {**aws(tmp_path, AWS_ENDPOINT_URL=moto_url), "AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}
    done = refused(tmp_path, "train.py", "shapes", "--data", "s3://bucket/data", env=nobody)
    explains(done, "needs credentials", "'bucket'")


@pytest.mark.s3
@pytest.mark.parametrize("where", ["--data", "--storage"])
def test_wrong_credentials(where: str, s3: str, original: Path, tmp_path: Path) -> None:
    wrong: dict[str, str | None] = {"AWS_SECRET_ACCESS_KEY": "canary-secret-of-this-test"}
    path = write_config(tmp_path / "mine.yaml", tiny_config(original, tmp_path / "runs"))
    done = refused(tmp_path, "train.py", "--config", path, where, f"{s3}/folder", env=wrong)
    explains(done, "was refused", s3.removeprefix("s3://"), "access key")


def test_a_run_of_another_configuration(original: Path, tmp_path: Path) -> None:
    config = tiny_config(original, tmp_path / "runs")
    store = open_store(config.storage).child(config.name)
    lease = acquire(store, config.name, on_wait=print)
    assert isinstance(lease, Lease)
    store.put("config.yaml", config.to_yaml().encode())
    lease.release("stopped")
    path = write_config(tmp_path / "mine.yaml", config.model_copy(update={"optimizer": Optimizer(lr=0.5)}))
    done = refused(tmp_path, "train.py", "--config", path)
    explains(done, "The run 'tiny' was started with another configuration", "optimizer.lr  0.001 -> 0.5", "--name")


def test_evaluating_what_is_not_there(original: Path, tmp_path: Path) -> None:
    explains(refused(tmp_path, "evaluate.py", "runs/none"), "There is no run at runs/none")

    config = tiny_config(original, tmp_path / "runs")
    store = open_store(config.storage).child(config.name)
    lease = acquire(store, config.name, on_wait=print)
    assert isinstance(lease, Lease)
    store.put("config.yaml", config.to_yaml().encode())
    begin_attempt(store, lease.owner.id).commit(make_commit(3))
    lease.release("stopped")
    explains(refused(tmp_path, "evaluate.py", "runs/tiny", "--split", "holdout"), "split 'holdout'")
    explains(refused(tmp_path, "evaluate.py", "runs/tiny", "--data", "nowhere"), "There is no data set at")


def test_cleaning_what_is_not_there(tmp_path: Path) -> None:
    explains(refused(tmp_path, "janitor.py", "runs/none"), "There is no run at", "runs/none")
    explains(refused(tmp_path, "janitor.py", "runs/none", "--older-than-hours", "0.5"), "--older-than-hours 0.5")


def test_evaluating_without_naming_a_run(tmp_path: Path) -> None:
    assert "evaluate.py" in refused(tmp_path, "evaluate.py").said
