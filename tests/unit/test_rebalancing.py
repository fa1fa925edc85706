"""Rebalanced runs: a rare class comes more often, the order stays exact, and what can not be done is refused."""

import shutil
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch

from mtl.config import Checkpoint, Config, Loader, Loss, Source, Task, parse
from mtl.config_order import Rebalance
from mtl.data.example import Example
from mtl.data.labels import Value
from mtl.data.manifest import Index, Label
from mtl.data.plan import Layout
from mtl.data.writer import write
from mtl.errors import CheckpointError, ConfigError, DataError
from mtl.local import solitary
from mtl.mixing import training_order, training_sets
from mtl.parts import build_loader, build_specs
from mtl.preflight import check
from mtl.rebalancing import Peers
from mtl.store import open_store
from tests.helpers.datasets import LABELS, tiny_example
from tests.helpers.engine import SMALL, TASKS, assert_same_run, result_of, tiny_config, train
from tests.helpers.faults import Fault
from tests.helpers.ranks import Group, values

COUNTS = {0: 100, 1: 25, 2: 4, None: 11}
"""Training rows of each class of `object`; 11 have no label."""

TAGS = Label(kind="set", classes=("a", "b"))
FEW = Label(kind="binary")


def skewed(path: Path, counts: Mapping[int | None, int] = COUNTS) -> Path:
    """A data set of so many training images of each colour, with a set that `b` is rarely in, and a rare answer."""
    examples: list[Example] = []
    objects = [thing for thing, n in counts.items() for _ in range(n)]
    for split, things in (("train", objects), ("val", [0, 1, 2, 0]), ("test", [0, 1, 2, 0])):
        for number, thing in enumerate(things):
            one = tiny_example(split, number, missing=0)
            tags: Value = None if number % 9 == 0 else (0, 1) if number % 30 == 1 else (0,)
            shown = {**one.labels, "object": thing, "tags": tags, "few": int(number % 30 == 1)}
            examples.append(Example(one.id, split, shown, one.read))
    labels, layout = {**LABELS, "tags": TAGS, "few": FEW}, Layout(shard_bytes=24_000, row_group_bytes=6_000)
    write(open_store(str(path)), path.name, examples, labels, layout, workers=1)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rebalancing")
    skewed(folder / "skewed")
    skewed(folder / "even", {0: 20, 1: 20, 2: 20})
    return folder


@pytest.fixture
def make(data: Path, tmp_path: Path) -> Callable[..., Config]:
    def made(name: str = "run", rebalance: Rebalance | None = None, at: str = "skewed", **changes: Any) -> Config:
        rebalance = Rebalance(task="object") if rebalance is None else rebalance
        values = {"model": SMALL, "rebalance": rebalance, "checkpoint": Checkpoint(every_s=1e-9, background=False)}
        return tiny_config(data / at, tmp_path / "runs", name, **{**values, **changes})

    return made


def labels_of(config: Config, task: str) -> Counter[int]:
    """How often each class of a task comes in an epoch."""
    sets, keep = training_sets(config), config.order.model_copy(update={"keep_tail": True})
    whole = config.model_copy(update={"order": keep})
    order, specs = training_order(whole, sets), build_specs(config, sets[0].manifest)
    found: Counter[int] = Counter()
    for batch in build_loader(whole, specs, sets, order, range(order.steps), solitary()):
        found.update(batch.labels[task][batch.positions >= 0].tolist())
    return found


def test_each_class_comes_as_often_as_said_and_what_has_no_label_once(make: Callable[..., Config]) -> None:
    equal = labels_of(make(rebalance=Rebalance(task="object", power=1, cap=255)), "object")
    assert equal == {0: 100, 1: 100, 2: 100, -1: 11}
    roots = labels_of(make(), "object")
    assert roots == {0: 100, 1: 50, 2: 20, -1: 11}
    capped = labels_of(make(rebalance=Rebalance(task="object", power=1, cap=3)), "object")
    assert capped == {0: 100, 1: 75, 2: 12, -1: 11}
    tenth = labels_of(make(rebalance=Rebalance(task="object", power=1, threshold=10 / 129)), "object")
    assert (tenth[0], tenth[1], tenth[-1]) == (100, 25, 11)
    assert 8 <= tenth[2] <= 12  # 2.5 times each: two or three by chance


def test_a_run_says_what_it_does(make: Callable[..., Config]) -> None:
    config = make(loader=Loader(memory="decoded"))
    plan = check(config)
    told = "\n".join(plan.describe(config))
    assert "skewed: 140 training images" in told
    assert "classes  rebalanced by 'object': 140 images are 181 an epoch, the rarest class (blue) x 5" in told
    assert "5 steps an epoch, 10 in all" in told
    assert plan.memory.kept == 140 * (3 * 16**2 + 8 * 4 + 9)
    assert parse(config.to_yaml()) == config


def test_equal_classes_or_no_task_leave_the_order_as_it_is(make: Callable[..., Config]) -> None:
    """Bit by bit: the same identity, and with it the same rows at the same places."""
    plain, even = make(at="even", rebalance=Rebalance()), make(at="even")
    found = [check(config) for config in (plain, even)]
    assert found[0].order.order_id == found[1].order.order_id
    assert [plan.sets[0].index.repeats for plan in found] == [None, None]
    assert not any("classes" in line for line in found[0].describe(plain))
    assert any("60 images are 60 an epoch" in line for line in found[1].describe(even))
    assert check(make()).order.order_id != check(make(rebalance=Rebalance())).order.order_id


