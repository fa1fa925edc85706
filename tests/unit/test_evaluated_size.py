"""augment.eval_size_px in whole runs: training is bit by bit as without, metrics are those of images of that size."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtl import goodput, preflight
from mtl.config import Augment, Config, Loader
from mtl.errors import ConfigError
from mtl.evaluation import evaluate_run
from mtl.parts import build_model, build_specs
from mtl.preflight import check
from mtl.rehearsal import rehearse
from tests.helpers.datasets import tiny
from tests.helpers.engine import SMALL, record_of, result_of, rows, saved, store_of, tiny_config
from tests.helpers.sizes import MADE
from tests.helpers.tensors import assert_same
from tests.helpers.tracked import notes_of

pytestmark = pytest.mark.usefixtures("numerics_as_before")

Make = Callable[..., Config]
LARGER = {"eval_size_px": 24, "eval_resize_px": 27}


ANY_SIZE = SMALL.model_copy(update={"backbone": "tests.helpers.sizes:sizes"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    tiny(folder / "data", size_px=30)
    return folder / "data"


@pytest.fixture
def make(data: Path, tmp_path: Path) -> Make:
    """A configuration that trains on 16 px; what is in `augment` differs from the engine's tests'."""

    def made(name: str, augment: dict[str, Any], **changes: Any) -> Config:
        base = tiny_config(data, tmp_path / "runs", name, **{"epochs": 1, "model": ANY_SIZE, **changes})
        return base.model_copy(update={"augment": Augment(**{**base.augment.model_dump(), **augment})})

    return made


def evaluated(config: Config, augment: Augment) -> dict[str, dict[str, float]]:
    """Metrics on test of the run's last commit, looked at as `augment` says."""
    run = preflight.check_saved(f"{config.storage}/{config.name}", "test")
    return evaluate_run(replace(run, config=config.model_copy(update={"augment": augment})), "test", print).metrics


def test_only_metrics_change(make: Make) -> None:
    plain, same, larger, kept = (
        make("plain", {}),
        make("same", {"eval_size_px": 16}),
        make("larger", LARGER),
        make("kept", LARGER, loader=Loader(memory="decoded")),
    )
    for config in (plain, same, larger, kept):
        notes_of(config)
    before = result_of(plain)
    for config in (same, larger, kept):
        assert_same(saved(config), saved(plain))
        assert result_of(config)["ledger"] == before["ledger"]
        steps = [[row["loss"] for key, row in rows(one).items() if key[0] is not None] for one in (config, plain)]  # type: ignore[index]
        assert steps[0] == steps[1]
        (account,), (plains,) = (goodput.read(store_of(one)) for one in (config, plain))
        assert account["scale"]["flops_per_image"] == plains["scale"]["flops_per_image"]
    assert result_of(same)["metrics"] == before["metrics"]
    assert result_of(kept)["metrics"] == result_of(larger)["metrics"]
    assert result_of(larger)["metrics"]["val"]["object"]["loss"] != before["metrics"]["val"]["object"]["loss"]
    # The same weights, looked at with larger images after all.
    assert evaluated(plain, larger.augment) == evaluated(larger, larger.augment)
    assert evaluated(larger, plain.augment) == evaluated(plain, plain.augment)
    assert evaluated(plain, larger.augment) != evaluated(plain, plain.augment)


def test_a_run_may_go_on_with_another_size(make: Make) -> None:
    first = make("tiny", {})
    notes_of(first)
    # As it was before its end: another epoch is left.
    longer = make("tiny", LARGER).model_copy(update={"epochs": 2})
    store = store_of(first)
    record = record_of(first)
    store.put("run.json", record.model_copy(update={"status": "stopped"}).model_dump_json().encode())
    plan = check(longer)
    assert plan.changed == {
        "epochs": (1, 2),
        "augment.eval_size_px": (None, 24),
        "augment.eval_resize_px": (16, 27),
    }


def test_a_backbone_for_one_size_is_refused_before_a_run_is_begun(make: Make) -> None:
    config = make("fixed", LARGER, model=SMALL)
    with pytest.raises(ConfigError, match="takes no images of 24 px"):
        build_model(config, build_specs(config, check(config).manifest))
    build_model(make("fixed", {}, model=SMALL), build_specs(config, check(config).manifest))
    assert store_of(config).list() == []


def test_a_rehearsal_looks_at_images_of_both_sizes(make: Make) -> None:
    config = make("rehearsed", LARGER, max_micro_batch=4)
    rehearse(config, check(config).manifest)
    assert MADE[-1].evaluated[-1] == (4, 24)
    rehearse(make("rehearsed", {}, max_micro_batch=4), check(config).manifest)
    assert {size for _, size in MADE[-1].evaluated} == {16}


def test_evaluation_takes_no_more_samples_at_once_than_training(make: Make) -> None:
    found: list[dict[str, Any]] = []
    for name, limit in (("parts", 5), ("whole", None)):
        config = make(name, LARGER, max_micro_batch=limit)
        notes_of(config)
        found.append(result_of(config)["metrics"]["test"])
        most = max(n for n, size in MADE[-1].evaluated if size == 24)
        assert most <= limit if limit else most == 24
    for task, metrics in found[0].items():
        assert metrics == pytest.approx(found[1][task], rel=1e-9)


def test_memory_is_known_before_the_start(make: Make) -> None:
    one = {"loader": Loader(prefetch_batches=1, prefetch_mb=1e-3)}
    plain, larger = (check(make("memory", augment, **one)).memory for augment in ({}, LARGER))
    batch = 32 * 3
    assert larger.evaluation - plain.evaluation == 3 * batch * (24**2 - 16**2)  # one ahead, and two at hand
    assert replace(larger, evaluation=0) == replace(plain, evaluation=0)
    assert larger.total == larger.blocks + larger.prefetch + larger.batches + larger.evaluation
    assert "evaluation" in larger.describe()
    config = make("memory", LARGER, loader=Loader(prefetch_batches=1, prefetch_mb=1e-3, memory_gb=plain.total / 1e9))
    with pytest.raises(ConfigError, match="does not fit into memory"):
        check(config)
