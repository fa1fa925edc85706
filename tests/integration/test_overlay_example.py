"""The example of overlaid pairs as a person runs it, at a tiny size: images, data set, training."""

import csv
import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import examples.overlay_pairs
from mtl.data.manifest import Manifest
from mtl.store import open_store
from tests.helpers.jobs import ROOT

COMMANDS = re.findall(r"^    (python .+)$", examples.overlay_pairs.__doc__ or "", re.MULTILINE)
SIZES = {
    "examples/overlay_pairs.py": "--train 64 --val 16 --test 16",
    "jobs/prepare.py": "",
    "jobs/train.py": "--epochs 1 --global-batch 32",
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eight images of 32 px in each of three classes and splits."""
    draws = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for number, name in enumerate(("cat", "dog", "eel")):
            folder = tmp_path / "cifar10.tar.xz" / split / name  # a folder serves as well
            folder.mkdir(parents=True)
            for i in range(8):
                pixels = draws.integers(80 * number, 80 * number + 80, (32, 32, 3), np.uint8)
                PIL.Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path


def test_the_commands_of_the_example_train_on_pairs(images: Path) -> None:
    (images / "examples").symlink_to(ROOT / "examples")
    (images / "jobs").symlink_to(ROOT / "jobs")
    assert [shlex.split(command)[1] for command in COMMANDS] == list(SIZES)
    for command, sizes in zip(COMMANDS, SIZES.values(), strict=True):
        words = [sys.executable, *shlex.split(command)[1:], *sizes.split()]
        done = subprocess.run(words, cwd=images, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    table = list(csv.DictReader((images / "data/overlay-images/labels.csv").read_text().splitlines()))
    assert Counter(row["split"] for row in table) == {"train": 64, "val": 16, "test": 16}
    assert {row["first"] for row in table} == {row["second"] for row in table} == {"cat", "dog", "eel"}
    manifest = Manifest.load(open_store(str(images / "data/overlay")))
    assert manifest.image_px == (40, 40)
    run = json.loads((images / "runs/overlay/run.json").read_text())
    assert (run["status"], run["result"]["steps"]) == ("finished", 2)
    assert run["result"]["metrics"]["test"].keys() == {"first", "second"}
