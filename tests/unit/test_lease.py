import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest

from mtl.attempt import begin_attempt
from mtl.errors import RunLost, RunOwned, StoreError
from mtl.lease import Clock, Lease, acquire
from mtl.record import RUN, Record, read
from tests.helpers.memory_store import MemoryStore
from tests.helpers.runs import FakeTime, die, make_commit, record_of

ROOT = Path(__file__).parents[2]


def test_a_new_run(store: MemoryStore, own: Callable[..., Lease]) -> None:
    assert read(store) is None
    lease = own()
    record = record_of(store)
    assert record == lease.record
    assert (record.name, record.status, record.attempt, record.owner) == ("cats", "running", 0, lease.owner)
    assert lease.owner.pid == os.getpid()


def test_of_twenty_contenders_one_owns(store: MemoryStore) -> None:
    barrier = threading.Barrier(20)

    def nap(_: float) -> None:
        threading.Event().wait(0.002)

    def contend(_: int) -> Lease | RunOwned:
        barrier.wait()
        try:
            lease = acquire(store, "cats", on_wait=lambda _: None, heartbeat_s=0.001, clock=Clock(sleep=nap))
        except RunOwned as error:
            return error
        assert isinstance(lease, Lease)
        return lease

    with ThreadPoolExecutor(20) as pool:
        outcomes = list(pool.map(contend, range(20)))
    leases = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
    assert len(leases) == 1
    assert record_of(store).owner == leases[0].owner
    die(leases[0])


def test_of_twenty_contenders_for_a_silent_run_one_takes_over(store: MemoryStore, own: Callable[..., Lease]) -> None:
    silent = own()
    begin_attempt(store, silent.owner.id)
    time = FakeTime()
    barrier = threading.Barrier(20)

    def all_have_seen_the_silent_one(_: str) -> None:
        # Who came later would watch the winner, whose heart does not beat on this clock either.
        barrier.wait()

    def contend(_: int) -> Lease | RunOwned:
        try:
            return own(time, on_wait=all_have_seen_the_silent_one)
        except RunOwned as error:
            return error

    with ThreadPoolExecutor(20) as pool:
        outcomes = list(pool.map(contend, range(20)))
    leases = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
    assert len(leases) == 1
    assert record_of(store).owner == leases[0].owner
    assert record_of(store).attempt == 1


def test_takeover_waits_for_the_whole_silence(own: Callable[..., Lease]) -> None:
    silent = own()
    time = FakeTime()
    taken = own(time)
    assert 60.0 <= time.now_s <= 66.0
    silent.beat()
    assert silent.lost is not None
    assert taken.lost is None


def test_a_living_owner_is_named_at_its_first_sign_of_life(store: MemoryStore, own: Callable[..., Lease]) -> None:
    owner = own()
    messages: list[str] = []
    naps = iter(range(100))

    def beat_once() -> None:
        if next(naps) == 2:
            owner.beat()

    time = FakeTime(beat_once)
    with pytest.raises(RunOwned) as caught:
        acquire(store, "cats", on_wait=messages.append, clock=time.clock())
    assert time.now_s < 10.0
    assert len(messages) == 1
    for text in (str(os.getpid()), owner.owner.host, owner.owner.user, owner.owner.since):
        assert text in str(caught.value)
        assert text in messages[0]
    assert owner.lost is None


def test_an_owner_that_releases_during_the_watch_is_succeeded(own: Callable[..., Lease]) -> None:
    owner = own()

    def release() -> None:
        owner.release("stopped")

    time = FakeTime(release)
    successor = own(time)
    assert time.now_s < 10.0
    assert successor.owner != owner.owner


def test_a_takeover_that_comes_just_after_a_beat_fails(store: MemoryStore, own: Callable[..., Lease]) -> None:
    owner = own()

    def beat_before_the_swap(operation: str) -> None:
        if operation.startswith("put_if"):
            store.before(None)
            owner.beat()

    store.before(beat_before_the_swap)
    with pytest.raises(RunOwned):
        own(FakeTime())
    assert record_of(store).owner == owner.owner


