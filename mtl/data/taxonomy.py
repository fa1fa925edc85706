"""A tree of classes, cut into groups of comparable size: from one taxonomy, a label as coarse as a task wants it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from mtl.errors import ConfigError

SEPARATOR = ">"
"""Between the levels of a path, from the broadest down: `animal > bird > owl`."""

Path: TypeAlias = tuple[str, ...]

_PARTS = 3


def cut(names: Mapping[str, str], groups: int) -> dict[str, str]:
    """A coarser name for each class, from its path in a tree.

    All classes begin as one group. The largest group that can be opened is opened into its branches, again and again,
    as long as there are at most `groups` of them. A branch with fewer classes than a third of an even share is not
    worth a group of its own: such branches stay together as `other X`, X being the group that was opened.

    Args:
        names: the path of each class, its levels separated by '>'.
        groups: how many groups there are to be at most, at least 2.

    Raises:
        ConfigError: `groups` is below 2, or the tree has no two branches that are large enough.
    """
    paths = {name: split_path(path) for name, path in names.items()}
    least = len(paths) / (_PARTS * groups)
    cuts: dict[Path, list[str]] = {(): list(paths)}
    closed: set[Path] = set()
    while candidates := [at for at in cuts if at not in closed]:
        largest = max(candidates, key=lambda at: (len(cuts[at]), at))
        at, branches, rest = _open(largest, cuts[largest], paths, least)
        if branches and len(cuts) - 1 + len(branches) + bool(rest) <= groups:
            del cuts[largest]
            cuts |= branches
            if rest:
                cuts[(*at, "")] = rest
                closed.add((*at, ""))
        else:
            closed.add(largest)
    if groups < 2 or len(cuts) < 2:
        raise ConfigError(
            "The taxonomy can not be cut into so many groups.",
            got=f"{groups} groups of {len(paths)} classes",
            expected="2 groups or more, and branches that are large enough for one",
            do="ask for more groups, or name the groups yourself: a CSV old,new without paths",
        )
    titles = _titles(cuts)
    return {name: titles[at] for at, members in cuts.items() for name in members}


def split_path(path: str) -> Path:
    """The levels of a path."""
    return tuple(level.strip() for level in path.split(SEPARATOR))


def _open(
    at: Path, members: Iterable[str], paths: Mapping[str, Path], least: float
) -> tuple[Path, dict[Path, list[str]], list[str]]:
    """Where the group at `at` first branches, its branches of at least `least` classes, and the others' classes."""
    while True:
        branches: defaultdict[Path, list[str]] = defaultdict(list)
        for name in members:
            branches[paths[name][: len(at) + 1]].append(name)
        large = {path: names for path, names in branches.items() if path != at and len(names) >= least}
        rest = [name for path, names in branches.items() if path not in large for name in names]
        if len(large) > 1 or rest:
            return at, large, rest
        (at,) = large


def _titles(groups: Iterable[Path]) -> dict[Path, str]:
    """The last level of each group's path, or the whole path where two groups end alike."""
    short = {
        path: f"other {path[-2] if len(path) > 1 else ''}".strip() if path[-1] == "" else path[-1] for path in groups
    }
    count = Counter(short.values())
    return {
        path: title if count[title] == 1 else f" {SEPARATOR} ".join((*path[:-1], title))
        for path, title in short.items()
    }
