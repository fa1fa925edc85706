"""From a command line to a submitted job: names, ids, the plan, and what leaves this machine."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import jobs.submit
from mtl import cli
from mtl.errors import ConfigError, RunOwned
from mtl.on_ray.head import Job
from mtl.on_ray.package import Package
from mtl.on_ray.submission import Command, choose_id, find
from mtl.record import Record
from mtl.store import open_store
from tests.helpers.fake_head import FakeHead, fake_head

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = Package.scan(ROOT)
CANARIES = {
    "AWS_ACCESS_KEY_ID": "canary-id",
    "AWS_SECRET_ACCESS_KEY": "canary-secret",
    "AWS_SESSION_TOKEN": "canary-session",
    "MLFLOW_TRACKING_PASSWORD": "canary-password",
}


def job(job_id: str, status: str = "RUNNING") -> Job:
    return Job(job_id, status, "", "", None, 0)  # type: ignore[arg-type]


def refuse(line: str) -> None:
    raise AssertionError(line)


def submit(fake: FakeHead, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run jobs/submit.py as a user of another machine would."""
    return subprocess.run(
        [sys.executable, ROOT / "jobs" / "submit.py", *words],
        env={**os.environ, "RAY_API_SERVER_ADDRESS": fake.address, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_command_is_named_after_its_run() -> None:
    assert Command.parse(["train", "shapes", "--name", "mine", "--epochs", "3"], CHECKOUT).name == "mine"
    named = Command.parse(["train", "shapes", "--storage=s3://b/runs"], CHECKOUT)
    assert (named.name, named.storage, named.owns_run) == ("shapes", "s3://b/runs", True)
    other = Command.parse(["evaluate", "runs/mine", "--split", "val"], CHECKOUT)
    assert (other.name, other.owns_run) == ("evaluate", False)
    assert other.line("python") == "python jobs/evaluate.py runs/mine --split val"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no job to submit"),
        (["submit"], "no job to submit"),
        (["trian", "shapes"], "no job to submit"),
        (["train", "shapes", "--name", "Mine!"], "name"),
        (["evaluate", "runs/x", "--name", "../x"], "run name can not be used"),
        (["train", "nothing"], "no recipe 'nothing'"),
        (["train", "shapes", "--global-batch", "100"], "must be a multiple"),
        (["train", "auto", "--data", "s3://b/x"], "needs a name"),
        (["train", "--config", "/etc/hostname"], "not among the files that are uploaded"),
    ],
)
def test_what_would_fail_there_is_refused_here(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Command.parse(words, CHECKOUT)


def test_a_configuration_is_named_as_the_job_will_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtl import recipes

    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.py").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.yaml").write_text(recipes.get("shapes").to_yaml())
    monkeypatch.chdir(tmp_path / "mine")
    words = ["train", "--config", "x.yaml", "--name", "y"]
    command = Command.parse(words, Package.scan(tmp_path))
    assert command.words == ("--config", "mine/x.yaml", "--name", "y")
    assert command.name == "y"
    (tmp_path / ".rayignore").write_text("*.yaml")
    with pytest.raises(ConfigError, match="not among the files"):
        Command.parse(words, Package.scan(tmp_path))


def test_ids_count_up() -> None:
    train = Command("train", (), "mine")
    assert choose_id(train, [], refuse) == "mine-a1"
    over = [job("mine-a1", "FAILED"), job("mine-a7", "STOPPED"), job("mine-a1-a9", "FAILED"), job("other-a30")]
    assert choose_id(train, over, refuse) == "mine-a8"


def test_ids_follow_the_attempts_of_the_run(tmp_path: Path) -> None:
    run = open_store(str(tmp_path)).child("mine")
    record = Record(name="mine", status="stopped", attempt=4, owner=None, expires="")
    run.put("run.json", record.model_dump_json().encode())
    assert (
        choose_id(Command("train", (), "mine", f"file://{tmp_path}"), [job("mine-a2", "STOPPED")], refuse) == "mine-a5"
    )
    said: list[str] = []
    assert choose_id(Command("train", (), "mine", "s3x://no/storage"), [], said.append) == "mine-a1"
    assert "No storage is known" in said[0]


