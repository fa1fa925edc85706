"""What every store that runs may live on must do; test modules give it a `store` fixture, empty for each test."""

import itertools
import multiprocessing
import pickle
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtl.errors import Conflict, NotFound, StoreError
from mtl.store import Store, open_store
from tests.helpers.held_writes import CONTENT, held

SPAWN = multiprocessing.get_context("spawn")  # a forked child would share the parent's threads and sockets
BAD_KEYS = ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a/..", "a\0b"]
LARGE_BYTES = 100_000
KEY_PART = st.text("abAB09 #?%+&=~é日._-", min_size=1, max_size=6).filter(lambda part: part not in (".", ".."))
# Files end in .o and folders do not: on a disk, no key can be a folder of another.
KEYS = st.builds(
    lambda folders, name: "/".join([*folders, name + ".o"]),
    st.lists(KEY_PART.filter(lambda part: not part.endswith(".o")), max_size=2),
    KEY_PART,
)
ON_ONE_STORE = settings(
    max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]
)


def create(store: Store, barrier: threading.Barrier) -> bytes | None:
    """What this writer wrote as the first of all, None if it was not."""
    data = uuid.uuid4().bytes
    barrier.wait()
    try:
        store.put_if("first", data, version=None)
    except Conflict:
        return None
    return data


def count_up(store: Store, times: int) -> None:
    """Add `times` to the counter, one by one."""
    for _ in range(times):
        while True:
            data, version = store.get_versioned("counter")
            number = int(data.split()[0]) + 1
            try:
                store.put_if("counter", f"{number} {uuid.uuid4()}".encode(), version=version)
                break
            except Conflict:
                continue


def write_patterns(store: Store, times: int) -> None:
    """Write objects of one repeated byte, all as long as each other."""
    for number in range(times):
        store.put("pattern", bytes([number % 256]) * LARGE_BYTES)


def is_pattern(data: bytes) -> bool:
    return data == data[:1] * LARGE_BYTES


