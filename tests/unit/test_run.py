import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from mtl.errors import ConfigError, RunError, RunLost, RunOwned, StoreError
from mtl.run import (
    RUN,
    Attempt,
    Clock,
    Commit,
    Lease,
    Record,
    acquire,
    begin_attempt,
    check_name,
    checkpoint_path,
    read,
    request_stop,
    retain,
    stop_requested,
)
from tests.helpers.memory_store import MemoryStore

NEVER_S = 1e6
ROOT = Path(__file__).parents[2]


class FakeTime:
    """A clock that only sleeping moves; `on_sleep` lets another job act meanwhile."""

    def __init__(self, on_sleep: Callable[[], None] = lambda: None) -> None:
        self.now_s = 0.0
        self._on_sleep = on_sleep
        self._lock = threading.Lock()

    def clock(self) -> Clock:
        return Clock(monotonic=lambda: self.now_s, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        with self._lock:
            self.now_s += seconds
        self._on_sleep()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def own(store: MemoryStore) -> Iterator[Callable[..., Lease]]:
    """Acquire the run; heartbeats only where the test calls `beat`, and none outlives the test."""
    leases: list[Lease] = []

    def acquired(
        time: FakeTime | None = None, heartbeat_s: float = NEVER_S, on_wait: Callable[[str], None] = lambda _: None
    ) -> Lease:
        clock = (time or FakeTime()).clock()
        lease = acquire(store, "cats", on_wait=on_wait, heartbeat_s=heartbeat_s, clock=clock)
        assert isinstance(lease, Lease)
        leases.append(lease)
        return lease

    yield acquired
    for lease in leases:
        die(lease)


def die(lease: Lease) -> None:
    """The end of the owning process, as far as the store can tell."""
    lease._closing.set()
    lease._thread.join()


def make_commit(step: int, attempt: int = 1) -> Commit:
    path = checkpoint_path(step, attempt)
    return Commit(path=path, step=step, epoch=0, samples=step * 8, manifest_sha256="0" * 64, time="")


def record_of(store: MemoryStore) -> Record:
    record = read(store)
    assert record is not None
    return record


@pytest.mark.parametrize("name", ["a", "resnet50.v2_lr-0.1", "0" * 63])
def test_a_good_name_passes(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "a/b", "..", "a b", "0" * 64, "a\n"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="run name"):
        check_name(name)


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
        "import sys; from mtl.run import RUN, acquire; from tests.helpers.memory_store import MemoryStore\n"
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


@pytest.mark.parametrize(
    ("change", "dead"),
    [
        ({}, False),
        ({"pid_started": "1"}, True),
        ({"host": "elsewhere", "pid_started": "1"}, False),
        ({"boot_id": "another", "pid_started": "1"}, False),
        ({"boot_id": "", "pid_started": "1"}, False),
        ({"pid_namespace": "pid:[1]", "pid_started": "1"}, False),
    ],
)
def test_only_proof_counts_as_death(own: Callable[..., Lease], change: dict[str, str], dead: bool) -> None:
    assert own().owner.model_copy(update=change).is_dead() is dead


def test_a_system_that_identifies_no_boot_proves_nothing(
    own: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtl.owner._boot_id", lambda: "")
    assert not own().owner.model_copy(update={"pid_started": "1"}).is_dead()


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


def test_attempts_count_up_and_start_from_the_commits(store: MemoryStore, own: Callable[..., Lease]) -> None:
    lease = own()
    first = begin_attempt(store, lease.owner.id)
    first.commit(make_commit(10, 1))
    second = begin_attempt(store, lease.owner.id)
    assert (first.number, second.number) == (1, 2)
    assert second.record.checkpoints == (make_commit(10, 1),)


def test_a_zombie_attempt_can_not_commit(store: MemoryStore, own: Callable[..., Lease]) -> None:
    lease = own()
    zombie = begin_attempt(store, lease.owner.id)
    begin_attempt(store, lease.owner.id)
    before = store.get(RUN)
    with pytest.raises(RunLost, match="Attempt 1"):
        zombie.commit(make_commit(10, 1))
    assert store.get(RUN) == before


def test_a_zombie_of_a_former_owner_can_not_commit(store: MemoryStore, own: Callable[..., Lease]) -> None:
    zombie = begin_attempt(store, own().owner.id)
    own(FakeTime())
    with pytest.raises(RunLost, match="no longer owns"):
        zombie.commit(make_commit(10, 1))
    with pytest.raises(RunLost):
        begin_attempt(store, zombie.owner_id)
    assert record_of(store).checkpoints == ()


def test_a_beat_between_reading_and_writing_does_not_disturb_a_commit(
    store: MemoryStore, own: Callable[..., Lease]
) -> None:
    lease = own()
    attempt = begin_attempt(store, lease.owner.id)

    def beat_first(operation: str) -> None:
        if operation.startswith("put_if"):
            store.before(None)
            lease.beat()

    store.before(beat_first)
    assert attempt.commit(make_commit(10)).checkpoints == (make_commit(10),)
    assert lease.lost is None


@pytest.mark.parametrize("nth", range(2))
def test_an_attempt_that_begins_anywhere_in_a_commit_is_not_undone(
    store: MemoryStore, own: Callable[..., Lease], nth: int
) -> None:
    lease = own()
    attempt = begin_attempt(store, lease.owner.id)
    reached = len(store.operations) + nth

    def begin_meanwhile(_: str) -> None:
        if len(store.operations) == reached:
            store.before(None)
            begin_attempt(store, lease.owner.id)

    store.before(begin_meanwhile)
    with pytest.raises(RunLost):
        attempt.commit(make_commit(10))
    assert len(store.operations) > reached
    assert (record_of(store).attempt, record_of(store).checkpoints) == (2, ())


def test_commits_are_newest_first_and_at_least_two_are_kept(store: MemoryStore, own: Callable[..., Lease]) -> None:
    attempt = begin_attempt(store, own().owner.id)
    commits = [make_commit(step) for step in (10, 20, 30)]
    records = [attempt.commit(commit) for commit in commits]
    assert [len(record.checkpoints) for record in records] == [1, 2, 2]
    record = records[-1]
    assert record.checkpoints == (commits[2], commits[1])
    assert attempt.commit(commits[2]) == record, "again changes nothing"
    with pytest.raises(AssertionError):
        attempt.commit(make_commit(40), keep=1)


def test_damaged_commits_do_not_take_the_place_of_sound_ones(store: MemoryStore, own: Callable[..., Lease]) -> None:
    lease = own()
    attempt = begin_attempt(store, lease.owner.id)
    attempt.commit(make_commit(10))
    attempt.commit(make_commit(20))
    resumed = begin_attempt(store, lease.owner.id)
    record = resumed.commit(make_commit(25, 2), damaged=[make_commit(20)])
    assert record.checkpoints == (make_commit(25, 2), make_commit(10))


def test_every_content_ever_written_is_different(store: MemoryStore, own: Callable[..., Lease]) -> None:
    contents: list[bytes] = []
    lease = own()
    for action in (lease.beat, lease.beat, lambda: begin_attempt(store, lease.owner.id), lambda: own(FakeTime())):
        contents.append(store.get(RUN))
        action()
    contents.append(store.get(RUN))
    assert len(set(contents)) == len(contents)


def test_a_lost_answer_that_the_store_reports_as_a_conflict_is_recognised(
    store: MemoryStore, own: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = own()

    real = store.put_if

    def put_twice(key: str, data: bytes, *, version: str | None) -> str:
        real(key, data, version=version)
        return real(key, data, version=version)

    # As after a retry inside the store: the first try has landed, the second finds a newer version.
    monkeypatch.setattr(store, "put_if", put_twice)
    attempt = begin_attempt(store, lease.owner.id)
    assert attempt.number == 1
    assert record_of(store).attempt == 1


def test_retain_deletes_only_what_nobody_can_want(store: MemoryStore, own: Callable[..., Lease]) -> None:
    lease = own()
    attempt = [begin_attempt(store, lease.owner.id) for _ in range(3)][-1]
    folders = {
        checkpoint_path(10, 1): False,
        checkpoint_path(20, 2): True,  # committed
        checkpoint_path(25, 3): False,  # this attempt left it unfinished
        checkpoint_path(30, 3): True,  # committed
        checkpoint_path(40, 3): True,  # perhaps uploading now
        checkpoint_path(50, 2): False,  # uploaded by an earlier attempt, never committed
        checkpoint_path(20, 4): True,  # a newer attempt's
        "checkpoints/notes": True,
        "metrics/step-000000001-a1": True,
    }
    for folder in folders:
        store.put(f"{folder}/manifest.json", b"{}")
    attempt.commit(make_commit(20, 2))
    retain(store, attempt.commit(make_commit(30, 3)))
    left = {folder: f"{folder}/manifest.json" in store.list() for folder in folders}
    assert left == folders


def test_a_stop_request_reaches_the_owner_it_names(store: MemoryStore, own: Callable[..., Lease]) -> None:
    with pytest.raises(RunError, match="can not be stopped"):
        request_stop(store)
    first = own()
    assert not stop_requested(store, first.owner.id)
    request_stop(store)
    assert stop_requested(store, first.owner.id)
    first.release("stopped")
    second = own()
    assert not stop_requested(store, second.owner.id), "acquiring voids it"
    request_stop(store, second.owner.id)
    assert stop_requested(store, second.owner.id)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"{}", "damaged"),
        (b'{"format_version": 1, "name": 3}', "damaged"),
        (b'{"format_version": 2}', "newer"),
    ],
)
def test_a_strange_record_is_an_error_and_stays(store: MemoryStore, content: bytes, message: str) -> None:
    store.put(RUN, content)
    with pytest.raises(RunError, match=message):
        acquire(store, "cats", on_wait=lambda _: None)
    assert store.get(RUN) == content


