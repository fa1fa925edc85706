"""Ignore files are read as git reads them."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.on_ray.ignore import Patterns


@pytest.mark.parametrize(
    ("pattern", "path", "excluded"),
    [
        ("*.pyc", "a/b/c.pyc", True),
        ("/data", "data", True),
        ("/data", "mtl/data", False),
        ("data", "mtl/data", True),
        ("docs/*.md", "docs/x.md", True),
        ("docs/*.md", "docs/y/x.md", False),
        ("docs/**/x.md", "docs/a/b/x.md", True),
        ("docs/**/x.md", "docs/x.md", True),
        ("**/x", "x", True),
        ("x/**", "x/a/b", True),
        ("x/**", "x", False),
        ("x?", "x/", False),
        ("[!ab].txt", "c.txt", True),
        ("[!ab].txt", "a.txt", False),
        ("[a-c]", "b", True),
        ("[]x]", "]", True),
        (r"\#x", "#x", True),
        ("# x", "# x", False),
        ("x  ", "x", True),
        ("[z-a]", "z", False),
        ("", "", False),
        ("a.b", "axb", False),
    ],
)
def test_a_pattern(pattern: str, path: str, excluded: bool) -> None:
    assert Patterns.of([pattern]).exclude(path, folder=False) is excluded


def test_a_slash_at_the_end_means_folders() -> None:
    patterns = Patterns.of(["build/"])
    assert patterns.exclude("x/build", folder=True)
    assert not patterns.exclude("x/build", folder=False)


def test_the_last_match_decides() -> None:
    patterns = Patterns.of(["*.log", "!keep.log"])
    assert patterns.exclude("a.log", folder=False)
    assert not patterns.exclude("keep.log", folder=False)


NAMES = st.sampled_from(["a", "b", "ab", "a.b", "[a]", "#a"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
PARTS = st.sampled_from(["a", "b", "*", "**", "a*", "?", "*.b", "[ab]", "[!a]", r"\[a\]", r"\#a", "ab"])
PATTERNS = st.builds(
    lambda lead, parts, trail: lead + "/".join(parts) + trail,
    st.sampled_from(["", "/", "!", "!/"]),
    st.lists(PARTS, min_size=1, max_size=3),
    st.sampled_from(["", "/"]),
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ignored")
    try:
        subprocess.run(["git", "init", "--quiet", root], check=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    return root


@settings(max_examples=30)
@given(patterns=st.lists(st.lists(PATTERNS, min_size=1, max_size=3), min_size=12, max_size=12), paths=st.lists(PATHS))
def test_git_agrees(repository: Path, patterns: list[list[str]], paths: list[str]) -> None:
    """Each of twelve folders has its own .gitignore, so that one call of git answers for all of them."""
    asked: list[str] = []
    expected: list[str] = []
    for number, lines in enumerate(patterns):
        folder = repository / f"f{number}"
        folder.mkdir(exist_ok=True)
        (folder / ".gitignore").write_text("\n".join(lines))
        ours = Patterns.of(lines)
        for path in paths:
            asked.append(f"f{number}/{path}")
            parts = path.split("/")
            heads = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
            if any(ours.exclude(head, folder=True) for head in heads) or ours.exclude(path, folder=False):
                expected.append(asked[-1])
    if not asked:
        return
    answer = subprocess.run(
        ["git", "-C", repository, "check-ignore", "--no-index", "-z", "--stdin"],
        input="\0".join(asked).encode(),
        capture_output=True,
        check=False,
    )
    assert answer.returncode in (0, 1), answer.stderr
    assert answer.stdout.decode().split("\0")[:-1] == expected
