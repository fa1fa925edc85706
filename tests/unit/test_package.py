"""What is uploaded, what is not, and what is too much."""

import os
from pathlib import Path
from zipfile import ZipFile

import pytest

from mtl.errors import ConfigError
from mtl.on_ray.package import EXCLUDED, Package


def fill(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def test_ignored_files_stay_here(tmp_path: Path) -> None:
    fill(tmp_path, "jobs/train.py", "mtl/data/order.py", "mtl/scratch/x", "notes.txt", "big.bin")
    fill(tmp_path, "data/shard", "runs/mine/run.json", ".git/config", ".venv/bin/python", "mtl/__pycache__/x.pyc")
    (tmp_path / ".gitignore").write_text("*.txt\n")
    (tmp_path / "mtl" / ".gitignore").write_text("/scratch/\n")
    (tmp_path / ".rayignore").write_text("/big.bin\n")
    kept = {".gitignore", ".rayignore", "jobs/train.py", "mtl/.gitignore", "mtl/data/order.py"}
    assert set(Package.scan(tmp_path).files) == kept


@pytest.mark.parametrize("name", [".env", ".env.local", "key.pem", "x/id_rsa", "x/.aws/credentials", "auth_token"])
def test_secrets_stay_here(tmp_path: Path, name: str) -> None:
    fill(tmp_path, name, "a.py")
    assert set(Package.scan(tmp_path).files) == {"a.py"}


def test_a_package_named_data_is_no_data_set() -> None:
    assert EXCLUDED.exclude("data", folder=True)
    assert not EXCLUDED.exclude("mtl/data", folder=True)


def test_links_are_followed_except_back(tmp_path: Path) -> None:
    fill(tmp_path, "outside/x.py", "root/a/y.py")
    root = tmp_path / "root"
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "a" / "back").symlink_to(root)
    (root / "broken").symlink_to(root / "nowhere")
    assert set(Package.scan(root).files) == {"a/y.py", "link/x.py"}


def test_two_gigabytes_are_refused_with_what_to_leave_out(tmp_path: Path) -> None:
    fill(tmp_path, "jobs/train.py", "assets/readme")
    (tmp_path / "assets" / "weights").mkdir()
    with (tmp_path / "assets" / "weights" / "huge.bin").open("wb") as file:
        os.truncate(file.fileno(), 2_000_000_000)  # takes no room on the disk
    package = Package.scan(tmp_path)
    with pytest.raises(ConfigError, match="too large to upload") as error:
        package.check()
    assert "2.00 GB in 3 files: assets/weights/huge.bin 2.00 GB" in str(error.value)
    assert "echo '/assets/weights/huge.bin' >>" in str(error.value)
    (tmp_path / ".rayignore").write_text("/assets/weights/huge.bin\n")
    Package.scan(tmp_path).check()


def test_equal_files_make_equal_archives(tmp_path: Path) -> None:
    archives: list[bytes] = []
    for number in (1, 2):
        root = tmp_path / str(number)
        fill(root, "b/c.py", "a.py")
        os.utime(root / "a.py", (number, number))
        Package.scan(root).write(root / "out.zip")
        archives.append((root / "out.zip").read_bytes())
    assert archives[0] == archives[1]
    with ZipFile(tmp_path / "1" / "out.zip") as archive:
        assert archive.namelist() == ["a.py", "b/c.py"]
        assert archive.read("b/c.py") == b"b/c.py"


def test_a_working_directory_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a folder"):
        Package.scan(tmp_path / "missing")
