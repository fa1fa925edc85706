"""The rules of everything around the source: the lock file, the declared dependencies, what no file may contain."""

import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = ROOT / "pyproject.toml"
PYTHONS = ("3.11", "3.12", "3.13")


def _files_of_the_repository() -> list[Path]:
    """Tracked files, and those about to be: untracked and not ignored."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, or git is not installed")
    return [path for name in listed.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_somebodys_folder_or_a_package_registry() -> None:
    # Both patterns are written so that they do not match this file.
    folder = re.compile(rb"(?<![\w.~}/-])/(?:home|root|work|Users)/\w")
    hosts = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("pytorch", "org/whl"))]
    hosts += [".".join(parts) for parts in (("anaconda", "org"), ("npmjs", "org"), ("nvidia", "com/pypi"))]
    host = re.compile("|".join(re.escape(name) for name in hosts).encode())
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.decode(errors='replace').strip()[:100]}"
        for path in _files_of_the_repository()
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if folder.search(line) or host.search(line)
    ]
    assert not found, "\n".join(found)


@cache
def _locked() -> tuple[str, ...]:
    """The lock file's entries, each joined into one line."""
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    return tuple(line for line in text.splitlines() if line.strip() and not line.startswith("#"))


@cache
def _declared(*left_out: str) -> tuple[str, ...]:
    """What pyproject.toml asks for, but the groups `left_out`."""
    project = tomllib.loads(PYPROJECT.read_text())
    groups = project["project"]["optional-dependencies"] | project["dependency-groups"]
    kept = (name for title, group in groups.items() if title not in left_out for name in group)
    return (*project["project"]["dependencies"], *kept)


def test_every_locked_requirement_has_a_hash_and_no_address() -> None:
    assert _locked()
    for entry in _locked():
        assert re.match(r"[\w.-]+==\S+ (; .+ )? *--hash=sha256:[0-9a-f]{64}", entry), entry[:100]
        assert "://" not in entry, entry[:100]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("declared", _declared("peers"))
def test_lock_satisfies_what_is_declared(declared: str, python: str) -> None:
    wanted = Requirement(declared)
    environment = {"python_version": python, "python_full_version": f"{python}.5"}
    versions: list[str] = []
    for entry in _locked():
        pinned = Requirement(entry.partition("--hash")[0].strip())
        if pinned.name == wanted.name and (pinned.marker is None or pinned.marker.evaluate(environment)):
            versions.append(str(pinned.specifier).removeprefix("=="))
    assert len(versions) == 1, f"{wanted.name} on Python {python}: {versions} in requirements.lock"
    assert wanted.specifier.contains(versions[0]), f"{declared}: {versions[0]} in requirements.lock; run `make lock`"


def test_supported_pythons_are_said_the_same_everywhere() -> None:
    project = tomllib.loads(PYPROJECT.read_text())
    supported = SpecifierSet(project["project"]["requires-python"])
    assert [f"3.{minor}" for minor in range(8, 20) if f"3.{minor}" in supported] == list(PYTHONS)
    assert project["tool"]["pyright"]["pythonVersion"] == PYTHONS[0]
    assert project["tool"]["ruff"]["target-version"] == "py" + PYTHONS[0].replace(".", "")
    bounds = re.search(r"\((\d), (\d+)\) <= sys\.version_info < \((\d), (\d+)\)", (ROOT / "Makefile").read_text())
    assert bounds, "the Makefile does not check the version of Python"
    assert supported == SpecifierSet(">={}.{},<{}.{}".format(*bounds.groups()))


@pytest.mark.parametrize("declared", _declared())
def test_every_dependency_says_why_it_is_here(declared: str) -> None:
    lines = PYPROJECT.read_text().splitlines()
    (number,) = [number for number, line in enumerate(lines) if f'"{declared}"' in line]
    assert re.search(r'[",\]] *# \w', lines[number]) or lines[number - 1].startswith("# "), lines[number]
