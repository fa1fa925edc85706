from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from mtl.attempt import Attempt, begin_attempt, retain, unneeded
from mtl.errors import RunLost, RunOwned, StoreError
from mtl.lease import Lease, acquire
from mtl.record import RUN, Record, checkpoint_path, read
from tests.helpers.memory_store import MemoryStore
from tests.helpers.runs import NEVER_S, FakeTime, die, make_commit, record_of


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


def test_retain_leaves_what_is_uploaded_below_a_damaged_commit(store: MemoryStore, own: Callable[..., Lease]) -> None:
    """An attempt that had to go back writes steps that are older than a commit which is still named."""
    lease = own()
    first = begin_attempt(store, lease.owner.id)
    for step in (10, 20):
        first.commit(make_commit(step))
    record = begin_attempt(store, lease.owner.id).record
    uploading = f"{checkpoint_path(15, 2)}/model.safetensors"
    assert unneeded([uploading], record) == []
    assert unneeded([uploading], record.model_copy(update={"owner": None})) == [uploading]


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
