"""What the janitor finds and deletes, and that it takes nothing from a run, whatever happens meanwhile."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from jobs.janitor import janitor as job
from mtl import janitor
from mtl.attempt import Attempt, begin_attempt, retain
from mtl.errors import ConfigError, RunError, RunLost
from mtl.lease import Lease, acquire
from mtl.owner import utc
from mtl.record import CHECKPOINTS, Commit, Record, checkpoint_path, read, swap
from mtl.store import LocalStore, Store
from tests.helpers.held_writes import CONTENT, held
from tests.helpers.memory_store import MemoryStore
from tests.helpers.runs import NEVER_S, FakeTime, die, make_commit

HOUR_S = 3600.0
FILES = ("model.safetensors", "manifest.json")


def own(store: Store) -> Lease:
    lease = acquire(store, "cats", on_wait=lambda _: None, heartbeat_s=NEVER_S, clock=FakeTime().clock())
    assert isinstance(lease, Lease)
    return lease


def let_time_pass(store: Store, seconds: float, *, dead: bool = False) -> None:
    """As if the owner's last sign of life had been so long ago; `dead`: and its process were not there any more."""

    def older(record: Record | None) -> Record:
        assert record is not None
        assert record.owner is not None
        owner = record.owner.model_copy(update={"pid_started": "1"}) if dead else record.owner
        return record.model_copy(update={"expires": utc(-seconds), "owner": owner})

    swap(store, older)


class Writer:
    """One attempt's rank 0; its process may outlive the driver that owned the run."""

    def __init__(self, store: Store, attempt: Attempt, back: int) -> None:
        self.store, self.attempt = store, attempt
        commits = attempt.record.checkpoints
        back = min(back, max(len(commits) - 1, 0))  # the newest ones are damaged
        self.damaged, self.step = commits[:back], commits[back].step if commits else 0
        self.uploading: Commit | None = None

    def upload(self, steps: int) -> None:
        """Begin a checkpoint, whatever has become of the one before it."""
        self.step += steps
        self.uploading = make_commit(self.step, self.attempt.number)
        self.store.put(f"{self.uploading.path}/{FILES[0]}", b"tensors")

    def commit(self, best: bool) -> Record:
        """Complete it, or a whole one where none has begun."""
        if self.uploading is None:
            self.upload(3)
        commit, self.uploading = self.uploading, None
        assert commit is not None
        self.store.put(f"{commit.path}/{FILES[1]}", b"{}")
        return self.attempt.commit(commit, damaged=self.damaged, best=best)


class Cleaning(RuleBasedStateMachine):
    """Drivers that own a run, die and come back, their workers, alive or thought dead, and a janitor among them."""

    writers = Bundle("writers")

    @initialize()
    def empty(self) -> None:
        self.store = MemoryStore()
        self.lease: Lease | None = None
        self.made: list[Lease] = []
        self.live: Writer | None = None

    def teardown(self) -> None:
        for lease in getattr(self, "made", ()):
            die(lease)

    @rule(target=writers, back=st.integers(0, 2))
    def begin(self, back: int) -> Writer:
        if self.lease is None:
            self.lease = own(self.store)
            self.made.append(self.lease)
        self.live = Writer(self.store, begin_attempt(self.store, self.lease.owner.id), back)
        return self.live

    @rule(writer=writers, steps=st.integers(1, 3))
    def upload(self, writer: Writer, steps: int) -> None:
        writer.upload(steps)

    @rule(writer=writers, best=st.booleans(), retains=st.booleans())
    def commit(self, writer: Writer, best: bool, retains: bool) -> None:
        try:
            record = writer.commit(best)
        except RunLost:
            assert writer is not self.live, "the run in progress could not commit"
            return
        if retains:
            retain(self.store, record)

    @rule(keep=st.integers(0, 2))
    def rewind(self, keep: int) -> None:
        if self.live is not None:
            self.live.attempt.change(lambda record: {"checkpoints": record.checkpoints[-keep:] if keep else ()})
            self.live.uploading, self.live = None, None

    @rule(long_ago=st.booleans())
    def kill(self, long_ago: bool) -> None:
        """The driver dies. Its worker may still commit."""
        if self.lease is not None:
            die(self.lease)
            self.lease, self.live = None, None
            let_time_pass(self.store, 2 * HOUR_S if long_ago else 0.0)

    @rule()
    def release(self) -> None:
        if self.lease is not None:
            self.lease.release("stopped")
            self.lease, self.live = None, None

    @rule()
    def misdate(self) -> None:
        """The owner lives, but its clock is wrong."""
        if self.lease is not None:
            let_time_pass(self.store, 2 * HOUR_S)

    @rule(writer=writers, at=st.integers(0, 12), uploads=st.booleans())
    def clean(self, writer: Writer, at: int, uploads: bool) -> None:
        """A janitor; ahead of its operation number `at`, a writer goes on."""
        reached = len(self.store.operations) + at

        def meanwhile(_: str) -> None:
            if len(self.store.operations) == reached:
                self.store.before(None)
                if uploads:
                    self.upload(writer, 1)
                else:
                    self.commit(writer, best=False, retains=True)

        def beat() -> None:
            if self.lease is not None:
                self.lease.beat()

        self.store.before(meanwhile)
        janitor.delete(self.store, HOUR_S, lambda _: None, clock=FakeTime(beat).clock())
        self.store.before(None)

    @rule()
    def clean_after_a_long_time(self) -> None:
        record = read(self.store)
        if record is None or self.lease is not None:
            return
        if record.owner is not None:
            let_time_pass(self.store, 2 * HOUR_S)
        foreseen = janitor.find(self.store, HOUR_S)
        assert janitor.delete(self.store, HOUR_S, lambda _: None, clock=FakeTime().clock()) == foreseen
        record = read(self.store)
        assert record is not None
        named = {commit.path for commit in (*record.checkpoints, *([record.best] if record.best else []))}
        assert {key.rpartition("/")[0] for key in self.store.list(CHECKPOINTS)} == named

    @invariant()
    def every_commit_is_whole(self) -> None:
        record = read(self.store)
        if record is None:
            return
        keys = self.store.list(CHECKPOINTS)
        for commit in (*record.checkpoints, *([record.best] if record.best else [])):
            assert {f"{commit.path}/{file}" for file in FILES} <= {*keys}

    @invariant()
    def the_owner_keeps_its_claim(self) -> None:
        if self.lease is not None:
            record = read(self.store)
            assert record is not None
            assert record.owner == self.lease.owner


