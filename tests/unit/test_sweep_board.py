import json
from pathlib import Path

import pytest

from mtl.config import Augment, Config, Optimizer, Task
from mtl.config_evaluation import Evaluation
from mtl.config_order import Rebalance
from mtl.errors import CheckpointError, ConfigError, MtlError, RunLost, RunOwned
from mtl.store import open_store
from mtl.sweep.record import SWEEP
from tests.helpers.jobs import tiny_config
from tests.helpers.sweeps import TWO, board_at, execute, metrics_of

BASELINES = ["single-object", "single-angle", "uniform"]


def test_baselines_come_first_and_new_points_wait_for_them(tmp_path: Path) -> None:
    with board_at(tmp_path) as board:
        handed = [trial.id for _ in range(3) if (trial := board.next())]
        assert handed == BASELINES
        assert board.next() is None
        assert not board.complete
        for name in handed:
            trial = next(t for t in board.trials if t.id == name)
            board.end(name, "finished", val=metrics_of(board, trial, 4), test={})
        handed = [trial.id for _ in range(4) if (trial := board.next())]
        assert handed == ["t001", "t002", "t003", "t004"]
        assert board.next() is None
        assert board.complete
        assert not board.finished


def test_where_the_metric_needs_no_baseline_nothing_waits(tmp_path: Path) -> None:
    with board_at(tmp_path, metric="object/accuracy") as board:
        handed = [trial for _ in range(9) if (trial := board.next())]
        assert len(handed) == 7


def test_every_trial_is_a_run_of_its_own_below_the_sweep(tmp_path: Path) -> None:
    with board_at(tmp_path) as board:
        execute(board)
        configs = {trial.id: board.terms.config_of(trial) for trial in board.trials}
    assert {config.storage for config in configs.values()} == {f"{tmp_path}/sweep/trials"}
    assert [config.name for config in configs.values()] == list(configs)
    assert list(configs["single-angle"].tasks) == ["angle"]
    assert [task.weight for task in configs["uniform"].tasks.values()] == [1, 1]
    assert configs["uniform"].optimizer == board.config.optimizer
    weights = [sum(t.weight for t in config.tasks.values()) for name, config in configs.items() if name[0] == "t"]
    assert weights == pytest.approx([2] * 4, rel=1e-3)


def test_a_task_without_a_weight_is_no_part_of_the_sweep(tmp_path: Path) -> None:
    tasks = {**TWO, "kind": Task(kind="multiclass", label="kind", weight=0)}
    config = tiny_config("data", tmp_path, name="sweep", tasks=tasks, epochs=4)
    said: list[str] = []
    with board_at(tmp_path, said, config=config) as board:
        execute(board)
        assert [trial.id for trial in board.trials][:3] == BASELINES
        assert board.best is not None
        assert all(trial.val.keys() == TWO.keys() for trial in board.trials if trial.kind != "single")
        assert {board.terms.config_of(trial).tasks["kind"].weight for trial in board.trials[2:]} == {0}
    assert not any("kind " in line for line in said)


def test_the_best_is_chosen_among_finished_trials_of_all_tasks(tmp_path: Path) -> None:
    with board_at(tmp_path, trials=8) as board:
        execute(board)
        best = board.best
        values = {t.id: board.value(t) for t in board.trials if t.kind != "single"}
    assert best is not None
    assert values[best.id] == max(value for value in values.values() if value is not None)
    assert len(values) == 9
    assert board.finished


@pytest.mark.parametrize("search", ["random", "tpe"])
@pytest.mark.parametrize("killed_after", [0, 2, 3, 5, 7])
def test_a_killed_sweep_goes_on_without_repeating_a_trial(tmp_path: Path, search: str, killed_after: int) -> None:
    with board_at(tmp_path / "whole", search=search) as whole:
        undisturbed = execute(whole)
    with board_at(tmp_path / "killed", search=search) as board:
        first = execute(board, killed_after)
        under_way = board.next()  # and the driver dies
        if under_way is not None:
            board.report(under_way.id, 1, metrics_of(board, under_way, 1))
    with board_at(tmp_path / "killed", search=search) as board:
        again = execute(board)
        assert board.finished
        assert [(t.id, t.values, t.status) for t in board.trials] == [(t.id, t.values, t.status) for t in whole.trials]
    assert first + again == undisturbed
    assert under_way is None or again[0] == under_way.id


def test_a_finished_sweep_has_nothing_to_do_until_more_trials_are_asked_for(tmp_path: Path) -> None:
    with board_at(tmp_path) as board:
        execute(board)
    with board_at(tmp_path) as board:
        assert board.finished
        assert board.complete
        assert board.next() is None
    with board_at(tmp_path, trials=6) as board:
        assert execute(board) == ["t005", "t006"]
    with board_at(tmp_path, trials=2) as board:  # fewer: what is there stays
        assert board.finished
        assert len(board.trials) == 9


