"""What ranks agree on before each batch, and that nobody waits for it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtl.agreement import Agreed, Every, agreed_batches, portions, present
from mtl.blame import Sums
from mtl.data.batch import EMPTY, QUARANTINED, Batch, Cost
from mtl.data.loader import Loader
from mtl.runtime import LocalRuntime, Runtime
from tests.helpers.batches import batch, hide, specs
from tests.helpers.ranks import Group, values


class Recorded:
    """Rank 0 of one, which notes what happens."""

    rank = 0
    world_size = 1

    def __init__(self, log: list[str]) -> None:
        self._log = log
        self._asked = 0

    def control(self, sums: Tensor) -> "Recorded.Pending":
        self._asked += 1
        self._log.append(f"ask {self._asked - 1}")
        return self.Pending(sums, self._asked - 1, self._log)

    class Pending:
        def __init__(self, sums: Tensor, number: int, log: list[str]) -> None:
            self._sums, self._number, self._log = sums, number, log

        def wait(self) -> Tensor:
            self._log.append(f"answer {self._number}")
            return self._sums


def agreed(batches: list[Batch], log: list[str], **flags: bool) -> Iterator[tuple[Batch, Agreed, Sums]]:
    return agreed_batches(
        cast("Loader", batches),
        specs(),
        cast("Runtime", Recorded(log)),
        stop=lambda: flags.get("stop", False),
        commit=lambda: flags.get("commit", False),
        log=lambda: flags.get("log", False),
    )


@given(st.integers(0, 5))
def test_every_batch_comes_once_and_in_order(n: int) -> None:
    assert [made.step for made, _, _ in agreed([batch(2, step=i) for i in range(n)], [])] == [*range(n)]


def test_the_question_for_a_batch_is_asked_before_the_one_ahead_of_it_is_trained_on() -> None:
    log: list[str] = []
    for made, _, _ in agreed([batch(2, step=i) for i in range(3)], log):
        log.append(f"train {made.step}")
    assert log == [
        *("ask 0", "ask 1", "answer 0", "train 0"),
        *("ask 2", "answer 1", "train 1"),
        *("answer 2", "train 2"),
    ]


def test_counts_are_of_labels_that_are_there() -> None:
    made = batch(6)
    hide(made, "object", [0, 1])
    hide(made, "amount", slice(None))
    made.status[2], made.status[3] = QUARANTINED, EMPTY
    ((_, known, waits),) = agreed([made], [], commit=True)
    assert known.counts.tolist() == [4, 6, 6, 0]
    assert (known.samples, known.quarantined) == (5, 1)
    assert (known.stop, known.commit, known.log) == (False, True, False)
    assert waits.samples == 5
    assert known.waits_s.tolist() == [pytest.approx(waits.storage_s + waits.decode_s)]


def test_a_wait_is_split_as_the_threads_spent_their_time() -> None:
    made = batch(3)
    made.cost = Cost(reading_s=3, making_s=1, cpu_s=0.9, fetching_s=5, fetched_bytes=700)

    def slowly() -> Iterator[Batch]:
        time.sleep(0.02)
        yield made

    ((_, _, waits),) = agreed_batches(
        cast("Loader", slowly()),
        specs(),
        cast("Runtime", Recorded([])),
        stop=lambda: False,
        commit=lambda: False,
        log=lambda: False,
    )
    assert waits.storage_s >= 0.015
    assert waits.storage_s == pytest.approx(3 * waits.decode_s)
    assert (waits.cpu_s, waits.fetching_s, waits.fetched_bytes) == (0.9, 5, 700)


@given(st.lists(st.booleans(), min_size=1, max_size=9))
def test_empty_slots_are_left_out(filled: list[bool]) -> None:
    made = batch(len(filled))
    made.status[[not there for there in filled]] = EMPTY
    got = present(made)
    if not any(filled):
        assert got.status.tolist() == [EMPTY]
        return
    assert got is made or not all(filled)
    assert got.images.tolist() == made.images[filled].tolist()
    assert got.colour.tolist() == made.colour[filled].tolist()
    assert {task: v.tolist() for task, v in got.labels.items()} == {
        task: v[filled].tolist() for task, v in made.labels.items()
    }
    assert (got.step, got.ledger) == (made.step, made.ledger)


@given(st.integers(1, 9), st.integers(1, 12))
def test_portions_are_the_same_samples_in_smaller_batches(n: int, most: int) -> None:
    made = batch(n)
    found = list(portions([made, made], most))
    assert max(len(part.images) for part in found) == min(n, most)
    assert len(found) == 2 * -(-n // most)
    for name in ("images", "colour", "status", "positions"):
        assert [one for part in found for one in getattr(part, name).tolist()] == getattr(made, name).tolist() * 2
    for task, labels in made.labels.items():
        assert [one for part in found for one in part.labels[task].tolist()] == labels.tolist() * 2


def ranks_agree() -> list[Any]:
    """Ranks ask for different things, and have different labels."""
    with LocalRuntime(gpu=False, threads=1, listen=lambda _: None) as runtime:
        batches = [batch(4, step=i) for i in range(3)]
        if runtime.rank == 1:
            hide(batches[1], "kind", slice(None))
            batches[2].status[:] = EMPTY
            batches[0].cost = Cost(reading_s=1)
        found = agreed_batches(
            cast("Loader", batches),
            specs(),
            runtime,
            stop=lambda: runtime.rank == 1,
            commit=lambda: runtime.rank == 1,
            log=lambda: runtime.rank == 0,
        )
        return [[len(a.waits_s), a.counts.tolist(), a.samples, a.stop, a.commit, a.log] for _, a, _ in found]


def test_all_ranks_know_the_same(tmp_path: Path) -> None:
    first, second = values(Group(tmp_path / "ranks", 2, ranks_agree).wait())
    # Any rank may ask to stop; only rank 0 says when to commit and to log.
    flags = [True, False, True]
    assert first == second == [[2, [8] * 4, 8, *flags], [2, [8, 4, 8, 8], 8, *flags], [2, [8] * 4, 4, *flags]]


def test_every_is_due_once_a_period(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    due = Every(10.0)

    def at(seconds: float) -> bool:
        now[0] = seconds
        return due()

    assert [at(t) for t in (105.0, 110.5, 111.0, 120.0, 121.0, 122.0)] == [False, True, False, False, True, False]
    due.restart()
    assert [at(t) for t in (131.9, 132.1)] == [False, True]