def test_killed_and_resumed_on_other_workers_it_is_the_same_run(make: Callable[..., Config], tmp_path: Path) -> None:
    """Its ranks read labels together: two of them one half each, then four a quarter."""

    def start(config: Config, world_size: int, *faults: Fault) -> Group:
        return Group(tmp_path / f"{config.name}-{world_size}", world_size, train, config, torch.float64, faults)

    whole, torn = make("whole"), make("torn")
    values(start(whole, 1).wait())
    killed = start(torn, 2, Fault("step", 7, "kill"), Fault("step", 7, "kill", rank=1)).wait()
    assert [outcome.exitcode for outcome in killed] == [-signal.SIGKILL] * 2
    with pytest.raises(CheckpointError, match=r"rebalance\.power"):
        check(make("torn", rebalance=Rebalance(task="object", power=1)))
    values(start(torn, 4).wait())
    assert_same_run(torn, whole)
    assert (result_of(torn)["steps"], result_of(torn)["epochs"]) == (10, 2.0)


def test_ranks_that_read_a_part_each_have_the_same_table(make: Callable[..., Config]) -> None:
    config = make()
    (alone,) = training_sets(config)
    assert alone.index.repeats is not None
    given: dict[int, Any] = {}
    met = Barrier(3)

    def rank(number: int) -> Any:
        shares: list[Any] = []

        def together(values: Any) -> Any:
            shares.append(values.copy())
            given[number] = values
            met.wait()
            total = sum(given.values())
            met.wait()
            return total

        (its,) = training_sets(config, Peers(number, 3, together))
        return its.index.repeats, shares

    with ThreadPoolExecutor(3) as pool:
        for repeats, (counts, share) in pool.map(rank, range(3)):
            assert repeats.digest == alone.index.repeats.digest
            assert 0 < (share > 0).sum() < 140
            assert 0 < counts.sum() < 129


@pytest.mark.parametrize(
    ("task", "most", "rare"),
    [
        (Task(kind="multilabel", label="tags"), 124, "b"),
        (Task(kind="binary", label="few"), 135, "yes"),
        (Task(kind="multilabel", label="kind,few"), None, "few"),
    ],
)
def test_other_kinds_with_classes(make: Callable[..., Config], task: Task, most: int | None, rare: str) -> None:
    """The five rows of the rare class come as often together as the `most` of the most frequent one."""
    config = make(tasks={**TASKS, "it": task}, rebalance=Rebalance(task="it", power=1, cap=99))
    (its,) = training_sets(config)
    assert its.index.repeats is not None
    histogram = its.manifest.split("train").labels["kind"].histogram
    assert histogram is not None
    factor = (most or histogram[1]) / 5
    times = np.sort(its.index.repeats.times)
    assert (times[:-5] == 1).all()
    assert {*times[-5:].tolist()} <= {int(factor), int(np.ceil(factor))}
    assert f"the rarest class ({rare}) x {factor:.3g}" in "\n".join(check(config).describe(config))


def test_a_data_set_without_the_label_is_taken_as_it_is(make: Callable[..., Config], tmp_path: Path) -> None:
    examples = [Example(f"o/{n}", "train", {"kind": n % 2}, tiny_example("train", n).read) for n in range(40)]
    write(open_store(str(tmp_path / "other")), "other", examples, {"kind": LABELS["kind"]}, workers=1)
    config = make(mixture={"more": Source(data=str(tmp_path / "other"))})
    plan = check(config)
    told = "\n".join(plan.describe(config))
    assert "classes  data: rebalanced by 'object': 140 images are 181 an epoch" in told
    assert "classes  mixture.more: no label of 'object': 40 images, each once an epoch" in told
    assert "data: skewed, 140 images, weight 1" in told
    assert plan.order.steps == 181 // 32
    assert plan.sets[1].index.repeats is None


def test_evaluations_are_never_rebalanced(make: Callable[..., Config]) -> None:
    (its,) = training_sets(make())
    assert Index.load(its.store, "val").repeats is None
    assert Index.load(its.store, "train").repeats is None


@pytest.mark.parametrize(
    ("rebalance", "said"),
    [
        (Rebalance(task="colour"), r"rebalance\.task \(colour\) must be one of object, kind, angle, amount"),
        (Rebalance(task="angle"), "of kind circular; only multiclass, binary, multilabel, ordinal have classes"),
        (Rebalance(power=1), r"not by which task's classes: set rebalance\.task too"),
    ],
)
def test_what_can_not_be_done_is_refused(make: Callable[..., Config], rebalance: Rebalance, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make(rebalance=rebalance)


def test_a_class_is_not_made_up_for_twice(make: Callable[..., Config]) -> None:
    balanced = Task(kind="multiclass", label="object", loss=Loss(balanced=True))
    with pytest.raises(ConfigError, match=r"rebalance\.task and tasks\.object\.loss\.balanced"):
        make(tasks={**TASKS, "object": balanced})


def test_labels_that_can_not_be_read_are_an_error(make: Callable[..., Config], tmp_path: Path) -> None:
    broken = skewed(tmp_path / "broken")
    (broken / "footers.bin").write_bytes(bytes((broken / "footers.bin").stat().st_size))
    with pytest.raises(DataError, match=r"The labels object of .*broken/shards/train.* can not be read"):
        check(make(at=str(broken)))


def test_labels_of_another_count_are_an_error(make: Callable[..., Config], tmp_path: Path) -> None:
    """As if shards had been written again, and the manifest had stayed."""
    changed, old = skewed(tmp_path / "changed"), skewed(tmp_path / "old", {**COUNTS, 0: 101, 1: 24})
    shutil.copy(old / "manifest.json", changed / "manifest.json")
    with pytest.raises(DataError, match="changed are not those that were written") as caught:
        check(make(at=str(changed)))
    assert (caught.value.got, caught.value.expected) == ("100 training rows of 'red'", "101, as manifest.json says")