def test_a_pruned_trial_keeps_its_metrics_and_is_not_repeated(tmp_path: Path) -> None:
    with board_at(tmp_path) as board:
        execute(board, 3)
        trial = board.next()
        assert trial is not None
        assert board.report(trial.id, 1, metrics_of(board, trial, 1)) is not None
        board.prune(trial.id)
        assert board.report(trial.id, 2, metrics_of(board, trial, 2)) is None  # came before it could stop
        board.end(trial.id, "stopped")
    with board_at(tmp_path) as board:
        pruned = next(t for t in board.trials if t.id == trial.id)
        assert (pruned.status, pruned.epoch) == ("pruned", 2)
        assert [epoch for epoch, _ in pruned.history] == [1, 2]
        assert trial.id not in execute(board)
        assert board.best is not None
        assert board.best.id != trial.id


def test_what_a_killed_driver_saw_of_a_trial_still_judges_others(tmp_path: Path) -> None:
    with board_at(tmp_path) as board:
        execute(board, 3)
        trial = board.next()
        assert trial is not None
        for epoch in (1, 2, 3):
            board.report(trial.id, epoch, metrics_of(board, trial, epoch))
    with board_at(tmp_path) as board:  # which dies and leaves the commit of epoch 2
        assert [epoch for epoch, _ in board.trials[-1].history] == [1, 2, 3]
        assert board.next() == board.trials[-1]
        for epoch in (3, 4):
            board.report(trial.id, epoch, metrics_of(board, trial, epoch))
        assert [epoch for epoch, _ in board.trials[-1].history] == [1, 2, 3, 4]
        board.end(trial.id, "stopped")


def test_a_trial_that_finished_before_it_could_be_pruned_is_finished(tmp_path: Path) -> None:
    with board_at(tmp_path) as board:
        execute(board, 3)
        trial = board.next()
        assert trial is not None
        board.prune(trial.id)
        board.end(trial.id, "finished", val=metrics_of(board, trial, 4), test={})
        assert board.trials[-1].status == "finished"


def test_a_stop_leaves_trials_for_the_next_driver(tmp_path: Path) -> None:
    with board_at(tmp_path) as board:
        execute(board, 4)
        trial = board.next()
        assert trial is not None
        board.stopping = True
        assert board.complete
        board.end(trial.id, "stopped")
        assert not board.finished
    with board_at(tmp_path) as board:
        assert execute(board)[0] == trial.id


def test_a_failed_trial_stays_failed_unless_it_shall_be_tried_again(tmp_path: Path) -> None:
    said: list[str] = []
    with board_at(tmp_path, said) as board:
        execute(board, 3)
        trial = board.next()
        assert trial is not None
        board.end(trial.id, "failed", error="Training diverged.")
        assert any("Training diverged." in line for line in said)
        assert trial.id not in execute(board)
        assert board.finished
    with board_at(tmp_path) as board:
        assert execute(board) == []
    with board_at(tmp_path, retry_failed=True) as board:
        assert execute(board) == [trial.id]
        assert {t.status for t in board.trials} == {"finished"}


def test_a_failed_baseline_ends_the_sweep_and_is_tried_again_by_the_next_driver(tmp_path: Path) -> None:
    with board_at(tmp_path) as board:
        assert board.next() is not None
        with pytest.raises(MtlError, match="baseline 'single-object' failed"):
            board.end("single-object", "failed", error="out of memory")
    with board_at(tmp_path) as board:
        assert execute(board)[0] == "single-object"
        assert board.finished


def changed_space() -> dict:
    return {"space": {"optimizer.lr": {"low": 1e-5, "high": 1e-3, "scale": "log"}}}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (changed_space(), "space.optimizer.lr"),
        ({"space": {"tasks.object.weight": None}}, "space.tasks.object.weight"),
        ({"metric": "object/accuracy"}, "metric"),
        ({"seed": 1}, "seed"),
        ({"grace": 3}, "grace"),
    ],
)
def test_a_sweep_restored_on_other_terms_is_refused_with_the_difference(
    tmp_path: Path, change: dict, named: str
) -> None:
    with board_at(tmp_path) as board:
        execute(board, 1)
    before = open_store(str(tmp_path)).child("sweep").get(SWEEP)
    with pytest.raises(CheckpointError, match="another search space or configuration") as caught:
        board_at(tmp_path, **change)
    assert named in str(caught.value.got)
    assert open_store(str(tmp_path)).child("sweep").get(SWEEP) == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epochs": 5}, "epochs"),
        ({"seed": 1}, "seed"),
        ({"global_batch": 64}, "global_batch"),
        ({"augment": Augment(size_px=16, crop="none", eval_size_px=24, eval_resize_px=24)}, "augment.eval_size_px"),
    ],
)
def test_another_configuration_is_refused_too(tmp_path: Path, changes: dict, named: str) -> None:
    def config(**more: object) -> Config:
        return tiny_config("data", tmp_path, name="sweep", tasks=TWO, **({"epochs": 4} | more))

    with board_at(tmp_path, config=config()):
        pass
    with pytest.raises(CheckpointError) as caught:
        board_at(tmp_path, config=config(**changes))
    assert named in str(caught.value.got)
    with board_at(tmp_path, config=config(log_every_s=1.0)) as board:  # placement may change
        assert board.next() is not None