def test_one_job_a_run() -> None:
    with pytest.raises(RunOwned, match="mine-a2") as error:
        choose_id(Command("train", (), "mine"), [job("mine-a1", "STOPPED"), job("mine-a2", "PENDING")], refuse)
    assert "submit.py follow mine" in str(error.value)
    assert "submit.py stop mine" in str(error.value)
    assert choose_id(Command("evaluate", (), "evaluate"), [job("evaluate-a1")], refuse) == "evaluate-a2"


def test_a_job_is_found_by_its_id_or_its_run() -> None:
    jobs = [job("x-a1"), job("x-a2"), job("x-a1-a1")]
    assert find(jobs, "x").id == "x-a2"
    assert find(jobs, "x-a1").id == "x-a1"
    with pytest.raises(ConfigError, match="no job of the name 'y'"):
        find(jobs, "y")


def test_submitted_with_the_plan_and_without_the_secrets() -> None:
    with fake_head(token="canary-token") as fake:
        done = submit(
            fake, "--no-follow", "--", "train", "shapes", "--name", "mine", **CANARIES, RAY_AUTH_TOKEN="canary-token"
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    upload, head, plan, how = done.stdout.splitlines()
    assert upload.startswith("upload  ")
    assert "mtl/" in upload
    assert "token accepted" in head
    assert plan == "job     mine-a1: python jobs/train.py shapes --name mine"
    assert "follow mine-a1" in how
    bodies = {(method, path.split("/")[2]): body for method, path, _, body in fake.requests if body}
    assert set(bodies) == {("PUT", "packages"), ("POST", "jobs")}
    asked = json.loads(bodies["POST", "jobs"])
    assert asked["submission_id"] == "mine-a1"
    assert asked["entrypoint"] == "exec python jobs/train.py shapes --name mine"
    assert set(asked["runtime_env"]) - {"_ray_commit"} == {"working_dir", "env_vars"}
    assert asked["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "120"}
    with ZipFile(io.BytesIO(bodies["PUT", "packages"])) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist() if not name.startswith("tests/"))
        assert {"jobs/train.py", "mtl/config.py"} <= set(archive.namelist())
        assert not [name for name in archive.namelist() if name.startswith((".git/", ".venv/", "data/", "runs/"))]
    for secret in (*CANARIES.values(), "canary-token"):
        assert secret.encode() not in content + bodies["POST", "jobs"]
        assert secret not in done.stdout


def test_nothing_is_uploaded_for_a_run_that_has_a_job() -> None:
    with fake_head() as fake:
        fake.add("mine-a3")
        done = submit(fake, "--", "train", "shapes", "--name", "mine")
    assert done.returncode == 2
    assert "The run 'mine' has a job already: mine-a3." in done.stderr
    assert not [method for method, *_ in fake.requests if method != "GET"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--", "train", "shapes", "--name", "Bad Name"], "'Bad Name'"),
        (["--address", "http://127.0.0.1:9", "--", "train", "shapes"], "No Ray head answers"),
        (["--address", "http://192.0.2.1:8265", "--", "train", "shapes"], "needs a token"),
        (["--working-dir", "BIG", "--", "train", "shapes"], "too large to upload"),
        (["train", "shapes"], "put -- before a job"),
        (["list", "--address", "ray://x:10001"], "not that of a head's dashboard"),
    ],
)
def test_bad_input_is_one_message(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "train.py").touch()
    with (tmp_path / "big.bin").open("wb") as file:
        os.truncate(file.fileno(), 2_000_000_000)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["submit.py", *(str(tmp_path) if word == "BIG" else word for word in words)])
    with pytest.raises(SystemExit) as end:
        cli.run(jobs.submit.main)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_ray_is_not_loaded_before_the_checks_are_done() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import jobs.submit\n"
        "heavy = {'ray', 'torch', 'aiohttp'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