def test_a_killed_owner_on_this_machine_is_succeeded_at_once(store: MemoryStore, own: Callable[..., Lease]) -> None:
    script = (
        "import sys; from mtl.lease import acquire; from mtl.record import RUN\n"
        "from tests.helpers.memory_store import MemoryStore\n"
        "store = MemoryStore(); acquire(store, 'cats', on_wait=print)\n"
        "sys.stdout.buffer.write(store.get(RUN) + b'\\n\\n'); sys.stdout.flush(); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process, process.stdin, process.stdout:
        store.put(RUN, b"".join(iter(process.stdout.readline, b"\n")))
        owner = record_of(store).owner
        assert owner is not None
        assert owner.pid == process.pid
        assert not owner.is_dead()
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert owner.is_dead(), "a process that nobody has waited for is dead as well"
        process.wait()
        time = FakeTime()
        lease = own(time)
    assert time.now_s == 0.0
    assert lease.owner.pid == os.getpid()


@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_a_run_that_ended_early_is_acquired_at_once(
    store: MemoryStore, own: Callable[..., Lease], status: Literal["stopped", "failed"]
) -> None:
    first = own()
    attempt = begin_attempt(store, first.owner.id)
    attempt.commit(make_commit(10))
    first.release(status)
    time = FakeTime()
    second = own(time)
    assert time.now_s == 0.0
    assert second.record.checkpoints == (make_commit(10),)
    assert begin_attempt(store, second.owner.id).number == 2


def test_a_finished_run_stays_finished(store: MemoryStore, own: Callable[..., Lease]) -> None:
    lease = own()
    lease.release("finished", {"top1": 0.75})
    record = acquire(store, "cats", on_wait=lambda _: None)
    assert isinstance(record, Record)
    assert (record.status, record.result, record.owner) == ("finished", {"top1": 0.75}, None)
    with pytest.raises(RunLost):
        begin_attempt(store, lease.owner.id)
    assert acquire(store, "cats", on_wait=lambda _: None) == record
    assert lease.release("finished", {"top1": 0.75}) == record


def test_release_belongs_to_the_owner(store: MemoryStore, own: Callable[..., Lease]) -> None:
    zombie = own()
    owner = own(FakeTime())
    with pytest.raises(RunLost, match="no longer owns"):
        zombie.release("failed")
    assert record_of(store).owner == owner.owner


@pytest.mark.parametrize("after", [False, True])
def test_release_can_be_repeated_after_a_failure(store: MemoryStore, own: Callable[..., Lease], after: bool) -> None:
    lease = own()
    store.fail(1, after=after)
    with pytest.raises(StoreError):
        lease.release("stopped")
    assert lease.release("stopped").status == "stopped"


def test_the_heartbeat_keeps_ownership(store: MemoryStore, own: Callable[..., Lease]) -> None:
    owner = own(heartbeat_s=0.001)
    first_beat = record_of(store).beat
    # Each nap of the contender lasts until three beats have really happened.
    time = FakeTime(lambda: wait_until(lambda: record_of(store).beat >= first_beat + 3))
    with pytest.raises(RunOwned):
        own(time)
    assert record_of(store).beat >= first_beat + 3
    assert owner.lost is None


def wait_until(condition: Callable[[], bool]) -> None:
    waiting = threading.Event()
    while not condition():
        waiting.wait(0.001)


def test_the_heartbeat_notices_a_takeover(store: MemoryStore, own: Callable[..., Lease]) -> None:
    first = own(heartbeat_s=0.001)
    store.put(RUN, record_of(store).model_copy(update={"owner": None, "status": "stopped"}).model_dump_json().encode())
    wait_until(lambda: first.lost is not None)
    assert isinstance(first.lost, RunLost)


def test_failing_storage_is_forgiven_for_half_the_silence(store: MemoryStore, own: Callable[..., Lease]) -> None:
    time = FakeTime()
    lease = own(time)
    time.now_s = 29.0
    store.fail(0)
    lease.beat()
    assert lease.lost is None
    lease.beat()
    time.now_s = 29.0 + 31.0
    store.fail(0)
    lease.beat()
    assert lease.lost is not None
    assert "31 s" in str(lease.lost)


def test_a_deleted_record_is_a_loss(store: MemoryStore, own: Callable[..., Lease]) -> None:
    lease = own()
    store.delete(RUN)
    lease.beat()
    assert "gone" in str(lease.lost)
