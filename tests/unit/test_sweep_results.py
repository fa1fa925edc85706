import shlex
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl import arguments
from mtl.config import Task
from mtl.sweep import arguments as sweep_arguments
from mtl.sweep.board import Board
from mtl.sweep.pareto import front
from mtl.sweep.picture import draw
from mtl.sweep.record import Trial
from mtl.sweep.results import command, conclude, ranked, table
from tests.helpers.jobs import tiny_config, write_config
from tests.helpers.sweeps import TWO, board_at, execute, metrics_of

PNG = b"\x89PNG\r\n\x1a\n"

points = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3), st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1
)


@given(points)
def test_nothing_beats_the_front_and_the_front_beats_everything_else(named: dict[str, tuple[int, int]]) -> None:
    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a != b and all(x >= y for x, y in zip(a, b, strict=True))

    best = front(named)
    assert best
    assert not any(beats(named[a], named[b]) for a, b in combinations(best, 2))
    for name in named.keys() - best:
        assert any(beats(named[other], named[name]) for other in best)


def swept(storage: Path, **changes: object) -> Board:
    with board_at(storage, trials=6, **changes) as board:
        execute(board, len(board.terms.baselines) + 1)
        for outcome in ("pruned", "failed"):
            trial = board.next()
            assert trial is not None
            if outcome == "pruned":
                board.report(trial.id, 1, metrics_of(board, trial, 1))
                board.prune(trial.id)
                board.end(trial.id, "stopped")
            else:
                board.end(trial.id, "failed", error="diverged")
        execute(board)
        return board


def test_the_table_is_sorted_and_marks_what_matters(tmp_path: Path) -> None:
    board = swept(tmp_path)
    order = ranked(board)
    scores = [board.score(trial) for trial in order if trial.status == "finished" and trial.kind != "single"]
    assert scores == sorted(scores, key=lambda score: -(score or 0))
    assert [trial.kind for trial in order[-2:]] == ["single", "single"]
    lines = table(board).splitlines()
    best = board.best
    assert best is not None
    ids = {trial.id for trial in order}
    rows = {line.split()[0]: line for line in lines if line.split() and line.split()[0] in ids}
    assert list(rows) == [trial.id for trial in order]
    assert "best" in rows[best.id]
    assert "front" in rows[best.id]
    assert "baseline" in rows["uniform"]
    assert "baseline" in rows["single-angle"]
    assert "pruned" in rows["t002"]
    assert "failed" in rows["t003"]
    assert "°" in rows["single-angle"]
    assert "(+0.0 %)" not in rows["single-angle"]


@pytest.mark.parametrize("tasks", [1, 2, 4, 8])
def test_there_is_a_picture_for_any_number_of_tasks(tmp_path: Path, tasks: int) -> None:
    kinds = [Task(kind="multiclass", label="object"), Task(kind="circular", label="angle")]
    config = tiny_config("data", tmp_path, name="sweep", tasks={f"t{n}": kinds[n % 2] for n in range(tasks)}, epochs=4)
    assert draw(swept(tmp_path, config=config)).startswith(PNG)


def test_there_is_a_picture_without_relative_gains(tmp_path: Path) -> None:
    with board_at(tmp_path, metric="angle/error_degrees") as board:
        while (trial := board.next()) is not None:
            val = metrics_of(board, trial, 4)
            if "object" in val:
                val["object"]["accuracy"] = 0.0
            board.end(trial.id, "finished", val=val, test=val)
    assert draw(board).startswith(PNG)
    assert "0.0 %" in table(board)


def test_the_end_shows_everything_and_keeps_it(tmp_path: Path) -> None:
    said: list[str] = []
    board = swept(tmp_path)
    assert conclude(board, ["shapes"], said.append) == 0
    assert board.store.get("pareto.png").startswith(PNG)
    assert board.store.get("table.txt").decode() == table(board)
    assert any(line.startswith("train it  python jobs/train.py shapes --name sweep-best --") for line in said)
    assert any("on validation; on test " in line for line in said)


def test_a_stopped_sweep_says_that_the_same_command_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    with board_at(tmp_path) as board:
        execute(board, 2)
        assert conclude(board, ["shapes"], said.append) == 143
    assert "the same command goes on" in said[-1]


@pytest.mark.parametrize("name_flag", [["--name", "mine"], ["--name=mine"], []])
def test_the_command_trains_the_very_configuration_of_the_trial(tmp_path: Path, name_flag: list[str]) -> None:
    tasks = {"object": TWO["object"], "its_angle-b": TWO["angle"]}
    path = write_config(tmp_path / "tiny two.yaml", tiny_config("data", tmp_path, tasks=tasks))
    argv = ["--config", str(path), *name_flag, "--epochs", "3", "--sweep.trials", "3", "--optimizer.lr", "0.5"]
    asked = sweep_arguments.parse(argv)
    with Board(asked.config, asked.sweep, print) as board:
        execute(board)
    for trial in board.trials:
        if trial.kind != "single":
            words = shlex.split(command(trial, asked.words, "best"))
            assert words[:2] == ["python", "jobs/train.py"]
            again = arguments.parse(words[2:]).config
            expected = board.terms.config_of(trial)
            assert again == expected.model_copy(update={"name": "best", "storage": asked.config.storage})


def test_the_uniform_baseline_can_win(tmp_path: Path) -> None:
    said: list[str] = []
    with board_at(tmp_path) as board:
        while (trial := board.next()) is not None:
            good = 4 if trial.kind != "sampled" else 1
            board.end(trial.id, "finished", val=metrics_of(board, trial, good), test=metrics_of(board, trial, good))
        assert conclude(board, ["shapes"], said.append) == 0
    assert any("uniform weights were not beaten" in line for line in said)
    trial = board.best
    assert isinstance(trial, Trial)
    assert command(trial, ["shapes"], "b").endswith("--tasks.object.weight 1 --tasks.angle.weight 1")
