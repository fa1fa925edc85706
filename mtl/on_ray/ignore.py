"""Patterns of a .gitignore: which paths below its folder they exclude."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self, final

_TOKEN = re.compile(r"\\(?P<escaped>.)|(?P<stars>\*+)|(?P<one>\?)|\[(?P<no>[!^]?)(?P<set>\]?[^\]]*)\]|(?P<plain>.)")


@final
@dataclass(frozen=True)
class Patterns:
    """The patterns of one file; the last one that matches decides.

    Attributes:
        rules: of each pattern: what it matches, whether only folders, whether it keeps rather than excludes.
    """

    rules: tuple[tuple[re.Pattern[str], bool, bool], ...]

    @classmethod
    def of(cls, lines: Iterable[str]) -> Self:
        """Read the lines of a file; comments, blank lines and what is not a pattern are passed over."""
        return cls(tuple(rule for line in lines if (rule := _rule(line)) is not None))

    def exclude(self, path: str, *, folder: bool) -> bool:
        """Whether `path`, with '/' between its parts and relative to the folder of the file, is excluded.

        What lies in an excluded folder is not asked for: it is excluded with it.
        """
        for matches, folders_only, keep in reversed(self.rules):
            if (folder or not folders_only) and matches.fullmatch(path):
                return not keep
        return False


def _rule(line: str) -> tuple[re.Pattern[str], bool, bool] | None:
    pattern = re.sub(r"(?<!\\) +$", "", line.rstrip("\r\n"))
    keep = pattern.startswith("!")
    pattern = pattern[1:] if keep else pattern
    folders_only = pattern.endswith("/")
    pattern = pattern.removesuffix("/")
    if not pattern or (pattern.startswith("#") and not keep):
        return None
    try:
        return re.compile(_regex(pattern), re.DOTALL), folders_only, keep
    except re.error:
        return None


def _regex(pattern: str) -> str:
    # A slash within or before the pattern ties it to the folder of the file; without one it matches at any depth.
    text = "" if "/" in pattern else "(?:.*/)?"
    *parents, last = pattern.removeprefix("/").split("/")
    for part in parents:
        text += "(?:.*/)?" if part == "**" else _part(part) + "/"
    return text + (".+" if last == "**" else _part(last))


def _part(part: str) -> str:
    return _TOKEN.sub(_token, part)


def _token(match: re.Match[str]) -> str:
    if match["stars"]:
        return "[^/]*"
    if match["one"]:
        return "[^/]"
    if match["set"] is not None:
        inside = "".join("-" if char == "-" else re.escape(char) for char in match["set"].replace("\\", ""))
        return f"[^/{inside}]" if match["no"] else f"[{inside}]"
    return re.escape(match["escaped"] or match["plain"])
