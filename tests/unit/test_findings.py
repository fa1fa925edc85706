"""Findings: shown as they come, counted at the end, and never waited for without end."""

import threading
from collections.abc import Iterator

import pytest

from mtl.errors import DataError
from mtl.findings import Check, Finding, conclude, examine


def refused() -> list[Finding]:
    raise DataError("The shard is missing.", got="no a.parquet", expected="2 shards", do="copy it again")


def surprised() -> list[Finding]:
    raise ZeroDivisionError("by zero")


def halfway() -> Iterator[Finding]:
    yield Finding("ok", "x", "the first half")
    raise DataError("The second half is missing.")


def test_errors_become_failures_that_say_why_and_how_to_mend() -> None:
    shown: list[str] = []
    (found,) = examine([Check("data", refused)], shown.append)
    assert found == Finding(
        "fail", "data", "The shard is missing.", "got no a.parquet; expected 2 shards", "copy it again"
    )
    assert shown[0].splitlines() == [
        "fail  data      The shard is missing.",
        "      why             got no a.parquet; expected 2 shards",
        "      mend            copy it again",
    ]


def test_what_was_found_before_an_error_is_shown_too() -> None:
    assert [finding.level for finding in examine([Check("x", halfway)], print)] == ["ok", "fail"]


def test_an_unknown_error_names_its_place() -> None:
    (found,) = examine([Check("step", surprised)], print)
    assert found.what == "ZeroDivisionError: by zero"
    assert "test_findings.py, line" in found.why


def test_a_check_that_hangs_is_left_behind() -> None:
    free = threading.Event()

    def hang() -> list[Finding]:
        free.wait()
        return []

    found = examine([Check("storage", hang, limit_s=0.05), Check("y", lambda: [Finding("ok", "y", "well")])], print)
    free.set()
    assert [(finding.level, finding.about) for finding in found] == [("fail", "storage"), ("ok", "y")]
    assert "no answer within 0.05 s" in found[0].what


@pytest.mark.parametrize(
    ("levels", "status", "verdict"),
    [(["ok", "ok"], 0, "ready"), (["ok", "warn"], 0, "reservations"), (["warn", "fail"], 2, "mend")],
)
def test_the_status(levels: list[str], status: int, verdict: str) -> None:
    shown: list[str] = []
    assert conclude([Finding(level, "x", "y") for level in levels], shown.append) == status  # type: ignore[arg-type]
    assert verdict in shown[0]
