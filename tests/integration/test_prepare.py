"""jobs/prepare.py as a person runs it."""

import csv
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg

from mtl.data.image import decode
from mtl.data.manifest import Index, Manifest
from mtl.data.shapes import draw
from mtl.store import Store, open_store

ROOT = Path(__file__).resolve().parents[2]


def prepare(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / "prepare.py"), *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)


def prepared(*arguments: object) -> str:
    done = prepare(*arguments)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def rows(store: Store, split: str) -> list[dict[str, object]]:
    paths = Index.load(store, split).shard_path
    return [row for path in paths for row in pq.read_table(pa.BufferReader(store.get(path))).to_pylist()]


def jpeg(seed: int, size: int = 12) -> bytes:
    return simplejpeg.encode_jpeg(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """An xz archive with a wrapping folder: 12 cats, 12 cars, 6 eels, of which two each are for testing."""
    path = tmp_path / "animals.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        for name, n in (("cat", 12), ("car", 12), ("eel", 6)):
            for i in range(n):
                data = jpeg(i)
                info = tarfile.TarInfo(f"animals/{'test' if i < 2 else 'train'}/{name}/{i}.jpg")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def test_an_image_folder(animals: Path, tmp_path: Path) -> None:
    kinds = tmp_path / "kinds.csv"
    kinds.write_text("old,new\ncat,animal\ncar,vehicle\n")
    dest = tmp_path / "out"
    flags = ("--label", "object", "--derive", f"kind=object:{kinds}", "--carve", "val=0.2")
    said = prepared("imagefolder", animals, dest, *flags)
    assert "so 6 images lack it" in said
    assert f"python jobs/train.py auto --data {dest}" in said
    store = open_store(str(dest))
    manifest = Manifest.load(store)
    assert manifest.name == "out"
    assert manifest.labels["object"].classes == ("car", "cat", "eel")
    assert manifest.splits["test"].labels["object"].histogram == (2, 2, 2)
    assert manifest.splits["test"].labels["kind"].nulls == 2
    assert manifest.splits["train"].rows + manifest.splits["val"].rows == 24
    for row in rows(store, "test"):
        name, number = str(row["image_id"]).split("/")[1:]
        assert row["image"] == jpeg(int(number.removesuffix(".jpg")))
        assert row["object"] == ("car", "cat", "eel").index(name)
        assert row["kind"] == {"cat": 0, "car": 1, "eel": None}[name]
    assert "already there" in prepared("imagefolder", animals, dest, *flags)
    again = prepare("imagefolder", animals, dest, "--label", "thing")
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    assert "labels" not in again.stderr.splitlines()[0]
    prepared("imagefolder", animals, dest, "--label", "thing", "--overwrite")
    assert [*Manifest.load(store).labels] == ["thing"]


def test_a_table(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with (tmp_path / "faces.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "age", "smiles"])
        for i in range(40):
            (tmp_path / "photos" / f"{i}.jpg").write_bytes(jpeg(i))
            table.writerow([f"{i}.jpg", i, "" if i % 4 == 0 else i % 2])
    dest = tmp_path / "out"
    said = prepared("table", tmp_path / "faces.csv", dest, "--images", tmp_path / "photos", "--kinds", "age=class")
    assert "split val is carved from train" in said
    manifest = Manifest.load(open_store(str(dest)))
    assert manifest.labels["age"].classes == tuple(str(i) for i in range(40))
    assert sum(split.labels["smiles"].nulls for split in manifest.splits.values()) == 10
    (tmp_path / "faces.csv").write_text("path,age\n0.jpg,young\n1.jpg,3\n")
    wrong = prepare("table", tmp_path / "faces.csv", tmp_path / "new", "--images", tmp_path / "photos")
    assert wrong.returncode == 2
    assert "faces.csv line 2, column age, is not a number" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_shapes(tmp_path: Path) -> None:
    prepared("shapes", tmp_path, "--images", 80, "--seed", 5)
    store = open_store(str(tmp_path))
    assert {*Manifest.load(store).splits} == {"train", "val", "test"}
    for row in rows(store, "val"):
        sample = draw(int(str(row["image_id"]).removesuffix(".jpg")), seed=5)
        assert {name: row[name] for name in sample.labels} == pytest.approx(sample.labels)
        image = row["image"]
        assert isinstance(image, bytes)
        assert np.abs(decode(image).astype(int) - sample.image).mean() < 8


@pytest.mark.parametrize(
    "flags",
    [
        ("--carve", "val"),
        ("--carve", "val=much"),
        ("--derive", "kind"),
        ("--shard-mib", "0"),
        ("--row-group-mib", "-1"),
    ],
)
def test_wrong_flags(tmp_path: Path, flags: tuple[str, ...]) -> None:
    done = prepare("shapes", tmp_path / "out", "--images", "9", *flags)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.s3
def test_to_s3(animals: Path, s3: str) -> None:
    prepared("imagefolder", animals, f"{s3}/animals", "--row-group-mib", "0.002")
    store = open_store(f"{s3}/animals")
    assert Manifest.load(store).name == "animals"
    assert len(rows(store, "test")) == 6
    assert "already there" in prepared("imagefolder", animals, f"{s3}/animals", "--row-group-mib", "0.002")


@pytest.mark.sample
@pytest.mark.slow
def test_cifar10(cifar10_tar: Path, tmp_path: Path) -> None:
    derived = ("--derive", "kind=object:jobs/labels/cifar10-kind.csv")
    prepared("imagefolder", cifar10_tar, tmp_path, "--label", "object", *derived)
    manifest = Manifest.load(open_store(str(tmp_path)))
    splits = manifest.splits
    assert splits["train"].rows + splits["val"].rows == 50_000
    assert splits["test"].labels["object"].histogram == (1000,) * 10
    assert splits["test"].labels["kind"].histogram == (6000, 4000)
    assert manifest.image_px == (32, 32)
    assert manifest.statistics.images == 9_487  # every fifth of 47,435
    # The means and deviations that every paper on CIFAR-10 quotes.
    assert manifest.statistics.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.005)
    assert manifest.statistics.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.005)
