from collections.abc import Callable

import pytest

from mtl.attempt import begin_attempt
from mtl.errors import ConfigError, RunError
from mtl.lease import Lease, acquire
from mtl.record import RUN, check_name
from tests.helpers.memory_store import MemoryStore
from tests.helpers.runs import FakeTime, record_of


@pytest.mark.parametrize("name", ["a", "resnet50.v2_lr-0.1", "0" * 63])
def test_a_good_name_passes(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "a/b", "..", "a b", "0" * 64, "a\n"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="run name"):
        check_name(name)


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
