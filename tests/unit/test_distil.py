"""Static weights from a balancer's, and the words for what it saw."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mtl import arguments
from mtl.balancing.base import TaskStats
from mtl.balancing.telemetry import Telemetry, overlap, together
from mtl.distil import conclusion, distil, rows_of, verdict
from mtl.errors import NotFound, RunError
from mtl.sweep import arguments as sweep_arguments
from tests.helpers.jobs import tiny_config
from tests.helpers.memory_store import MemoryStore
from tests.helpers.sweeps import TWO, board_at


def row(a: float, b: float, steps: tuple[float, float] = (1.0, 1.0), **more: Any) -> dict[str, Any]:
    return {"weights": {"a": a, "b": b}, "steps": {"a": steps[0], "b": steps[1]}, **more}


def looked(cosine: float, norms: tuple[float, float] = (1.0, 1.0), shared: float = 1.0) -> dict[str, Any]:
    return row(1, 1, norms={"a": norms[0], "b": norms[1]}, cosines={"a/b": cosine}, overlap={"a/b": shared})


def test_weights_are_means_over_steps_times_the_tasks_own_and_sum_to_their_number() -> None:
    found = distil([row(1, 2, (10, 10)), row(4, 2, (20, 0))], {"a": 1.0, "b": 0.5})
    assert found.weights == pytest.approx({"a": 1.5, "b": 0.5})
    assert found.cosines == {}
    assert "looked at no gradients" in verdict(found)[0]


def test_a_run_without_rows_is_refused() -> None:
    with pytest.raises(RunError, match="no weights"):
        distil([], {"a": 1.0})


@pytest.mark.parametrize(
    ("rows", "said", "unsaid"),
    [
        ([looked(-0.5), looked(-0.3)], "a and b (-0.40)", "do not conflict"),
        ([looked(0.2)], "do not conflict", "different directions"),
        ([looked(0.2)], "little to gain", "weights matter"),
        ([looked(0.2, (10.0, 1.0))], "by a factor of 10.0", "little to gain"),
        ([looked(0.0, shared=0.1)], "Fewer than half", "different directions"),
    ],
)
def test_the_verdict_says_whether_tasks_conflict(rows: list[dict[str, Any]], said: str, unsaid: str) -> None:
    text = "\n".join(verdict(distil(rows, {"a": 1.0, "b": 1.0})))
    assert said in text
    assert unsaid not in text


@pytest.mark.parametrize(
    ("more", "said", "unsaid"),
    [
        ({"seen": "exact"}, "measured on the gradients of the shared parameters", "boundary"),
        ({"seen": "boundary"}, "seen at the boundary, a stand-in", "measured on"),
        ({}, "seen at the boundary, a stand-in", "measured on"),
    ],
)
def test_the_verdict_says_where_it_looked(more: dict[str, str], said: str, unsaid: str) -> None:
    for cosine in (-0.5, 0.5):
        text = "\n".join(verdict(distil([looked(cosine, shared=0.1) | more], {"a": 1.0, "b": 1.0})))
        assert said in text
        assert unsaid not in text
    mixed = [looked(0.5) | more, looked(0.5) | {"seen": "boundary"}]
    assert not distil(mixed, {"a": 1.0, "b": 1.0}).exact


def test_rows_come_from_the_highest_attempt_of_each_step() -> None:
    store = MemoryStore()
    lines = [{"step": 1, "balancing": row(1, 1)}, {"step": 2, "balancing": row(2, 2)}, {"kind": "evaluation"}]
    store.put("metrics/a1-000001.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    store.put("metrics/a2-000001.jsonl", (json.dumps({"step": 2, "balancing": row(3, 3)}) + "\n").encode())
    assert [found["weights"]["a"] for found in rows_of(store)] == [1, 3]


def test_telemetry_counts_a_task_only_where_it_was_present() -> None:
    telemetry = Telemetry(2, torch.device("cpu"))
    gram = torch.tensor([[4.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    both, first = torch.tensor([3.0, 2.0]), torch.tensor([3.0, 0.0])
    telemetry.add(TaskStats(both, 0, gram=gram), torch.tensor([1.0, 3.0], dtype=torch.float64))
    telemetry.add(TaskStats(first, 1, gram=gram), torch.tensor([2.0, 9.0], dtype=torch.float64))
    found = telemetry.report(["a", "b"])
    assert found["weights"] == {"a": 1.5, "b": 3.0}
    assert found["steps"] == {"a": 2, "b": 1}
    assert found["norms"] == {"a": 2.0, "b": 1.0}
    assert found["cosines"] == {"a/b": -0.5}
    assert found["seen"] == "boundary"
    assert telemetry.report(["a", "b"])["steps"] == {"a": 0, "b": 0}


def test_overlap_is_a_share_of_the_scarcer_label() -> None:
    valid = [torch.tensor([True, True, True, False]), torch.tensor([False, True, False, True])]
    assert overlap(["a", "b"], together(valid)) == {"a/b": 0.5}


def test_the_debiased_gram_matrix_is_averaged_before_cosines_are_taken() -> None:
    telemetry = Telemetry(2, torch.device("cpu"))
    counts, weights = torch.ones(2), torch.ones(2, dtype=torch.float64)
    gram = torch.eye(2, dtype=torch.float64)
    for own, between in ((5.0, -1.0), (-1.0, -1.0), (torch.nan, torch.nan)):
        unbiased = torch.tensor([[own, between], [between, 2.0]], dtype=torch.float64)
        telemetry.add(TaskStats(counts, 0, gram=gram, unbiased=unbiased), weights)
    found = telemetry.report(["a", "b"])["unbiased"]
    assert found["norms"] == pytest.approx({"a": 2**0.5, "b": 2**0.5})
    assert found["cosines"] == pytest.approx({"a/b": -0.5})
    assert "unbiased" not in telemetry.report(["a", "b"])


def test_what_is_said_of_noise_free_gradients_is_used_where_it_is_known() -> None:
    """Noise that two tasks have in common hides a conflict of their mean gradients."""
    noisy = looked(0.3) | {"unbiased": {"norms": {"a": 1.0, "b": 1.0}, "cosines": {"a/b": -0.6}}}
    text = "\n".join(verdict(distil([noisy, noisy], {"a": 1.0, "b": 1.0})))
    assert "a and b (-0.60)" in text
    assert "measured on the gradients of the shared parameters" in text


@pytest.mark.parametrize(("own", "said"), [({"a": 1.0, "b": 1.0}, True), ({"a": 1.0, "b": 0.0}, False)])
def test_a_run_of_one_task_has_no_verdict(own: dict[str, float], said: bool) -> None:
    store = MemoryStore()
    assert conclusion(store, own) == []
    store.put("metrics/a1-000001.jsonl", json.dumps({"step": 1, "balancing": looked(-0.5)}).encode())
    assert bool(conclusion(store, own)) == said


def test_the_job_prints_flags_and_writes_where_a_sweep_may_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.distil import distil as job

    config = tiny_config("data", tmp_path, name="sweep", tasks=TWO, epochs=4)
    run = tmp_path / "balanced"
    (run / "metrics").mkdir(parents=True)
    (run / "config.yaml").write_text(config.to_yaml())
    weights = {"weights": {"object": 3.0, "angle": 1.0}, "steps": {"object": 4.0, "angle": 4.0}}
    (run / "metrics" / "a1-000001.jsonl").write_text(json.dumps({"step": 4, "balancing": weights}) + "\n")
    file = tmp_path / "starts.yaml"
    assert job(str(run), file) == 0
    said = capsys.readouterr().out
    assert "--balancing.method static --tasks.object.weight 1.5 --tasks.angle.weight 0.5" in said
    assert "looked at no gradients" in said

    flags = ["--config", str(run / "config.yaml"), "--tasks.object.weight", "1.5", "--tasks.angle.weight", "0.5"]
    assert arguments.parse(flags).config.tasks["object"].weight == 1.5
    asked = sweep_arguments.parse(["--config", str(run / "config.yaml"), "--sweep-file", str(file)])
    with board_at(tmp_path, config=config, starts=asked.sweep.starts) as board:
        first = board.terms.space.values(board.terms.starts[0])
    assert first["tasks.object.weight"] == pytest.approx(1.5, rel=1e-3)


def test_the_job_refuses_what_is_no_run(tmp_path: Path) -> None:
    from jobs.distil import distil as job

    with pytest.raises(NotFound, match=r"config\.yaml"):
        job(str(tmp_path / "nothing"))