class Ownership(RuleBasedStateMachine):
    """Any number of jobs that acquire, beat, die, begin attempts, commit and release in any order."""

    leases = Bundle("leases")
    attempts = Bundle("attempts")

    @initialize()
    def empty(self) -> None:
        self.store = MemoryStore()
        self.owner: str | None = None
        self.attempt = 0
        self.finished = False
        self.committed: list[str] = []
        self.steps = 0
        self.made: list[Lease] = []

    def teardown(self) -> None:
        for lease in getattr(self, "made", ()):
            die(lease)

    @rule(target=leases, owner_beats=st.booleans())
    def acquire(self, owner_beats: bool) -> Lease | None:
        def owner_acts() -> None:
            for lease in self.made:
                if owner_beats and lease.owner.id == self.owner:
                    lease.beat()

        try:
            lease = acquire(
                self.store, "cats", on_wait=lambda _: None, heartbeat_s=NEVER_S, clock=FakeTime(owner_acts).clock()
            )
        except RunOwned:
            assert owner_beats
            assert self.owner is not None
            return None
        if isinstance(lease, Record):
            assert self.finished
            return None
        assert not self.finished
        assert self.owner is None or not owner_beats
        self.owner = lease.owner.id
        self.made.append(lease)
        return lease

    @rule(lease=leases)
    def beat(self, lease: Lease | None) -> None:
        if lease is not None:
            lease.beat()
            assert (lease.lost is None) == (lease.owner.id == self.owner)

    @rule(target=attempts, lease=leases)
    def begin(self, lease: Lease | None) -> Attempt | None:
        if lease is None:
            return None
        try:
            attempt = begin_attempt(self.store, lease.owner.id)
        except RunLost:
            assert lease.owner.id != self.owner
            return None
        assert lease.owner.id == self.owner
        self.attempt += 1
        assert attempt.number == self.attempt
        return attempt

    @rule(attempt=attempts, fault=st.sampled_from(["none", "before", "after"]))
    def commit(self, attempt: Attempt | None, fault: str) -> None:
        if attempt is None:
            return
        self.steps += 1
        commit = make_commit(self.steps, attempt.number)
        may = attempt.owner_id == self.owner and attempt.number == self.attempt
        if fault != "none" and may:
            self.store.fail(1, after=fault == "after")
        try:
            attempt.commit(commit)
        except RunLost:
            assert not may
            return
        except StoreError:
            assert fault != "none"
            if fault == "before":
                return
        assert may
        self.committed.insert(0, commit.path)

    @rule(lease=consumes(leases), status=st.sampled_from(["stopped", "failed", "finished"]))
    def release(self, lease: Lease | None, status: str) -> None:
        if lease is None:
            return
        try:
            lease.release(status)  # type: ignore[arg-type]
        except RunLost:
            assert lease.owner.id != self.owner
        else:
            if lease.owner.id == self.owner:
                self.owner, self.finished = None, status == "finished"

    @invariant()
    def the_record_is_what_happened(self) -> None:
        record = read(self.store)
        if record is None:
            assert self.owner is None
            return
        assert (record.owner.id if record.owner else None) == self.owner
        assert (record.status == "running") == (self.owner is not None)
        assert (record.status == "finished") == self.finished
        assert record.attempt == self.attempt
        assert [commit.path for commit in record.checkpoints] == self.committed[:2]


Ownership.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestOwnership = Ownership.TestCase
