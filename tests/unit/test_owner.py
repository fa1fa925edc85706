import pytest

from mtl.owner import Owner


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
def test_only_proof_counts_as_death(change: dict[str, str], dead: bool) -> None:
    assert Owner.here().model_copy(update=change).is_dead() is dead


def test_a_system_that_identifies_no_boot_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl.owner._boot_id", lambda: "")
    assert not Owner.here().model_copy(update={"pid_started": "1"}).is_dead()
