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
    taxonomy = (ROOT / "jobs/labels/imagenet-taxonomy.csv").read_text().splitlines()[1:]
    classes = [line.partition(",")[0] for line in taxonomy]
    classes += [f"n{number:08d}" for number in range(1_000 - len(classes))]  # those that the taxonomy has no place for
    for number, name in enumerate(classes):
        picture(folder / "imagenet" / name / f"{number}.jpg", number)
    with tarfile.open(folder / "imagenet-sample.tar", "w") as archive:
        archive.add(folder / "imagenet", "imagenet")
    run(folder, ["jobs/prepare.py", "shapes", "data/shapes", "--images", "240"])
    return folder


def run(folder: Path, command: list[str]) -> None:
    """Run a job of this checkout in `folder`."""
    script, *arguments = command
    done = job(script.removeprefix("jobs/"), *arguments, cwd=folder)
    assert done.status == 0, f"{command}\n{done.said}"


def hastened(command: list[str]) -> list[str]:
    """`command` with less to do, in one process: jobs on Ray and on a head have tests of their own."""
    script, *arguments = command
    if script not in ("jobs/train.py", "jobs/tune.py", "jobs/doctor.py") or "--help" in arguments:
        return command
    more = [] if "--runtime" in arguments else ["--runtime", "local"]
    more += ["--augment.size-px", "32", "--augment.eval-resize-px", "32"] if "imagenet-sample" in arguments else []
    if script == "jobs/tune.py":
        return [*command, *more, "--epochs", "1", "--sweep.trials", "1"]
    return [*command, *more, *([] if "--epochs" in arguments else ["--epochs", "1"])]


@pytest.mark.slow
def test_readme_commands(world: Path) -> None:
    (world / "jobs").symlink_to(ROOT / "jobs")
    ran = 0
    for _, *command in commands():
        if command[0] == "jobs/submit.py" or any(argument.startswith("s3://") for argument in command):
            continue  # the same commands against a real head and a real server: tests/integration
        run(world, hastened(command))
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
