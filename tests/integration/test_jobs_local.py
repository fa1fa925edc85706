"""The job scripts on one machine without Ray: train, reproduce, preview, evaluate, stop and go on."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mtl import recipes
from mtl.config import Augment, Model, Optimizer
from tests.helpers.datasets import ROWS, tiny
from tests.helpers.jobs import Done, job, read_until, started, tiny_config, without, write_config

LOCAL = ("--runtime", "local")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set `tiny`."""
    path = tmp_path_factory.mktemp("home")
    tiny(path / "tiny")
    return path


@pytest.fixture(scope="module")
def trained(home: Path) -> Done:
    """`train.py auto` where neither Ray nor boto3 can be imported: the run `tiny` below home/runs."""
    flags = ["--epochs", "2", "--augment.size-px", "16", "--augment.eval-resize-px", "16", "--log-every-s", "0.01"]
    env = without(home / "blocked", "ray", "boto3", "botocore")
    return job("train.py", "auto", "--data", "tiny", *LOCAL, *flags, cwd=home, env=env)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def test_help_names_every_recipe_and_needs_no_torch(tmp_path: Path) -> None:
    for argv in (["--help"], []):
        done = job("train.py", *argv, env=without(tmp_path / "blocked", "torch", "ray"))
        assert (done.status, done.err) == (0, "")
        assert all(name in done.out for name in recipes.ABOUT)


def test_a_data_set_is_trained_on_without_a_recipe(home: Path, trained: Done) -> None:
    assert (trained.status, trained.err) == (0, "")
    assert record(home / "runs/tiny")["status"] == "finished"
    assert (home / "tiny.yaml").exists()


def test_a_model_for_images_of_one_size_is_refused_before_its_run_is_begun(home: Path) -> None:
    model = Model(backbone="tests.helpers.backbones:small", batch_norm="local")
    augment = Augment(size_px=16, crop="none", eval_size_px=24, eval_resize_px=24)
    config = tiny_config(home / "tiny", home / "refused", runtime="local", model=model, augment=augment)
    done = job("train.py", "--config", write_config(home / "refused.yaml", config))
    assert done.status == 2
    assert "takes no images of 24 px" in done.err
    assert "leave augment.eval_size_px out" in done.err
    assert "Traceback" not in done.said
    assert not (home / "refused").exists()


def test_the_log_is_for_people(trained: Done) -> None:
    lines = trained.out.splitlines()
    assert "\x1b" not in trained.out
    assert lines[0] == "wrote tiny.yaml: edit it and train with: python jobs/train.py --config tiny.yaml"
    assert lines[1].startswith("0:00  run 'tiny' of recipe auto on local, kept in ")
    log = lines[1 : next(i for i, line in enumerate(lines) if line.startswith("val: "))]
    assert all(re.match(r"\d+:\d\d  \S", line) for line in log), trained.out
    steps = [line for line in log if "  step " in line]
    assert "  step 6/6  0:00 left  epoch 2.00  " in steps[-1]
    assert all(re.search(r"  \d+:\d\d left  ", line) for line in steps)
    assert sum("  commit at step " in line for line in log) == 2
    assert lines[-3:] == [
        "run       runs/tiny  (config.yaml, checkpoints/, metrics/*.jsonl)",
        "again     python jobs/evaluate.py runs/tiny --split test",
        "pictures  python jobs/train.py --config runs/tiny/config.yaml --preview samples.png",
    ]


def test_a_saved_configuration_reproduces_the_run(home: Path, trained: Done) -> None:
    assert trained.status == 0
    done = job("train.py", "--config", "runs/tiny/config.yaml", "--name", "again", cwd=home)
    assert done.status == 0, done.said
    first, again = (record(home / "runs" / name)["result"] for name in ("tiny", "again"))
    times = dict.fromkeys(("seconds", "goodput", "useful_s", "wall_s", "images_per_s", "mfu"), 0)
    assert {**again, **times} == {**first, **times}


def test_a_finished_run_shows_its_result_again_without_torch(home: Path, trained: Done) -> None:
    env = without(home / "blocked-too", "torch", "ray")
    before = (home / "runs/tiny/run.json").read_bytes()
    done = job("train.py", "--config", "runs/tiny/config.yaml", cwd=home, env=env)
    assert (done.status, done.err) == (0, "")
    assert "the run 'tiny' is finished; this is its result" in done.out
    assert done.out.splitlines()[-3:] == trained.out.splitlines()[-3:]
    assert (home / "runs/tiny/run.json").read_bytes() == before


def test_evaluating_a_finished_run_gives_its_own_metrics(home: Path, trained: Done, tmp_path: Path) -> None:
    assert trained.status == 0
    for split in ("test", "val"):
        out = tmp_path / f"{split}.json"
        done = job("evaluate.py", "runs/tiny", "--split", split, "--json", out, cwd=home)
        assert (done.status, done.err) == (0, "")
        found = json.loads(out.read_text())
        assert (found["rows"], found["step"]) == (ROWS[split], 6)
        assert found["metrics"] == record(home / "runs/tiny")["result"]["metrics"][split]


def test_a_preview_is_a_picture_of_labelled_samples(home: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path / "mine.yaml", tiny_config(home / "tiny", tmp_path / "runs"))
    done = job("train.py", "--config", path, "--preview", tmp_path / "samples.png")
    assert (done.status, done.err) == (0, "")
    with Image.open(tmp_path / "samples.png") as picture:
        columns, rows, tasks = 6, 4, 4
        assert picture.size == (columns * 166, rows * (160 + tasks * 13 + 6))
        assert len(picture.convert("L").getcolors(256) or ()) > 100
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_where_it_stopped(number: signal.Signals, home: Path, tmp_path: Path) -> None:
    config = tiny_config(home / "tiny", tmp_path / "runs", runtime="local", epochs=12, log_every_s=0.001)
    path, folder = write_config(tmp_path / "mine.yaml", config), tmp_path / "runs/tiny"
    with started("train.py", "--config", path) as process:
        read_until(process, "  step 4/36  ")
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 143, said
    assert "committed; rerun the same command to go on" in said
    assert "Traceback" not in said
    stopped = record(folder)
    assert (stopped["status"], stopped["owner"]) == ("stopped", None)
    assert 4 <= stopped["checkpoints"][0]["step"] < 36
    if number == signal.SIGINT:
        return

    other = write_config(tmp_path / "other.yaml", config.model_copy(update={"optimizer": Optimizer(lr=0.5)}))
    refused = job("train.py", "--config", other)
    assert refused.status == 2
    assert "optimizer.lr  0.001 -> 0.5" in refused.err

    resumed = job("train.py", "--config", path)
    assert resumed.status == 0, resumed.said
    assert f"resumed from the commit of step {stopped['checkpoints'][0]['step']}" in resumed.out
    whole = job("train.py", "--config", path, "--name", "whole")
    assert whole.status == 0, whole.said
    first, second = record(folder)["result"], record(tmp_path / "runs/whole")["result"]
    assert first["ledger"] == second["ledger"]
    assert first["metrics"] == second["metrics"]


def test_the_first_line_comes_before_anything_heavy() -> None:
    code = "import sys\nsys.path.insert(0, '.')\nfrom mtl import arguments, embedded, preflight, session, console\n"
    code += "print(sorted({'boto3', 'ray', 'torch', 'cv2', 'torchvision'} & set(sys.modules)))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
