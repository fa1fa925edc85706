"""A training step is exact, and either done or left undone by all; training counts, commits and stops as it says."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mtl.agreement import present
from mtl.config import Checkpoint, Config, Model, Optimizer, Order
from mtl.config import Loader as LoaderConfig
from mtl.data.batch import EMPTY, QUARANTINED, Bad, Batch
from mtl.data.colour import Standardise
from mtl.data.loader import Loader
from mtl.errors import DataError
from mtl.loop import evaluate, train, train_step
from mtl.model.batchnorm import apply_policy
from mtl.rewind import BAD_STEPS, Rewind
from mtl.runtime import Runtime
from mtl.trainee import Position, Trainee
from tests.helpers.backbones import small
from tests.helpers.batches import CPU, STATISTICS, batch, counts, gradients, hide, rows, specs, trainee
from tests.helpers.engine import TASKS

EXACT: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-12}
PLAIN = Optimizer(name="sgd", lr=1.0, momentum=0.0)
STILL = Optimizer(name="sgd", lr=1e-300, momentum=0.0)
EPOCH = ["epoch 1", "commit 4"]
AFTER = [*EPOCH, "commit 5"]


def step(made: Trainee, one: Batch) -> torch.Tensor | None:
    return train_step(made, one, counts(one), CPU)


def parameters(made: Trainee) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in made.model.state_dict().items()}


def assert_close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, msg=name, **EXACT)


@settings(max_examples=15)
@given(st.lists(st.integers(0, 15), max_size=4), st.sampled_from([*TASKS]), st.data())
def test_gradients_are_those_of_the_labelled_rows_alone(hidden: list[int], task: str, data: st.DataObject) -> None:
    n = 6
    lacking = {name: {row for row in hidden if row < n} if name == task else set() for name in TASKS}
    also = data.draw(st.sampled_from([*TASKS]))
    lacking[also] = lacking[also] | {0, 1}
    whole, one = trainee(), batch(n)
    for name, without in lacking.items():
        hide(one, name, sorted(without))
    losses = step(whole, one)
    assert losses is not None
    # Reference: each task by itself, on the rows that have its label.
    expected = {name: torch.zeros_like(tensor) for name, tensor in gradients(whole).items()}
    for number, (spec, (name, without)) in enumerate(zip(specs(), lacking.items(), strict=True)):
        part = rows(one, [row for row in range(n) if row not in without])
        alone = trainee()
        labels = torch.from_numpy(part.labels[name])
        x = alone.standardise(torch.from_numpy(part.images), torch.from_numpy(part.colour))
        loss = spec.each(alone.model(x)[name], labels)
        assert losses[number].item() == pytest.approx(loss.sum().item())
        (spec.weight * loss.mean()).backward()
        for parameter, gradient in gradients(alone).items():
            expected[parameter] += gradient
    assert_close(gradients(whole), expected)


@pytest.mark.parametrize("task", TASKS)
def test_a_task_that_nobody_labelled_trains_nothing(task: str) -> None:
    made, one = trainee(), batch(8)
    hide(one, task, slice(None))
    assert step(made, one) is not None
    found = gradients(made)
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert all(not gradient.any() for name, gradient in found.items() if name.startswith(f"heads.{task}."))
    assert any(gradient.any() for name, gradient in found.items() if name.startswith("backbone."))


def test_a_batch_without_any_label_is_a_step_of_zero() -> None:
    made, one = trainee(optimizer=PLAIN), batch(8)
    for task in TASKS:
        hide(one, task, slice(None))
    before = parameters(made)
    losses = step(made, one)
    assert losses is not None
    assert not losses.any()
    assert_close(parameters(made), before)


@pytest.mark.parametrize("micro_batch", [1, 3, 8, 11, 12])
def test_accumulation_changes_nothing(micro_batch: int) -> None:
    whole, parts, one = trainee(), trainee(micro_batch=micro_batch), batch(12)
    hide(one, "kind", [0, 1, 2, 5])
    torch.testing.assert_close(step(parts, one), step(whole, one), **EXACT)
    assert_close(gradients(parts), gradients(whole))
    assert_close(parameters(parts), parameters(whole))


@pytest.mark.parametrize("micro_batch", [4, 8])
def test_accumulation_leaves_running_statistics_alone(micro_batch: int) -> None:
    whole, parts = (trainee(grouped, micro_batch=m) for m in (12, micro_batch))
    for number in range(3):
        step(whole, batch(12, seed=number))
        step(parts, batch(12, seed=number))
    assert_close(parameters(parts), parameters(whole))


def test_ranks_share_a_step() -> None:
    """The gradients of two halves, each with W = 2 and the counts of both, average to those of the whole."""
    whole, one = trainee(), batch(12)
    hide(one, "angle", slice(0, 6))
    step(whole, one)
    found: list[dict[str, torch.Tensor]] = []
    for half in (slice(0, 6), slice(6, 12)):
        part = trainee(world_size=2)
        train_step(part, rows(one, half), counts(one), CPU)
        found.append(gradients(part))
    assert_close({name: (found[0][name] + found[1][name]) / 2 for name in found[0]}, gradients(whole))


def test_a_step_without_finite_gradient_leaves_no_trace() -> None:
    made = trainee(partial(small, "batch"), optimizer=Optimizer(name="adam", lr=0.1))
    step(made, batch(8))
    before, moments = parameters(made), {p: dict(state) for p, state in made.optimizer.state.items()}
    bad = batch(8, seed=1)
    bad.colour[3] = np.nan
    assert step(made, bad) is None
    for name, tensor in made.model.state_dict().items():
        assert tensor.equal(before[name]), name
    for parameter, state in made.optimizer.state.items():
        assert all(value is moments[parameter][key] for key, value in state.items())
    assert step(made, batch(8, seed=2)) is not None
    assert all(tensor.isfinite().all() for tensor in parameters(made).values())


def test_a_loss_that_overflows_skips_the_step_though_its_gradient_would_be_finite() -> None:
    made = trainee(dtype=torch.float32)
    head = made.model.get_submodule("heads.amount.out")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.bias.fill_(1e20)  # squared, it leaves float32
    before = parameters(made)
    assert step(made, batch(4)) is None
    assert_close(parameters(made), before)


@pytest.mark.parametrize("clip_norm", [0.01, 1e6])
def test_clipping(clip_norm: float) -> None:
    free, clipped = trainee(optimizer=PLAIN), trainee(optimizer=PLAIN, clip_norm=clip_norm)
    before = parameters(free)
    step(free, batch(8))
    step(clipped, batch(8))
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients(free).values()))
    factor = min(1.0, clip_norm / (norm + 1e-6))
    for name, tensor in parameters(clipped).items():
        moved = before[name] + factor * (parameters(free)[name] - before[name])
        torch.testing.assert_close(tensor, moved, rtol=1e-9, atol=1e-12)


def grouped() -> nn.Module:
    return apply_policy(small("batch"), "groups", 4)


class Scripted:
    """Batches by step, as a loader gives them."""

    size_px = 16

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


class Journal:
    """A rank by itself, asked to stop and to commit at questions of these numbers, and what its training tells."""

    rank, world_size, device = 0, 1, CPU

    def __init__(self, stop_at: int | None = None, commit_at: tuple[int, ...] = (), enough: int | None = None) -> None:
        self._enough = enough
        self._stop_at, self._commit_at, self._asked = stop_at, commit_at, 0
        self.told: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []

    def control(self, values: torch.Tensor) -> "Journal.Done":
        return self.Done(values)

    class Done:
        def __init__(self, values: torch.Tensor) -> None:
            self._values = values

        def wait(self) -> torch.Tensor:
            return self._values

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def stop_requested(self) -> bool:
        self._asked += 1
        return self._stop_at is not None and self._asked > self._stop_at

    def commit_requested(self) -> bool:
        return self._asked - 1 in self._commit_at

    def emit(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def train(
        self,
        batches: list[Batch],
        position: Position | None = None,
        passed_over: frozenset[int] = frozenset(),
        **changes: Any,
    ) -> tuple[bool, Position]:
        """Train on `batches`, an epoch of four; `told` gets what happens besides steps."""
        settings: dict[str, Any] = {"epochs": 2, "global_batch": 8, "log_every_s": 1e9, "tasks": TASKS, **changes}
        order = Order(lanes=8)
        model = Model(backbone="tests.helpers.backbones:small", batch_norm="local")
        config = Config(recipe="t", name="t", data="d", order=order, model=model, **settings)
        position = position or Position()
        finished = train(
            config,
            replace(trainee(optimizer=config.optimizer), passed_over=passed_over),
            position,
            cast("Loader", Scripted(batches)),
            cast("Runtime", self),
            commit=lambda at: self.told.append(f"commit {at.step}"),
            record=self.rows.append,
            at_epoch_end=self.after_epoch,
            watch=lambda: None,
        )
        return finished, position

    def after_epoch(self, epoch: int) -> bool:
        self.told.append(f"epoch {epoch}")
        return epoch == self._enough


def batches(*steps: int) -> list[Batch]:
    return [batch(8, step=number, seed=number) for number in steps]


def test_an_epoch_ends_with_its_evaluation_and_then_a_commit() -> None:
    journal = Journal()
    finished, position = journal.train(batches(*range(8)))
    assert finished
    assert journal.told == ["epoch 1", "commit 4", "epoch 2", "commit 8"]
    assert position.step == 8
    assert position.ledger == sum(range(1, 9))
    assert [row["step"] for row in journal.rows] == [4, 8]


def test_training_goes_on_from_a_position() -> None:
    journal = Journal()
    finished, position = journal.train(batches(6, 7), Position(step=6, ledger=2**64 - 8))
    assert finished
    assert (position.step, position.ledger) == (8, 7)
    assert journal.told == ["epoch 2", "commit 8"]


def test_nothing_is_left_to_train() -> None:
    journal = Journal()
    assert journal.train([], Position(step=8)) == (True, Position(step=8))
    assert journal.told == []


def test_enough_ends_the_training_after_a_commit() -> None:
    journal = Journal(enough=1)
    finished, position = journal.train(batches(*range(12)), epochs=3)
    assert (finished, position.step) == (True, 4)
    assert journal.told == EPOCH


@pytest.mark.parametrize(("stop_at", "told"), [(0, []), (1, ["commit 1"]), (3, ["commit 3"]), (4, EPOCH), (5, AFTER)])
def test_a_stop_commits_what_was_done(stop_at: int, told: list[str]) -> None:
    journal = Journal(stop_at)
    finished, position = journal.train(batches(*range(8)))
    assert not finished
    assert position.step == stop_at
    assert journal.told == told


def test_a_commit_that_is_asked_for_ends_nothing() -> None:
    journal = Journal(commit_at=(0, 2, 3, 4))
    finished, position = journal.train(batches(*range(8)))
    assert (finished, position.step) == (True, 8)
    # Of the start there is nothing to commit; of step 4, the end of the epoch, there is a commit already.
    assert journal.told == ["commit 2", "commit 3", "epoch 1", "commit 4", "epoch 2", "commit 8"]


def test_commits_come_by_time_and_never_twice() -> None:
    journal = Journal()
    journal.train(batches(*range(8)), checkpoint=Checkpoint(every_s=1e-9))
    commits = [text for text in journal.told if text.startswith("commit")]
    assert commits == [f"commit {step}" for step in range(1, 9)]


def test_progress_has_exact_means_over_its_window() -> None:
    losses: list[torch.Tensor] = []
    made, all_counts = trainee(optimizer=STILL), torch.zeros(4, dtype=torch.float64)
    scripted = batches(*range(4))
    hide(scripted[1], "kind", slice(0, 5))
    for one in scripted:
        sums = step(made, one)
        assert sums is not None
        losses.append(sums)
        all_counts += counts(one)
    journal = Journal()
    journal.train(scripted, optimizer=STILL, epochs=1)
    (row,) = journal.rows
    expected = torch.stack(losses).sum(0) / all_counts
    assert row["loss"] == pytest.approx(dict(zip(TASKS, expected.tolist(), strict=True)), rel=1e-9)
    assert (row["step"], row["steps"], row["epoch"]) == (4, 4, 1.0)
    progress = next(event for event in journal.events if event["kind"] == "progress")
    assert progress["loss"] == row["loss"]
    assert progress["eta_s"] == 0


def test_every_step_logs_where_that_is_asked_for() -> None:
    journal = Journal()
    journal.train(batches(*range(8)), log_every_s=1e-9)
    assert [row["step"] for row in journal.rows] == [*range(1, 9)]
    rates = [row["lr"] for row in journal.rows]
    assert rates == sorted(rates, reverse=True)


def test_time_is_blamed_in_every_row_and_in_words_at_each_end() -> None:
    journal = Journal()
    journal.train(batches(*range(8)))
    for row in journal.rows:
        assert sum(row["blame"].values()) == pytest.approx(1)
        assert row["ceiling"] == {}  # batches made by hand cost nothing
    said = [event["text"] for event in journal.events if event["kind"] == "blame"]
    assert all("-bound: " in text for text in said)
    assert [text.partition(" ")[0] for text in said] == ["epoch", "epoch", "all"]


def test_ranks_of_different_size_see_no_blank_rows_in_their_batch_norm() -> None:
    """What a rank with empty slots leaves in its statistics is what its samples alone leave."""
    padded, alone = trainee(partial(small, "batch")), trainee(partial(small, "batch"))
    one = batch(8)
    one.images[6:], one.status[6:] = 0, EMPTY
    for task in TASKS:
        hide(one, task, slice(6, 8))
    step(padded, present(one))
    step(alone, rows(one, slice(0, 6)))
    assert_close(parameters(padded), parameters(alone))


def test_skipped_steps_are_counted_and_told() -> None:
    scripted = batches(*range(8))
    for number in (2, 5):
        scripted[number].colour[0] = np.nan
    journal = Journal()
    finished, position = journal.train(scripted)
    assert finished
    assert (position.skipped, position.step, position.ledger) == (2, 8, sum(range(1, 9)))
    notes = [event["text"] for event in journal.events if event["kind"] == "note"]
    assert [note.partition(":")[0] for note in notes] == ["step 2", "step 5"]
    assert all(math.isfinite(loss) for row in journal.rows for loss in row["loss"].values())


def test_many_bad_steps_in_a_row_send_the_run_back() -> None:
    scripted = batches(*range(22))
    for one in scripted[1:10] + scripted[11:]:  # nine, which are forgiven, a good one, and more than nine
        one.colour[0] = np.nan
    with pytest.raises(Rewind) as caught:
        Journal().train(scripted, epochs=6)
    assert (caught.value.first, caught.value.last) == (11, 10 + BAD_STEPS)


def test_no_commit_is_made_by_time_amid_bad_steps() -> None:
    scripted = batches(*range(8))
    for one in scripted[1:3]:
        one.colour[0] = np.nan
    journal = Journal()
    journal.train(scripted, checkpoint=Checkpoint(every_s=1e-9))
    # The flag for step 2 was on its way when step 1 turned out bad.
    assert "commit 3" not in journal.told
    assert "commit 5" in journal.told


def test_steps_to_pass_over_are_not_trained_but_counted() -> None:
    scripted, journal = batches(*range(8)), Journal()
    scripted[1].colour[0] = scripted[2].colour[0] = np.nan  # would be noticed
    finished, position = journal.train(scripted, passed_over=frozenset({1, 2, 5}))
    assert finished
    assert (position.skipped, position.step, position.ledger) == (3, 8, sum(range(1, 9)))
    assert not [event for event in journal.events if event["kind"] == "note"]


def test_too_many_undecodable_images_end_the_training() -> None:
    scripted = batches(*range(8))
    for number in (0, 1, 2):
        scripted[number].status[5] = QUARANTINED
        scripted[number].bad = [Bad(5, "shards/train-0.parquet", 7, "no JPEG")]
    journal = Journal()
    # A share of 0.07 of an epoch of 32 samples is two images.
    with pytest.raises(DataError, match="can not be decoded") as caught:
        journal.train(scripted, loader=LoaderConfig(error_budget=0.07))
    assert "3 of 24 samples" in str(caught.value)
    assert "shards/train-0.parquet, row 7: no JPEG" in str(caught.value)
    finished, position = Journal().train(scripted, loader=LoaderConfig(error_budget=0.1))
    assert (finished, position.quarantined) == (True, 3)


def test_evaluation_counts_every_row_once() -> None:
    made, one = trainee(), batch(10)
    hide(one, "object", [1, 2])
    hide(one, "kind", slice(None))
    one.status[7:] = EMPTY
    for task in TASKS:
        hide(one, task, slice(7, 10))
    standardise = Standardise(STATISTICS, None, CPU, torch.float64)
    runtime = cast("Runtime", Journal())

    def evaluated(parts: list[Batch], rows: int) -> dict[str, dict[str, float]]:
        loader = cast("Loader", Scripted(parts))
        found = evaluate(made.model, specs(), loader, standardise, made.precision, runtime, rows)
        assert found.quarantined == sum(int((part.status == QUARANTINED).sum()) for part in parts)
        return found.metrics

    whole = evaluated([one], 7)
    assert {name: metrics["labels"] for name, metrics in whole.items()} == {
        "object": 5,
        "kind": 0,
        "angle": 7,
        "amount": 7,
    }
    assert whole["kind"]["loss"] == whole["kind"]["accuracy"] == 0
    split = evaluated([rows(one, slice(0, 3)), rows(one, slice(3, 10))], 7)
    for name, metrics in whole.items():
        assert split[name] == pytest.approx(metrics, rel=1e-12)
    assert not made.model.training
    one.status[4] = QUARANTINED
    evaluated([one], 7)
    with pytest.raises(DataError, match="every row once"):
        evaluated([one], 8)
