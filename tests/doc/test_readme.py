"""Every command of the README runs as it is written, on small data, in the order in which a reader meets it."""

import re
import shlex
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.helpers.jobs import job

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def commands() -> list[list[str]]:
    """The lines of indented blocks that call a job, continuation lines joined, comments dropped."""
    blocks = "\n".join(line.strip() for line in README.splitlines() if line.startswith("    "))
    lines = re.sub(r"\\\n\s*", " ", blocks).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(".venv/bin/python jobs/")]


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 255, (40, 48, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(path, quality=80)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the README speaks of: photos, faces with a label table, an archive, drawings."""
    folder = tmp_path_factory.mktemp("reader")
    for number in range(120):
        picture(folder / "photos" / f"class{number % 3}" / f"{number}.jpg", number)
        picture(folder / "faces" / f"{number}.jpg", number)
    rows = [f"{n}.jpg,{'yes' if n % 2 else 'no'},{n / 10 if n % 5 else ''}" for n in range(120)]
    (folder / "labels.csv").write_text("\n".join(["path,smiling,age", *rows]))
    names = (ROOT / "jobs/labels/cifar10-kind.csv").read_text().split()[1:]
    for number in range(60):
        for split in ("train", "test"):
            picture(folder / "cifar10" / split / names[number % 10].split(",")[0] / f"{number}.jpg", number)
    with tarfile.open(folder / "cifar10.tar.xz", "w:xz") as archive:
        archive.add(folder / "cifar10", "cifar10")
    run(folder, ["jobs/prepare.py", "shapes", "data/shapes", "--images", "240"])
    return folder


def run(folder: Path, command: list[str]) -> None:
    """Run a job of this checkout in `folder`."""
    script, *arguments = command
    done = job(script.removeprefix("jobs/"), *arguments, cwd=folder)
    assert done.status == 0, f"{command}\n{done.said}"


@pytest.mark.slow
def test_readme_commands(world: Path) -> None:
    (world / "jobs").symlink_to(ROOT / "jobs")
    ran = 0
    for _, *command in commands():
        if any(argument.startswith("s3://") for argument in command):
            continue  # the same commands against a real server: tests/integration
        training = command[0] == "jobs/train.py" and "--help" not in command
        quick = ["--runtime", "local"] if training and "--runtime" not in command else []
        epochs = ["--epochs", "1"] if training and "--epochs" not in command else []
        run(world, [*command, *quick, *epochs])
        ran += 1
    assert ran >= 9
    assert (world / "samples.png").exists()


def test_readme_names_existing_files() -> None:
    named = re.findall(r"`((?:jobs|mtl|docs|deploy)/[\w./]*)`|\]\((docs/[\w./]*)\)", README)
    assert named
    assert [a or b for a, b in named if not (ROOT / (a or b)).exists()] == []


def test_readme_gives_two_commands_first() -> None:
    quickstart = README.split("## Quickstart")[1].split("##")[0]
    assert re.findall(r"^    (.+)$", quickstart, re.MULTILINE) == ["make demo", "make test"]
