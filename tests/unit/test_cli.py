"""How entry scripts end, and repeated flags."""

import pytest

from mtl.cli import pairs, run
from mtl.errors import ConfigError, DataError


def interrupted() -> None:
    raise KeyboardInterrupt


def refused() -> None:
    raise DataError("The table is empty.", do="fill it")


@pytest.mark.parametrize(
    ("main", "status", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: 143, 143, ""),
        (interrupted, 130, "interrupted"),
        (refused, 2, "The table is empty.\n  do:       fill it"),
    ],
)
def test_the_status_and_the_message(main, status: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(main)
    assert (exit_.value.code or 0) == status
    assert said in capsys.readouterr().err


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)


def test_pairs() -> None:
    assert pairs("--kinds", ["a=b", "c=d=e"]) == {"a": "b", "c": "d=e"}
    for wrong in (["a"], ["=b"], ["a="], ["a=b", "a=c"]):
        with pytest.raises(ConfigError, match="--kinds"):
            pairs("--kinds", wrong)
