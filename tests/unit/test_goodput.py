"""What a run's attempts tell of its time."""

from typing import Any

import pytest

from mtl.goodput import Meter, summary, write
from tests.helpers.memory_store import MemoryStore


def test_only_time_between_resume_and_pause_counts() -> None:
    now_s = [100.0]
    meter = Meter(7.0, clock=lambda: now_s[0])

    def after(seconds: float) -> float:
        now_s[0] += seconds
        return meter.useful_s

    assert after(10) == 7
    meter.resume()
    assert after(5) == 12
    with meter.paused():
        assert after(50) == 12
    assert after(1) == 13
    meter.pause()
    with meter.paused():
        pass
    assert after(50) == 13


def account(attempt: int, job: str, job_began: str, until: str, useful_s: float, after: Any = None) -> dict[str, Any]:
    day = "2026-01-01T"
    return {
        "attempt": attempt,
        "job": job,
        "job_began": f"{day}{job_began}+00:00",
        "until": f"{day}{until}.000+00:00",
        "useful_s": useful_s,
        "after": after,
    }


def test_restarts_count_and_the_time_between_jobs_does_not() -> None:
    store = MemoryStore()
    store.put("attempts/0.json", b'{"attempt": 0}')  # of a version that kept no accounts
    write(store, account(1, "a", "10:00:00", "10:01:00", 30))
    write(store, account(2, "a", "10:00:00", "10:02:00", 60, {"cause": "failed", "replayed_s": 9.5}))
    for attempt in range(3, 11):
        write(store, account(attempt, "b", "20:00:00", f"20:{attempt:02d}:00", 60 + attempt))
    found = summary(store)
    assert found == {
        "useful_s": 70,
        "wall_s": 120 + 600,
        "goodput": pytest.approx(70 / 720),
        "restarts": [{"attempt": 2, "cause": "failed", "replayed_s": 9.5}],
    }


def test_nothing_is_known_of_a_run_that_has_not_begun() -> None:
    assert summary(MemoryStore()) == {"useful_s": 0, "wall_s": 0, "goodput": 0, "restarts": []}