class StoreContract:
    counts = 20  # of each counting process
    writes = 200  # while a reader looks

    def test_missing_object(self, store: Store) -> None:
        for read in (store.get, store.get_versioned, store.stat, lambda key: store.get_range(key, 0, 1)):
            for key in ("none", "no/such/folder"):
                with pytest.raises(NotFound, match="none" if key == "none" else "no/such/folder"):
                    read(key)
        assert store.list() == []
        assert store.list("no/such/") == []
        store.delete("none")
        store.delete("no/such/folder")

    def test_folder_is_not_an_object(self, store: Store) -> None:
        store.put("folder/key", b"x")
        for read in (store.get, store.stat, lambda key: store.get_range(key, 0, 1)):
            with pytest.raises(NotFound):
                read("folder")
        store.delete("folder")
        assert store.list() == ["folder/key"]

    @pytest.mark.parametrize("size", [0, 1, LARGE_BYTES])
    def test_reads_agree_with_the_write(self, store: Store, size: int) -> None:
        data, began_s = bytes(size), time.time()
        version = store.put("a/b", data)
        assert store.get("a/b") == data
        assert store.get_versioned("a/b") == (data, version)
        stat = store.stat("a/b")
        assert (stat.size_bytes, stat.version) == (size, version)
        assert began_s - 2 < stat.written_s < time.time() + 2, "S3 counts whole seconds"

    @pytest.mark.parametrize("size", [1, LARGE_BYTES])
    def test_version_changes_with_content_of_the_same_size(self, store: Store, size: int) -> None:
        versions = [store.put("key", bytes([number]) * size) for number in range(20)]
        assert len(set(versions)) == len(versions)
        assert store.stat("key").version == versions[-1]

    @ON_ONE_STORE
    @given(data=st.data())
    def test_list_gives_keys_by_prefix(self, store: Store, data: st.DataObject) -> None:
        keys = data.draw(st.sets(KEYS, max_size=4))
        store = store.child(uuid.uuid4().hex)
        for key in keys:
            store.put(key, key.encode())
        assert store.list() == sorted(keys)
        assert list(store.sizes().items()) == [(key, len(key.encode())) for key in sorted(keys)]
        for key in keys:
            assert store.get(key) == key.encode()
            prefix = key[: data.draw(st.integers(0, len(key)))]
            assert store.list(prefix) == sorted(key for key in keys if key.startswith(prefix))
            assert list(store.sizes(prefix)) == store.list(prefix)
        for key in keys:
            store.delete(key)
        assert store.list() == []

    def test_ranges(self, store: Store) -> None:
        data = bytes(range(256)) * 400
        version = store.put("key", data)

        @settings(max_examples=20)
        @given(st.integers(0, len(data) + 10), st.integers(1, len(data) + 10), st.sampled_from([None, version]))
        def check(offset: int, length: int, pinned: str | None) -> None:
            if offset + length <= len(data):
                assert store.get_range("key", offset, length, version=pinned) == data[offset : offset + length]
                assert store.get_range_versioned("key", offset, length) == (data[offset : offset + length], version)
            else:
                with pytest.raises(StoreError, match="ended inside the range"):
                    store.get_range("key", offset, length, version=pinned)
                with pytest.raises(StoreError, match="ended inside the range"):
                    store.get_range_versioned("key", offset, length)

        check()
        for offset, length in ((-1, 1), (0, 0), (0, -1)):
            for read in (store.get_range, store.get_range_versioned):
                with pytest.raises(StoreError, match="no such range"):
                    read("key", offset, length)
        traffic = store.traffic()
        assert (traffic.retries, traffic.throttles) == (0, 0)

    @pytest.mark.parametrize("size", [8, LARGE_BYTES])
    def test_pinned_range_of_a_rewritten_object(self, store: Store, size: int) -> None:
        version = store.put("key", b"a" * size)
        assert store.get_range("key", 1, 3, version=version) == b"aaa"
        store.put("key", b"b" * size)
        with pytest.raises(StoreError, match="rewritten"):
            store.get_range("key", 1, 3, version=version)
        store.delete("key")
        with pytest.raises(NotFound):
            store.get_range("key", 1, 3, version=version)

    @pytest.mark.parametrize("size", [0, 10, 9 << 20])
    def test_put_file(self, store: Store, tmp_path: Path, size: int) -> None:
        data = (uuid.uuid4().bytes * (size // 16 + 1))[:size]
        (tmp_path / "source").write_bytes(data)
        store.put("a/copy", b"before")
        store.put_file("a/copy", tmp_path / "source")
        assert store.get("a/copy") == data
        assert store.stat("a/copy").size_bytes == size
        assert store.get_versioned("a/copy")[1] == store.stat("a/copy").version

    def test_put_file_without_a_source(self, store: Store, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            store.put_file("copy", tmp_path / "none")
        assert store.list() == []

    def test_conditional_writes(self, store: Store) -> None:
        first = store.put_if("a/key", b"first", version=None)
        assert store.get_versioned("a/key") == (b"first", first)
        with pytest.raises(Conflict, match="another writer"):
            store.put_if("a/key", b"other", version=None)
        second = store.put_if("a/key", b"second", version=first)
        assert second == store.stat("a/key").version
        with pytest.raises(Conflict):
            store.put_if("a/key", b"third", version=first)
        assert store.get_versioned("a/key") == (b"second", second)
        assert store.list() == ["a/key"]

    def test_conditional_write_of_a_deleted_object(self, store: Store) -> None:
        version = store.put_if("key", b"data", version=None)
        store.delete("key")
        with pytest.raises(Conflict):
            store.put_if("key", b"more", version=version)
        assert store.list() == []
        store.put_if("key", b"anew", version=None)

    def test_conditional_write_repeated_after_a_lost_answer(self, store: Store) -> None:
        first = store.put_if("key", b"first", version=None)
        assert store.put_if("key", b"first", version=None) == first
        second = store.put_if("key", b"second", version=first)
        assert store.put_if("key", b"second", version=first) == second

    def test_keys_that_leave_the_folder(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "source").write_bytes(b"")
        calls: tuple[Callable[[str], object], ...] = (
            store.get,
            store.get_versioned,
            lambda key: store.get_range(key, 0, 1),
            store.stat,
            lambda key: store.put(key, b""),
            lambda key: store.put_file(key, tmp_path / "source"),
            lambda key: store.put_if(key, b"", version=None),
            store.delete,
            store.child,
        )
        for key, call in itertools.product(BAD_KEYS, calls):
            with pytest.raises(StoreError, match="does not name an object"):
                call(key)

    def test_prefixes_that_leave_the_folder(self, store: Store) -> None:
        for prefix in ("/", "/a", "../", "a/../b", "a//"):
            with pytest.raises(StoreError, match="does not name an object"):
                store.list(prefix)

    def test_child_is_a_folder_below(self, store: Store) -> None:
        child = store.child("a/b")
        assert child.uri == f"{store.uri}/a/b"
        child.put("c", b"1")
        store.put("a/bc", b"2")
        assert store.list() == ["a/b/c", "a/bc"]
        assert child.list() == ["c"]

    def test_address_and_pickle_give_the_same_store(self, store: Store) -> None:
        store.put("key", b"data")
        for same in (open_store(store.uri), open_store(store.uri + "/"), pickle.loads(pickle.dumps(store))):
            assert same == store
            assert same.uri == store.uri
            assert same.get("key") == b"data"

    def test_of_eight_creators_one_wins(self, store: Store) -> None:
        for _ in range(5):
            barrier = threading.Barrier(8)
            with ThreadPoolExecutor(8) as pool:
                wrote = list(pool.map(lambda _, barrier=barrier: create(store, barrier), range(8)))
            assert [data for data in wrote if data] == [store.get("first")]
            store.delete("first")

    def test_counting_processes_lose_nothing(self, store: Store) -> None:
        store.put_if("counter", b"0", version=None)
        with ProcessPoolExecutor(4, mp_context=SPAWN) as pool:
            for done in [pool.submit(count_up, store, self.counts) for _ in range(4)]:
                done.result()
        assert store.get("counter").split()[0] == str(4 * self.counts).encode()

    def test_readers_never_see_a_part(self, store: Store) -> None:
        store.put("pattern", bytes(LARGE_BYTES))
        with ThreadPoolExecutor(1) as pool:
            writing: Future[None] = pool.submit(write_patterns, store, self.writes)
            while not writing.done():
                assert is_pattern(store.get("pattern"))
                assert store.stat("pattern").size_bytes == LARGE_BYTES
                assert store.list() == ["pattern"]
            writing.result()

    def test_killed_writer_leaves_a_whole_object(self, store: Store) -> None:
        before = store.put("pattern", b"\xff" * LARGE_BYTES)
        writer = SPAWN.Process(target=write_patterns, args=(store, 1_000_000))
        writer.start()
        try:
            while store.stat("pattern").version == before:
                assert writer.is_alive()
        finally:
            writer.kill()
            writer.join()
        assert is_pattern(store.get("pattern"))
        assert store.list() == ["pattern"]
        store.put("pattern", b"next")
        assert store.get("pattern") == b"next"

    def test_write_of_a_killed_process_is_found_and_discarded(self, store: Store, tmp_path: Path) -> None:
        began_s = time.time()
        store.put("folder/whole", b"1")
        assert list(store.unfinished()) == []
        with held(store, "folder/half", tmp_path) as writer:
            writer.kill()
            writer.join()
        (left,) = store.unfinished()
        assert left.key.startswith("folder/")
        assert 0 < left.size_bytes <= len(CONTENT)
        assert began_s - 2 < left.written_s < time.time() + 2
        (seen_from_below,) = store.child("folder").unfinished()
        assert f"folder/{seen_from_below.key}" == left.key
        assert list(store.child("fold").unfinished()) == []
        assert store.list() == ["folder/whole"]
        store.child("folder").discard(seen_from_below)
        assert list(store.unfinished()) == []
        store.discard(left)
        assert store.list() == ["folder/whole"]

    def test_write_that_was_finished_meanwhile_is_not_discarded(self, store: Store, tmp_path: Path) -> None:
        with held(store, "folder/whole", tmp_path) as writer:
            (begun,) = store.unfinished()
            assert store.list() == []
            (tmp_path / "go").touch()
            writer.join()
            assert writer.exitcode == 0
        assert list(store.unfinished()) == []
        store.discard(begun)
        assert store.get("folder/whole") == CONTENT
