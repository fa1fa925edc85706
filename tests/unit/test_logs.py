"""Logs arrive in parts, in order, and survive storage that fails for a while."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl.errors import StoreError
from mtl.logs import Logs
from tests.helpers.memory_store import MemoryStore


def text(store: MemoryStore, source: str) -> str:
    return "".join(store.get(key).decode() for key in sorted(store.list(f"logs/a3/{source}-")))


@given(st.lists(st.tuples(st.sampled_from(["driver", "worker-0-17"]), st.text(max_size=3), st.booleans()), max_size=12))
def test_what_is_shipped_is_what_was_said(said: list[tuple[str, str, bool]]) -> None:
    store = MemoryStore()
    logs, expected = Logs(store, 3), {"driver": "", "worker-0-17": ""}
    for source, words, ship in said:
        logs.add(source, words)
        expected[source] += words
        if ship:
            logs.ship()
    logs.ship()
    assert {source: text(store, source) for source in expected} == expected
    parts = len(store.list("logs/"))
    logs.ship()
    assert len(store.list("logs/")) == parts, "there was nothing new"


def test_storage_that_fails_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    logs = Logs(store, 3)
    logs.say("one")

    def failing(*_: object) -> None:
        raise StoreError("The disk is in a bad mood.")

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", failing)
        logs.ship()
    logs.say("two")
    logs.ship()
    lines = text(store, "driver").splitlines()
    assert [line.partition("  ")[2] for line in lines] == ["one", "two"]
    assert store.list("logs/") == ["logs/a3/driver-000001.log"]
