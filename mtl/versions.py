"""What software a node runs, so that nodes can be compared with each other and with the lock file."""

import hashlib
import platform
import re
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

_PACKAGES = ("torch", "torchvision", "ray", "numpy", "pyarrow")
_HERE = Path(__file__).resolve().parent
_LOCK = _HERE.parent / "requirements.lock"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)


def versions() -> dict[str, str]:
    """By name: Python, the packages that results depend on, the lock file, and the code of mtl (both as hashes)."""
    packages = {name: _version(name) or "none" for name in _PACKAGES}
    return {"python": platform.python_version(), **packages, "lock": _lock_hash(), "mtl": _code_hash()}


def unlocked() -> dict[str, tuple[str, str]]:
    """Packages installed in another version than the lock file names: (installed, locked) by name.

    A package that the lock file names and that is not installed does not count: extras may be left out.
    """
    pinned: dict[str, set[str]] = {}
    for name, version in _PIN.findall(_LOCK.read_text() if _LOCK.is_file() else ""):
        pinned.setdefault(name, set()).add(version)
    found = {name: _version(name) for name in pinned}
    return {
        name: (version, " or ".join(sorted(pinned[name])))
        for name, version in found.items()
        if version is not None and version.partition("+")[0] not in {pin.partition("+")[0] for pin in pinned[name]}
    }


def differing(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """What differs: (ours, theirs) by name."""
    names = dict.fromkeys([*ours, *theirs])
    both = {name: (ours.get(name, "none"), theirs.get(name, "none")) for name in names}
    return {name: (our, their) for name, (our, their) in both.items() if our != their}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _lock_hash() -> str:
    return hashlib.sha256(_LOCK.read_bytes()).hexdigest()[:12] if _LOCK.is_file() else "none"


@cache
def _code_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(_HERE.rglob("*.py")):
        digest.update(f"{path.relative_to(_HERE)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
