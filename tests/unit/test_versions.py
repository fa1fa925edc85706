"""What a node runs, against another node and against the lock file."""

from pathlib import Path

import pytest

from mtl import versions


def test_differences_name_what_differs() -> None:
    assert versions.differing({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}) == {
        "b": ("2", "3"),
        "c": ("none", "4"),
    }


def test_this_process_equals_itself() -> None:
    found = versions.versions()
    assert {"python", "torch", "ray", "lock", "mtl"} <= found.keys()
    assert versions.differing(found, versions.versions()) == {}


def test_another_version_than_the_locked_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("numpy==0.1 ; python_version < '3.12' \\\n    --hash=sha256:0\nnumpy==0.2\nnot-installed==1\n")
    monkeypatch.setattr(versions, "_LOCK", lock)
    found = versions.unlocked()
    assert found.keys() == {"numpy"}
    assert found["numpy"][1] == "0.1 or 0.2"
