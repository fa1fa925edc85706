"""Owning a run around its training: what is left behind however it ends."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtl.config import Config, load
from mtl.console import RunConsole
from mtl.errors import DataError, RunOwned, StoreError
from mtl.lease import Lease, acquire
from mtl.record import Record, read
from mtl.session import already, train
from mtl.store import LocalStore, open_store
from tests.helpers.jobs import tiny_config

RESULT = {"status": "finished", "steps": 6, "metrics": {"test": {"object": {"accuracy": 1 / 3}}}}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return tiny_config("data", tmp_path)


def record(config: Config) -> Record:
    found = read(open_store(config.storage).child(config.name))
    assert found is not None
    return found


def returning(result: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    return lambda _: result


def never(_: str) -> dict[str, Any]:
    raise AssertionError("a finished run was trained again")


def test_while_it_trains_the_run_is_owned_and_its_configuration_saved(config: Config) -> None:
    def launch(owner: str) -> dict[str, Any]:
        found = record(config)
        assert found.owner is not None
        assert (found.owner.id, found.status) == (owner, "running")
        assert load(Path(config.storage) / config.name / "config.yaml") == config
        return RESULT

    assert train(config, RunConsole(), launch) == RESULT


def test_a_finished_run_keeps_its_result_and_is_not_trained_again(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config, RunConsole(), returning(RESULT))
    assert (record(config).status, record(config).result, record(config).owner) == ("finished", RESULT, None)
    assert train(config, RunConsole(), never) == RESULT
    assert "the run 'tiny' is finished" in capsys.readouterr().out
    assert already(record(config), RunConsole()) == RESULT


def test_a_stopped_run_can_be_taken_up_again(config: Config) -> None:
    stopped = {"status": "stopped", "steps": 3}
    assert train(config, RunConsole(), returning(stopped)) == stopped
    assert (record(config).status, record(config).result, record(config).owner) == ("stopped", None, None)
    assert train(config, RunConsole(), returning(RESULT)) == RESULT


@pytest.mark.parametrize("error", [DataError("A shard is damaged."), ZeroDivisionError(), KeyboardInterrupt()])
def test_a_failed_run_shows_its_error_and_can_be_taken_up_again(config: Config, error: BaseException) -> None:
    def launch(_: str) -> dict[str, Any]:
        raise error

    with pytest.raises(type(error)) as caught:
        train(config, RunConsole(), launch)
    assert caught.value is error
    assert (record(config).status, record(config).owner) == ("failed", None)
    assert train(config, RunConsole(), returning(RESULT)) == RESULT


def test_an_error_is_not_hidden_by_storage_that_fails_too(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(_: str) -> dict[str, Any]:
        def broken(*_: object, **__: object) -> str:
            raise StoreError("storage is gone")

        monkeypatch.setattr(LocalStore, "put_if", broken)
        raise DataError("A shard is damaged.")

    with pytest.raises(DataError, match="A shard is damaged"):
        train(config, RunConsole(), launch)


def test_a_run_of_another_live_job_is_left_alone(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(config.storage).child(config.name)
    other = acquire(store, config.name, on_wait=print, heartbeat_s=0.05)
    assert isinstance(other, Lease)
    monkeypatch.setattr("mtl.lease._POLL_S", 0.1)
    with pytest.raises(RunOwned, match="belongs to another live job"):
        train(config, RunConsole(), never)
    assert record(config).owner == other.owner
    other.release("stopped")
