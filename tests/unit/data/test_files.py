"""Images of folders and archives."""

import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mtl.data.files import open_images
from mtl.errors import DataError

TREE = {
    "train/cat/1.jpg": b"one",
    "train/cat/2.PNG": b"two",
    "train/dog/3.jpeg": b"three",
    "val/dog/4.webp": b"",
    "train/cat/notes.txt": b"no image",
    "train/cat/.hidden.jpg": b"hidden",
    ".cache/5.jpg": b"hidden",
}
IMAGES = ["train/cat/1.jpg", "train/cat/2.PNG", "train/dog/3.jpeg", "val/dog/4.webp"]


def folder(root: Path, tree: dict[str, bytes]) -> Path:
    for path, data in tree.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def archive(path: Path, tree: dict[str, bytes], mode: str = "w", top: str = "") -> Path:
    with tarfile.open(path, mode) as file:
        for name, data in tree.items():
            info = tarfile.TarInfo(top + name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("name", "mode", "top"),
    [
        ("folder", "", ""),
        ("t.tar", "w", ""),
        ("t.tar", "w", "./"),
        ("t.tar", "w", "set/"),
        ("t.tar", "w", "./set/"),
        ("t.tar.gz", "w:gz", "set/"),
        ("t.tar.xz", "w:xz", "set/"),
        ("t.tar.bz2", "w:bz2", "set/"),
    ],
)
def test_the_same_images_wherever_they_lie(tmp_path: Path, name: str, mode: str, top: str) -> None:
    path = tmp_path / name
    images = open_images(archive(path, TREE, mode, top) if mode else folder(path, TREE))
    assert images.paths == IMAGES
    assert images.ignored == 1
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(images.read, IMAGES)) == [TREE[path] for path in IMAGES]
    assert IMAGES[0] in images
    assert "train/cat/9.jpg" not in images
    if top == "set/":
        assert "set/train/cat/1.jpg" in images
        assert images.read("set/train/cat/1.jpg") == b"one"


def test_a_split_or_a_class_is_no_wrapping_folder(tmp_path: Path) -> None:
    tree = {"train/cat/1.jpg": b"", "train/dog/1.jpg": b""}
    assert open_images(archive(tmp_path / "a.tar", tree)).paths == [*tree]
    tree = {"cat/1.jpg": b"", "cat/2.jpg": b""}
    assert open_images(archive(tmp_path / "b.tar", tree)).paths == [*tree]


def test_linked_classes_are_followed(tmp_path: Path) -> None:
    folder(tmp_path / "all", {"cat/1.jpg": b"one"})
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "cat").symlink_to(tmp_path / "all" / "cat")
    assert open_images(tmp_path / "some").read("cat/1.jpg") == b"one"


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2"])
def test_damaged_archives_are_refused(tmp_path: Path, name: str) -> None:
    mode = "w" if name == "a.tar" else f"w:{name[6:]}"
    path = archive(tmp_path / name, {f"cat/{i}.jpg": bytes(range(256)) * 40 for i in range(9)}, mode)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if mode != "w" else b"no archive" + data)
    with pytest.raises(DataError, match=name):
        open_images(path)


def test_an_archive_cut_within_an_image(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar", {"cat/1.jpg": bytes(5000)})
    images = open_images(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="cut short"):
        images.read("cat/1.jpg")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing at"):
        open_images(tmp_path / "nowhere")
    images = open_images(folder(tmp_path, {"a/1.jpg": b""}))
    (tmp_path / "a/1.jpg").unlink()
    with pytest.raises(DataError, match="can not be read"):
        images.read("a/1.jpg")