def test_a_run_is_not_taken_for_a_sweep(tmp_path: Path) -> None:
    store = open_store(str(tmp_path)).child("sweep")
    store.put("run.json", b"{}")
    store.put("config.yaml", b"")
    with pytest.raises(ConfigError, match="the name of a run"):
        board_at(tmp_path)


def test_only_one_driver_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl.lease._watch", lambda *_: None)
    with board_at(tmp_path), pytest.raises(RunOwned), board_at(tmp_path):
        pass


def test_a_driver_that_was_replaced_starts_nothing_more(tmp_path: Path) -> None:
    with board_at(tmp_path) as board:
        execute(board, 1)
        path = tmp_path / "sweep" / SWEEP
        path.write_text(json.dumps(json.loads(path.read_text()) | {"write": "another"}))
        with pytest.raises(RunLost, match="Another driver"):
            board.next()


def test_one_task_has_one_baseline_and_searches_the_rest(tmp_path: Path) -> None:
    config = tiny_config("data", tmp_path, name="sweep", tasks={"object": TWO["object"]})
    with board_at(tmp_path, config=config) as board:
        assert board.terms.space.axes == ("optimizer.lr",)
        assert execute(board)[0] == "single-object"
        assert board.best is not None


GROUPED = Task(kind="multiclass", label="object", group_of="object")


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": Optimizer(head_lr={"object": 10.0})},
        {"evaluation": Evaluation(best="object/accuracy", patience=2)},
        {"rebalance": Rebalance(task="object")},
        {"tasks": {**TWO, "group": GROUPED}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_names_a_task_stays_with_it_and_goes_where_it_is_not(tmp_path: Path, changes: dict) -> None:
    config = tiny_config("data", tmp_path, **{"name": "sweep", "tasks": TWO, "epochs": 4, **changes})
    terms = board_at(tmp_path, config=config).terms
    alone = {trial.task: terms.config_of(trial) for trial in terms.baselines if trial.task is not None}
    assert {task: list(its.tasks) for task, its in alone.items()} == {task: [task] for task in config.tasks}
    assert all(task.weight == 1 and task.group_of is None for its in alone.values() for task in its.tasks.values())
    own = alone.pop("object")
    for section in ("optimizer", "evaluation", "rebalance"):
        assert getattr(own, section) == getattr(config, section)
    for its in alone.values():
        assert (its.optimizer.head_lr, its.evaluation.best, its.evaluation.patience) == ({}, None, None)
        assert its.rebalance.task is None
    (uniform,) = [trial for trial in terms.baselines if trial.task is None]
    assert {name: getattr(terms.config_of(uniform), name) for name in changes if name != "tasks"} == {
        name: value for name, value in changes.items() if name != "tasks"
    }


def test_one_trial_at_a_time_needs_no_limit(tmp_path: Path) -> None:
    config = tiny_config("data", tmp_path, name="sweep", tasks=TWO, runtime="local")
    with pytest.raises(ConfigError, match=r"sweep\.concurrent would have no effect"):
        board_at(tmp_path, config=config, concurrent=2)


def test_baselines_of_tasks_whose_names_differ_in_case_alone_have_folders_of_their_own(tmp_path: Path) -> None:
    tasks = {"Kind": Task(kind="binary", label="kind"), "kind": Task(kind="binary", label="kind")}
    board = board_at(tmp_path, config=tiny_config("data", tmp_path, name="sweep", tasks=tasks))
    assert len({trial.id for trial in board.terms.baselines}) == 3


def test_a_grace_beyond_the_last_epoch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="before any could be pruned"):
        board_at(tmp_path, grace=5)


def test_progress_says_how_far_and_what_is_best(tmp_path: Path) -> None:
    said: list[str] = []
    with board_at(tmp_path, said) as board:
        execute(board, 4)
        board.next()
        assert board.progress().startswith("4 of 7 trials done, 1 running, best ")
        assert board.progress().endswith(" left")
    assert any(line.startswith("t001           started  optimizer.lr ") for line in said)
    assert any("epoch 4/4  delta-m " in line for line in said)