Cleaning.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestCleaning = Cleaning.TestCase


@pytest.fixture
def run(tmp_path: Path) -> LocalStore:
    """A run whose driver was killed two days ago: a commit, an upload that no commit names, a half-written file."""
    store = LocalStore(tmp_path / "runs" / "cats")
    lease = own(store)
    writer = Writer(store, begin_attempt(store, lease.owner.id), 0)
    writer.upload(10)
    writer.commit(best=False)
    writer.upload(10)
    die(lease)
    leave_half_written(store.root / checkpoint_path(20, 1), hours=48)
    let_time_pass(store, 48 * HOUR_S, dead=True)
    return store


def leave_half_written(folder: Path, hours: float) -> Path:
    path = folder / f".mtl-{'0a' * 16}"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(2_000_000))
    then_s = path.stat().st_mtime - hours * HOUR_S
    os.utime(path, (then_s, then_s))
    return path


def content(store: LocalStore) -> dict[str, bytes]:
    return {str(path.relative_to(store.root)): path.read_bytes() for path in store.root.rglob("*") if path.is_file()}


def test_the_job_lists_and_deletes_only_where_it_is_told_to(
    run: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(run)
    assert job(run.uri) == 0
    listed = capsys.readouterr().out
    for fragment in ("step-000000020-a1/model.safetensors  0.0 MB", ".mtl-0a0a", "2.0 MB, 48.0 h old", "--delete"):
        assert fragment in listed
    assert content(run) == before

    assert job(run.uri, delete=True) == 0
    assert "deleted: 2 in all, 2.0 MB" in capsys.readouterr().out
    commit = checkpoint_path(10, 1)
    assert run.list() == [*sorted(f"{commit}/{file}" for file in FILES), "run.json"]
    assert not (run.root / checkpoint_path(20, 1)).exists()
    assert job(run.uri, delete=True) == 0
    assert "nothing to delete" in capsys.readouterr().out

    attempt = begin_attempt(run, own(run).owner.id)
    assert [c.step for c in attempt.record.checkpoints] == [10], "it can be resumed"


def test_what_may_be_alive_is_left_alone_and_named(run: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    let_time_pass(run, 0.5 * HOUR_S)
    before = content(run)
    assert job(run.uri, delete=True, older_than_hours=72) == 0
    said = capsys.readouterr().out
    assert "left alone: 1 unfinished write, younger than 72.0 h" in said
    assert "left alone: 1 file that attempt 1 may be writing, for process" in said
    assert content(run) == before


def test_a_writer_at_work_is_not_disturbed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "data")
    with held(store, "shards/a.parquet", tmp_path) as writer:
        found = janitor.delete(store, HOUR_S, print)
        assert (found.unnamed, found.unfinished, len(found.left)) == ({}, [], 1)
        (tmp_path / "go").touch()
        writer.join()
        assert writer.exitcode == 0
    assert store.get("shards/a.parquet") == CONTENT


def test_a_folder_that_is_no_run_may_hold_unfinished_writes(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "data")
    store.put(f"{checkpoint_path(1, 1)}/theirs", b"no run.json says whose this is")
    half = leave_half_written(tmp_path / "data" / "shards", hours=2)
    assert job(store.uri, delete=True, older_than_hours=1) == 0
    assert not half.exists()
    assert len(store.list()) == 1
    with pytest.raises(RunError, match="There is no run at"):
        job(store.uri)


@pytest.mark.parametrize("hours", [0.9, -1.0, float("nan")])
def test_writers_are_given_an_hour(run: LocalStore, hours: float) -> None:
    with pytest.raises(ConfigError, match="could be deleted"):
        job(run.uri, older_than_hours=hours)


def test_a_claim_that_is_in_nobodys_way_is_not_ended(run: LocalStore) -> None:
    for key in run.list(f"{checkpoint_path(20, 1)}/"):
        run.delete(key)
    before = run.get("run.json")
    assert len(janitor.delete(run, HOUR_S, fail).unfinished) == 1
    assert run.get("run.json") == before


fail: Callable[[str], None] = pytest.fail
