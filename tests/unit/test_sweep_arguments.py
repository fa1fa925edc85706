from pathlib import Path

import pytest

from mtl.errors import ConfigError
from mtl.sweep.arguments import parse


def test_the_search_and_the_configuration_are_told_apart() -> None:
    asked = parse(
        ["shapes", "--sweep.trials", "8", "--epochs", "2", "--sweep.search", "random", "--optimizer.lr", "0.1"]
    )
    assert (asked.sweep.trials, asked.sweep.search) == (8, "random")
    assert (asked.config.epochs, asked.config.optimizer.lr) == (2, 0.1)
    assert asked.words == ("shapes", "--epochs", "2", "--optimizer.lr", "0.1")
    assert asked.config.name == "shapes-sweep"


@pytest.mark.parametrize("flag", [["--name", "mine"], ["--name=mine"]])
def test_a_name_of_ones_own(flag: list[str]) -> None:
    assert parse(["shapes", *flag]).config.name == "mine"


def test_flags_change_what_a_sweep_file_says(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("trials: 5\nmetric: shape/f1\nspace: {augment.brightness: {low: 0, high: 0.5}}\n")
    for flag in (["--sweep-file", str(path)], [f"--sweep-file={path}"]):
        asked = parse(["shapes", *flag, "--sweep.trials", "7", "--sweep.retry-failed"])
        assert (asked.sweep.trials, asked.sweep.metric, asked.sweep.retry_failed) == (7, "shape/f1", True)
        assert list(asked.sweep.space) == ["augment.brightness"]
        assert asked.words == ("shapes",)


@pytest.mark.parametrize("argv", [["shapes", "--sweep.trails", "3"], ["shapes", "--sweep.search", "grid"]])
def test_what_no_flag_is_ends_with_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 2
    assert argv[1] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["nonsense"], "no recipe 'nonsense'"), (["shapes", "--sweep.trials", "0"], "sweep.trials"), (["auto"], "auto")],
)
def test_what_a_person_gets_wrong_is_one_clear_error(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        ([], ["usage: python jobs/tune.py RECIPE", "--sweep.metric", "cifar10"]),
        (["--help"], ["usage: python jobs/tune.py RECIPE"]),
        (["shapes", "--help"], ["--sweep.trials", "--optimizer.lr"]),
    ],
)
def test_help(argv: list[str], shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert not caught.value.code
    out = capsys.readouterr().out
    assert all(text in out for text in shown)
