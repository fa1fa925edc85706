"""What a job's switches do, from the configuration to what a run leaves: average, selection, background, precision."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from mtl import job, preflight
from mtl.config import Augment, Checkpoint, Config, Optimizer
from mtl.config_evaluation import Evaluation
from mtl.ema import Ema
from mtl.errors import ConfigError, MtlError, NoSpace
from mtl.evaluation import evaluate_run
from mtl.precision import Name, set_numerics
from mtl.store import Store
from tests.helpers.datasets import tiny
from tests.helpers.engine import SMALL, record_of, result_of, rows, tiny_config
from tests.helpers.tensors import assert_same
from tests.helpers.whole_jobs import Crash, assert_same_end, interrupted, newest, run

pytestmark = pytest.mark.usefixtures("numerics_as_before")

Make = Callable[..., Config]
AVERAGED = Optimizer(name="adam", lr=2e-3, ema_epochs=0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("switches")
    tiny(folder / "data")
    return folder / "data"


@pytest.fixture
def make(data: Path, tmp_path: Path) -> Make:
    """A configuration: two epochs of three steps."""

    def made(name: str = "tiny", **changes: Any) -> Config:
        return tiny_config(data, tmp_path / "runs", name, **{"model": SMALL, **changes})

    return made


def test_the_average_is_kept_and_evaluated_beside_the_weights(make: Make) -> None:
    plain, config = make("plain", optimizer=AVERAGED.model_copy(update={"ema_epochs": None})), make(optimizer=AVERAGED)
    run(plain)
    events = run(config)
    assert_same(newest(config).files["model"], newest(plain).files["model"])  # it changes nothing in training
    result = result_of(config)
    assert list(result["metrics"]) == ["val", "val-ema", "test", "test-ema"]
    for split in ("val", "test"):
        assert result["metrics"][split] == result_of(plain)["metrics"][split]
        assert result["metrics"][f"{split}-ema"] != result["metrics"][split]
    kinds = [event["split"] for event in events if event["kind"] == "evaluation"]
    assert kinds == ["val", "val-ema"] * 2 + ["test", "test-ema"]
    average = newest(config).files["ema"]
    assert average.keys() == newest(config).files["model"].keys()
    saved = preflight.check_saved(f"{config.storage}/{config.name}", "test")
    assert evaluate_run(saved, "test", print, weights="ema").metrics == result["metrics"]["test-ema"]
    assert evaluate_run(saved, "test", print).metrics == result["metrics"]["test"]


def test_the_average_is_that_of_the_weights_after_each_step(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, dict[str, Tensor]]] = []
    update = Ema.update

    def watched(self: Ema, samples: int) -> None:
        live = self._live  # pyright: ignore[reportPrivateUsage]
        seen.append((samples, {name: tensor.double().clone() for name, tensor in live.items()}))
        update(self, samples)

    monkeypatch.setattr(Ema, "update", watched)
    config = make(optimizer=AVERAGED.model_copy(update={"ema_epochs": 100.0}))
    run(config)
    assert [samples for samples, _ in seen] == [32] * 6
    for name, tensor in newest(config).files["ema"].items():  # of so long a span it is still the plain mean
        mean = torch.stack([weights[name] for _, weights in seen]).mean(0)
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-5, atol=1e-6)


def test_training_can_begin_from_an_average(make: Make) -> None:
    config = make(optimizer=AVERAGED)
    run(config)
    file = Path(config.storage) / "tiny" / record_of(config).checkpoints[0].path / "ema.safetensors"
    events = run(make("tuned", model=SMALL.model_copy(update={"init_from": str(file)}), epochs=1))
    assert any("tensors loaded from" in event["text"] for event in events if event["kind"] == "note")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("max_micro_batch", [None, 12])
def test_resumed_bit_by_bit_in_every_precision(
    precision: Name, max_micro_batch: int | None, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"precision": precision, "max_micro_batch": max_micro_batch, "optimizer": AVERAGED}
    changes["augment"] = make().augment.model_copy(update={"mixup": 0.2, "cutmix": 1.0, "erase": 0.3})
    often = Checkpoint(every_s=1e-9, background=False)
    whole, config = make("whole", **changes), make(checkpoint=often, **changes)
    run(whole)
    interrupted(config, monkeypatch, 5)
    assert_same_end(config, whole)
    if precision == "fp16":
        assert newest(config).state["precision"] != {"scale": 65536.0, "good": 0}


def test_precisions_differ(make: Make) -> None:
    ends: list[dict[str, Tensor]] = []
    for precision in ("fp32", "bf16", "fp16"):
        run(make(precision, precision=precision, epochs=1))
        ends.append(newest(make(precision)).files["model"])
    assert all(tensor.dtype == torch.float32 for end in ends for tensor in end.values())
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert any(not tensor.equal(ends[other][name]) for name, tensor in ends[one].items())


@pytest.mark.parametrize(
    ("precision", "products"), [("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee"), ("fp16", "ieee")]
)
def test_products_of_a_run_are_as_exact_as_it_says(precision: Name, products: str, make: Make) -> None:
    """In training and in evaluation, whatever the process computed before; cuDNN's are TF32 unless torch is told."""
    seen: set[tuple[bool, str, str]] = set()

    def look(module: nn.Module, _: object) -> None:
        cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn.conv
        seen.add((module.training, cuda.fp32_precision, cudnn.fp32_precision))  # pyright: ignore

    set_numerics("fp32" if precision == "tf32" else "tf32", deterministic=False)
    handle = register_module_forward_pre_hook(look)
    try:
        run(make(epochs=1).model_copy(update={"precision": precision}))  # tf32 is refused without a GPU, but trains
    finally:
        handle.remove()
    assert seen == {(True, products, products), (False, products, products)}


