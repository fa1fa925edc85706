"""What a person sees: the same lines in a terminal and in a log."""

import io
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl.console import RunConsole, clock, counted, goodput_line, progress_line, speed
from tests.helpers.jobs import tiny_config

PROGRESS: dict[str, Any] = {
    "kind": "progress",
    "step": 1200,
    "steps": 93000,
    "epoch": 0.129,
    "images_per_s": 1234.5,
    "blame": {"storage": 0.61, "decode": 0.034, "copy": 0.002, "straggler": 0.0, "commit": 0.0, "compute": 0.354},
    "lr": 0.00123,
    "loss": {"shape": 1.5, "angle": 0.25},
    "skipped": 0,
    "quarantined": 0,
    "eta_s": 3725.2,
}
METRICS = {
    "shape": {"labels": 1234, "accuracy": 0.5, "f1": 0.25, "loss": 1.0},
    "angle": {"labels": 7, "error_degrees": 12.34, "within_15_degrees": 0.5, "loss": 1.0},
    "amount": {"labels": 7, "mae": 0.12345, "rmse": 1234.5, "r2": -0.5, "loss": 1.0},
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(*events: dict[str, Any]) -> list[str]:
    stream = io.StringIO()
    console = RunConsole(stream)
    for event in events:
        console(event)
    lines = stream.getvalue().splitlines()
    assert all(re.match(r"\d+:\d\d  ", line) for line in lines)
    return [line.partition("  ")[2] for line in lines]


def test_progress_says_how_far_and_how_long() -> None:
    assert progress_line(PROGRESS) == (
        "step 1,200/93,000  1:02:05 left  epoch 0.13  1,234 images/s  waits 65% (storage 61%, decode 3%)  lr 0.0012  "
        "loss: shape 1.500  angle 0.250"
    )
    busy = {**PROGRESS, "blame": {"storage": 0.001, "compute": 0.999}}
    assert "images/s  waits 0%  lr" in progress_line(busy)
    assert progress_line({**PROGRESS, "skipped": 2, "quarantined": 3}).endswith("skipped 2  quarantined 3")


def test_goodput_names_what_restarts_cost() -> None:
    result: dict[str, Any] = {"goodput": 0.874, "useful_s": 83.0, "wall_s": 95.0, "restarts": []}
    assert goodput_line(result) == "goodput 87%: 1:23 of steps in 1:35"
    restarts = [
        {"attempt": 2, "cause": "preempted", "replayed_s": 12.4},
        {"attempt": 3, "cause": "hang", "replayed_s": 0},
    ]
    assert goodput_line({**result, "restarts": restarts}) == (
        "goodput 87%: 1:23 of steps in 1:35; 2 restarts: preempted (12 s replayed), hang (0 s replayed)"
    )


def test_each_event_is_one_line() -> None:
    evaluation = {"kind": "evaluation", "split": "val", "epoch": 3, "rows": 24, "quarantined": 0, "metrics": METRICS}
    commit = {"kind": "commit", "step": 1200, "seconds": 0.26}
    blame = {"kind": "blame", "text": "epoch 1: compute-bound"}
    assert shown(blame) == ["epoch 1: compute-bound"]
    note = {"kind": "note", "text": "attempt 1: [5] parameters"}
    assert shown({**evaluation, "quarantined": 2})[0].endswith("amount 0.123  (2 of 24 rows quarantined)")
    assert shown(PROGRESS, evaluation, commit, note)[1:] == [
        "val after epoch 3: shape 50.0 %  angle 12.3°  amount 0.123",
        "commit at step 1,200 (0.3 s)",
        "attempt 1: [5] parameters",
    ]


def test_a_log_has_no_colours_and_lines_are_not_broken() -> None:
    stream = io.StringIO()
    console = RunConsole(stream)
    console({**PROGRESS, "loss": {f"task{i}": 1.0 for i in range(30)}})
    console.table("test", METRICS)
    text = stream.getvalue()
    assert "\x1b" not in text
    assert "task29" in text.splitlines()[0]


def test_a_terminal_gets_the_same_words() -> None:
    stream = Terminal()
    RunConsole(stream)(PROGRESS)
    assert progress_line(PROGRESS) in re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())


def test_a_table_has_a_row_for_each_task_and_a_column_for_each_metric() -> None:
    stream = io.StringIO()
    RunConsole(stream).table("test: tiny", METRICS)
    lines = stream.getvalue().splitlines()
    assert lines[0].strip() == "test: tiny"
    cells = {row[0]: row[1:] for line in lines if "│" in line and (row := line.replace("│", " ").split())}
    assert cells["shape"] == ["1,234", "50.0", "%", "25.0", "%"]
    assert cells["angle"] == ["7", "12.3°", "50.0", "%"]
    assert cells["amount"] == ["7", "0.123", "1.23e+03", "-0.5"]
    header = " ".join(lines[2].replace("┃", " ").split())
    assert header == "task labels accuracy f1 error degrees within 15 degrees mae rmse r2"


def test_the_end_of_a_finished_run(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stream = io.StringIO()
    result = {"status": "finished", "steps": 1200, "seconds": 61, "ledger": "00ff", "metrics": {"test": METRICS}}
    assert RunConsole(stream).conclude(tiny_config("data", f"{tmp_path}/runs"), result) == 0
    text = stream.getvalue()
    assert "test: tiny" in text
    assert "finished: 1,200 steps in 1:01, ledger 00ff" in text
    assert "python jobs/evaluate.py runs/tiny --split test" in text


@pytest.mark.parametrize(("steps", "where"), [(12, "after step 12, committed"), (0, "before the first step")])
def test_the_end_of_a_stopped_run(steps: int, where: str) -> None:
    stream = io.StringIO()
    assert RunConsole(stream).conclude(tiny_config("data", "runs"), {"status": "stopped", "steps": steps}) == 143
    assert f"stopped {where}; rerun the same command to go on" in stream.getvalue()


@given(st.floats(0, 10**7))
def test_clock(seconds: float) -> None:
    parts = [int(part) for part in clock(seconds).split(":")]
    assert all(part < 60 for part in parts[1:])
    assert sum(part * 60**power for power, part in enumerate(reversed(parts))) == round(seconds)


def test_counted() -> None:
    assert [counted(n, "step") for n in (0, 1, 2000)] == ["0 steps", "1 step", "2,000 steps"]


def test_speed_names_the_share_of_the_peak_and_the_cost_where_they_are_known() -> None:
    assert speed({"images_per_s": 1234.5}) == "1,234 images/s"
    assert speed({"images_per_s": 10, "mfu": 0.314, "cost_per_epoch": 0.0123}) == (
        "10 images/s  MFU 31%  cost 0.0123 an epoch"
    )
    assert speed({"images_per_s": 10, "cost_per_epoch": 0.5, "cost": 6.25}).endswith("cost 0.5 an epoch, 6.25 in all")
