"""Work in the background: in order, at most one waits, nothing that matters is dropped, errors arrive."""

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl import background
from mtl.background import Background, Event
from mtl.errors import AccessDenied, NoSpace, StoreError


class Gate:
    """Work that goes on when it is told to."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.done: list[int] = []
        self.open, self.begun = threading.Event(), threading.Event()
        self.threads: set[int] = set()

    def work(self, number: int) -> Any:
        def run() -> list[Event]:
            self.threads.add(threading.get_ident())
            self.begun.set()
            assert self.open.wait(10)
            self.done.append(number)
            return [{"kind": "commit", "step": number}]

        return run

    def tell(self, event: Event) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.told.append(event["step"])


class Trouble(Exception):
    pass


def fail() -> list[Event]:
    raise Trouble


def test_without_a_thread_work_is_done_at_once() -> None:
    gate = Gate()
    gate.open.set()
    made = Background(gate.tell, threaded=False)
    made.give(gate.work(1))
    assert gate.done == gate.told == [1]
    with pytest.raises(Trouble):
        made.give(fail)
    assert gate.threads == {threading.get_ident()}


def test_nobody_waits_for_it_and_the_newest_wins() -> None:
    gate = Gate()
    with Background(gate.tell, threaded=True) as made:
        made.give(gate.work(1))
        assert gate.begun.wait(10)
        for number in (2, 3, 4):
            made.give(gate.work(number))
        made.watch()
        assert gate.done == gate.told == []
        gate.open.set()
    assert gate.done == gate.told == [1, 4]
    assert threading.get_ident() not in gate.threads


def test_what_is_kept_does_not_give_way() -> None:
    gate = Gate()
    with Background(gate.tell, threaded=True) as made:
        made.give(gate.work(1))
        assert gate.begun.wait(10)
        made.give(gate.work(2), kept=True)
        threading.Timer(0.05, gate.open.set).start()
        made.give(gate.work(3))
    assert gate.done == [1, 2, 3]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_work_is_done_in_order_and_the_last_always_is(kept: list[bool]) -> None:
    gate = Gate()
    gate.open.set()
    with Background(gate.tell, threaded=True) as made:
        for number, each in enumerate(kept):
            made.give(gate.work(number), kept=each)
    assert gate.done == sorted(gate.done) == gate.told
    assert {number for number, each in enumerate(kept) if each} | {len(kept) - 1} <= set(gate.done)


def fails_and_is_asked(gate: Gate, asked: str) -> None:
    with Background(gate.tell, threaded=True) as made:
        made.give(fail)
        if asked != "leave":
            made._settle(10)  # pyright: ignore[reportPrivateUsage]
        if asked == "watch":
            made.watch()
        if asked == "give":
            made.give(gate.work(2))


@pytest.mark.parametrize("asked", ["watch", "give", "leave"])
def test_an_error_arrives_at_the_next_question(asked: str) -> None:
    gate = Gate()
    gate.open.set()
    with pytest.raises(Trouble):
        fails_and_is_asked(gate, asked)
    assert gate.done == []


def works_and_meets(gate: Gate, error: type[BaseException], opens_after_s: float | None) -> None:
    with Background(gate.tell, threaded=True) as made:
        made.give(gate.work(1))
        if opens_after_s is not None:
            threading.Timer(opens_after_s, gate.open.set).start()
        raise error


def test_another_error_comes_first_but_work_is_finished() -> None:
    gate = Gate()
    with pytest.raises(Trouble):
        works_and_meets(gate, Trouble, 0.05)
    assert gate.done == [1]
    assert gate.told == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, Trouble])
def test_neither_an_interrupt_nor_work_that_hangs_keeps_an_error_back(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "LAST_S", 0.05 if error is Trouble else 1e6)
    gate = Gate()
    with pytest.raises(error):
        works_and_meets(gate, error, None)
    assert gate.done == []
    gate.open.set()


class Storage:
    """Work that storage fails for the first times, with an error of some kind."""

    def __init__(self, gate: Gate, times: int, kind: type[StoreError] = StoreError) -> None:
        self.gate, self.times, self.kind, self.tries = gate, times, kind, 0

    def __call__(self) -> list[Event]:
        self.tries += 1
        if self.tries <= self.times:
            raise self.kind("S3 failed.")
        self.gate.done.append(self.tries)
        return [{"kind": "commit", "step": self.tries}]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    monkeypatch.setattr(background, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(background, "LONGEST_PAUSE_S", 0.02)
    return []


@pytest.mark.parametrize("threaded", [True, False])
def test_storage_that_comes_back_is_waited_for_and_told_once(told: list[Event], threaded: bool) -> None:
    gate = Gate()
    gate.open.set()
    with Background(told.append, threaded=threaded) as made:
        made.give(Storage(gate, 4), kept=True)
        made.give(gate.work(6), kept=True)
    assert gate.done == [5, 6]
    assert told == [
        {"kind": "note", "text": "a commit waits for storage: S3 failed."},
        {"kind": "commit", "step": 5},
        {"kind": "commit", "step": 6},
    ]


@pytest.mark.parametrize("kind", [StoreError, AccessDenied, NoSpace])
def test_storage_is_not_waited_for_for_ever_nor_what_does_not_pass(
    told: list[Event], kind: type[StoreError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "AWAY_S", 0.1)
    never = Storage(Gate(), 10**9, kind)

    def gives() -> None:
        with Background(told.append, threaded=True) as made:
            made.give(never)

    with pytest.raises(kind):
        gives()
    assert never.tries > 2 if kind is StoreError else never.tries == 1