def measured(monkeypatch: pytest.MonkeyPatch, accuracy: Callable[[int], float]) -> None:
    """The validation accuracy of `object` is what is said of the epoch."""
    score = job.Scorer._score  # pyright: ignore[reportPrivateUsage]

    def scored(self: Any, split: str, name: str, trainee: Any, epoch: int) -> Any:
        metrics = score(self, split, name, trainee, epoch)
        if split == "val":
            metrics["object"]["accuracy"] = accuracy(epoch)
        return metrics

    monkeypatch.setattr(job.Scorer, "_score", scored)


def worse_after(monkeypatch: pytest.MonkeyPatch, best_epoch: int) -> None:
    """The validation accuracy of `object` rises up to `best_epoch`, and falls from there on."""
    measured(monkeypatch, lambda epoch: 1 - 0.1 * abs(epoch - best_epoch))


PATIENT = Evaluation(best="object/accuracy", patience=2)


@pytest.mark.parametrize("optimizer", [AVERAGED, AVERAGED.model_copy(update={"ema_epochs": None})])
def test_training_ends_early_and_the_best_commit_is_kept(
    optimizer: Optimizer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse_after(monkeypatch, 2)
    config = make(epochs=8, evaluation=PATIENT, optimizer=optimizer)
    events = run(config)
    record, result = record_of(config), result_of(config)
    assert (result["status"], result["epochs"]) == ("finished", 4)
    assert [commit.epoch for commit in record.checkpoints] == [4, 3]
    assert record.best is not None
    assert record.best.epoch == 2
    assert any("2 evaluations in a row without a better object/accuracy" in event.get("text", "") for event in events)
    saved = preflight.check_saved(f"{config.storage}/{config.name}", "test")
    weights = "ema" if optimizer.ema_epochs else "raw"
    found = evaluate_run(saved, "test", print, which="best", weights=weights)
    assert found.commit == record.best
    assert found.metrics == result["metrics"]["test-best"]
    assert found.metrics != result["metrics"]["test"]


def test_a_learning_rate_a_thousand_times_too_high_ends_early_with_the_best_commit(make: Make) -> None:
    ends: list[int] = []
    for name, lr in (("sound", 1e-3), ("wild", 1.0)):
        optimizer = Optimizer(name="adam", lr=lr, warmup_epochs=0, schedule="constant")
        config = make(name, epochs=12, evaluation=Evaluation(best="object/loss", patience=2), optimizer=optimizer)
        run(config)
        best, result = record_of(config).best, result_of(config)
        assert best is not None
        assert best.epoch < result["epochs"] or result["epochs"] == 12
        saved = preflight.check_saved(f"{config.storage}/{config.name}", "test")
        assert evaluate_run(saved, "test", print, which="best").commit == best
        ends.append(result["epochs"])
    assert ends[0] == 12 > ends[1], ends


def test_training_without_one_finite_value_to_select_by_is_no_finished_run(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, lambda _: float("nan"))
    config = make(epochs=8, evaluation=PATIENT)
    with pytest.raises(MtlError, match="Training diverged: object/accuracy was not finite in any of 2 evaluations"):
        run(config)
    record = record_of(config)
    assert (record.status, record.result) == ("failed", None)
    assert [commit.epoch for commit in record.checkpoints] == [1]


def test_patience_goes_on_after_a_restart(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    worse_after(monkeypatch, 2)
    whole, config = make("whole", epochs=8, evaluation=PATIENT), make(epochs=8, evaluation=PATIENT)
    run(whole)
    interrupted(config, monkeypatch, 12)
    assert_same_end(config, whole)
    assert [commit.epoch for commit in record_of(config).checkpoints] == [4, 3]


def test_an_end_that_was_decided_stands_after_a_restart(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    worse_after(monkeypatch, 1)
    config = make(epochs=8, evaluation=PATIENT)
    with monkeypatch.context() as patch:
        patch.setattr(job.Scorer, "test_best", crash)
        with pytest.raises(Crash):
            run(config)
    events = run(config)
    assert not any(event["kind"] == "progress" for event in events)
    assert result_of(config)["epochs"] == 3


def crash(*_: object) -> None:
    raise Crash


def test_evaluations_come_when_they_are_due(make: Make) -> None:
    config, always = make(epochs=5, evaluation=Evaluation(every_epochs=2)), make("always", epochs=5)
    run(config)
    run(always)
    found = [key[1] for key in rows(config) if isinstance(key, tuple) and key[2] == "val"]
    assert found == [2, 4, 5]
    assert [commit.epoch for commit in record_of(config).checkpoints] == [5, 4]
    assert_same_end(config, always)


@pytest.mark.parametrize(
    ("evaluation", "says"),
    [
        ({"best": "object/acuracy"}, "evaluation.best"),
        ({"best": "nothing/loss"}, "evaluation.best"),
        ({"patience": 3}, "evaluation.patience needs"),
    ],
)
def test_a_selection_that_can_not_be_made_is_refused(evaluation: dict[str, Any], says: str, make: Make) -> None:
    with pytest.raises(ConfigError, match=says):
        make(evaluation=Evaluation(**evaluation))


def test_what_a_run_does_not_have_can_not_be_evaluated(make: Make) -> None:
    config = make(epochs=1)
    run(config)
    saved = preflight.check_saved(f"{config.storage}/{config.name}", "test")
    with pytest.raises(ConfigError, match="no average"):
        evaluate_run(saved, "test", print, weights="ema")
    with pytest.raises(ConfigError, match="no best commit"):
        evaluate_run(saved, "test", print, which="best")


OFTEN = Checkpoint(every_s=1e-9)


def test_commits_in_the_background_change_nothing(make: Make) -> None:
    plain, config = make("plain", optimizer=AVERAGED), make(optimizer=AVERAGED, checkpoint=OFTEN)
    run(plain)
    events = run(config)
    assert_same_end(config, plain)
    assert rows(config).keys() == rows(plain).keys()
    told = [event["step"] for event in events if event["kind"] == "commit"]
    assert told == sorted(told)
    assert told[-1] == 6


def test_a_slow_upload_stops_no_step(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is uploaded is the state of the step at which it was taken, though training went on meanwhile."""
    plain, config = make("plain", checkpoint=Checkpoint(every_s=1e-9, background=False)), make(checkpoint=OFTEN)
    held = job.save
    files: dict[str, dict[str, Tensor]] = {}

    def noted(store: Store, path: str, tensors: Any, state: Any) -> str:
        files[path] = {name: tensor.clone() for name, tensor in tensors["model"].items()}
        return held(store, path, tensors, state)

    monkeypatch.setattr(job, "save", noted)
    run(plain)
    steps = dict(files)
    files.clear()
    waited = job.Background._settle  # pyright: ignore[reportPrivateUsage]
    slow: list[bool] = []

    def slowly(store: Store, path: str, tensors: Any, state: Any) -> str:
        if not slow:  # until training is over
            slow.append(True)
            assert over.wait(30)
        return noted(store, path, tensors, state)

    over = threading.Event()

    def ended(self: Any, limit_s: float) -> None:
        over.set()
        waited(self, limit_s)

    monkeypatch.setattr(job, "save", slowly)
    monkeypatch.setattr(job.Background, "_settle", ended)
    run(config)
    assert [int(path.split("-")[1]) for path in files] == [1, 6]
    for path, tensors in files.items():
        assert_same(tensors, steps[path])


def test_an_upload_that_fails_ends_the_run_with_its_cause(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> str:
        raise NoSpace("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(job, "save", failing)
        with pytest.raises(NoSpace, match="The disk is full"):
            run(make(checkpoint=OFTEN, epochs=40))
    assert record_of(make()).status == "failed"
    assert record_of(make()).checkpoints == ()
    run(make(checkpoint=OFTEN))
    assert result_of(make())["steps"] == 6


def test_one_batch_is_learnt_by_heart(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    still = Augment(size_px=16, crop="none", eval_resize_px=16, flip=0, brightness=0)
    fast = Optimizer(name="adam", lr=1e-2, schedule="constant")
    changes: dict[str, Any] = {"overfit_batch": True, "epochs": 30, "augment": still, "optimizer": fast}
    changes["evaluation"] = Evaluation(every_epochs=30)
    config = make(**changes)
    run(config)
    found = [row for key, row in rows(config).items() if isinstance(key, tuple) and key[0] is not None]
    first, last = found[0]["loss"], found[-1]["loss"]
    assert last["kind"] < 0.1 * first["kind"]
    assert last["angle"] < 0.3 * first["angle"]
    short, again = (make(name, **{**changes, "epochs": 2}) for name in ("short", "again"))
    run(short)
    interrupted(again, monkeypatch, 6)
    assert_same_end(again, short)


@pytest.mark.parametrize("change", [{"mixup": 0.2}, {"grow_from_px": 8}])
def test_one_batch_is_shown_as_it_is(change: dict[str, float], make: Make) -> None:
    with pytest.raises(ConfigError, match="overfit_batch"):
        make(overfit_batch=True, augment=make().augment.model_copy(update=change))


@pytest.mark.parametrize("switch", [{"mixup": 0.5}, {"cutmix": 1.0}, {"erase": 0.5}])
def test_augmentation_changes_training_and_evaluation_not(switch: dict[str, float], make: Make) -> None:
    plain, config = make("plain", epochs=1), make(epochs=1, augment=make().augment.model_copy(update=switch))
    run(plain)
    run(config)
    assert result_of(config)["ledger"] == result_of(plain)["ledger"]
    assert rows(config)[1, 1 / 3, None]["loss"] != rows(plain)[1, 1 / 3, None]["loss"]


def test_mixing_needs_two_samples_of_a_lane(make: Make) -> None:
    with pytest.raises(ConfigError, match="mix within lanes"):
        make(global_batch=8, augment=make().augment.model_copy(update={"cutmix": 1.0}))


def test_products_in_tf32_need_a_gpu(make: Make) -> None:
    with pytest.raises(ConfigError, match="tf32 needs GPUs"):
        make(precision="tf32")
