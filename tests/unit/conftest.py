"""Fixtures for tests of runs."""

from collections.abc import Callable, Iterator

import pytest

from mtl.lease import Lease, acquire
from mtl.precision import set_numerics
from tests.helpers.memory_store import MemoryStore
from tests.helpers.runs import NEVER_S, FakeTime, die


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


@pytest.fixture
def numerics_as_before() -> Iterator[None]:
    """A job in this process tells torch how exact it wants products; others want the usual."""
    yield
    set_numerics("fp32", deterministic=False)
