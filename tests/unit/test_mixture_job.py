"""Training on a mixture of data sets: from the configuration to a killed and resumed run; what is refused before."""

import io
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtl import local
from mtl.arguments import parse as parse_arguments
from mtl.blame import machine
from mtl.config import Checkpoint, Config, Loader, Order, Source, parse
from mtl.console import RunConsole
from mtl.data.batch import OK
from mtl.data.example import Example
from mtl.data.manifest import Label
from mtl.data.mixture import Mixture
from mtl.data.writer import write
from mtl.doctor import Case
from mtl.doctor.dataset import data as data_checks
from mtl.doctor.dataset import data_if_there, labels, order
from mtl.errors import CheckpointError, ConfigError, DataError, MtlError
from mtl.local import solitary
from mtl.mixing import training_order, training_sets
from mtl.parts import build_loader, build_reader, build_specs, targets
from mtl.preflight import check
from mtl.preview import draw
from mtl.rehearsal import rehearse
from mtl.runtime import LocalRuntime
from mtl.store import open_store
from tests.helpers.datasets import LABELS, damage, tiny, tiny_example
from tests.helpers.engine import SMALL, assert_same_run, result_of, tiny_config, train
from tests.helpers.faults import Fault
from tests.helpers.ranks import Group, values

ALWAYS = Checkpoint(every_s=1e-9, background=False)


def some(path: Path, labels: dict[str, Label], n: int = 40) -> Path:
    """A training split of n images of their own, with some of the labels of `tiny`, or others."""
    examples: list[Example] = []
    for number in range(n):
        one = tiny_example("train", number, seed=5)
        values = {name: one.labels.get(name) for name in labels}
        examples.append(Example(f"some/{number}", "train", values, one.read))
    write(open_store(str(path)), path.name, examples, labels, workers=1)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 96 training images with all labels, and one of 40 with two of them and no other split."""
    folder = tmp_path_factory.mktemp("mixture")
    tiny(folder / "tiny", missing=0)
    some(folder / "some", {name: LABELS[name] for name in ("object", "amount")})
    return folder


@pytest.fixture
def make(data: Path, tmp_path: Path) -> Callable[..., Config]:
    """A configuration: two epochs of three steps; each step has 24 samples of the first data set, 8 of the other."""

    def made(name: str = "mixed", other: Path | None = None, **changes: Any) -> Config:
        mixture = {"more": Source(data=str(other or data / "some"), weight=1 / 3)}
        values = {"model": SMALL, "mixture": mixture, "checkpoint": ALWAYS, **changes}
        return tiny_config(data / "tiny", tmp_path / "runs", name, **values)

    return made


def train_here(config: Config) -> None:
    with LocalRuntime(gpu=False, threads=1, listen=lambda _: None, over=lambda: config.max_hours == 1e-9) as runtime:
        local.lead(config, RunConsole(io.StringIO()), runtime, torch.float64)


def refused(config: Config, kind: type[MtlError]) -> str:
    with pytest.raises(kind) as caught:
        check(config)
    error = caught.value
    assert all(part is not None for part in (error.got, error.expected, error.do)), error
    return str(error)


def test_killed_and_resumed_on_other_workers_it_is_the_same_run(make: Callable[..., Config], tmp_path: Path) -> None:
    whole, torn = make("whole"), make("torn")

    def start(config: Config, world_size: int, *faults: Fault) -> Group:
        folder = tmp_path / f"{config.name}-{world_size}"
        return Group(folder, world_size, train, config, torch.float64, faults, 1.0)

    train_here(whole)
    killed = start(torn, 2, Fault("step", 4, "kill"), Fault("step", 4, "kill", rank=1)).wait()
    assert [outcome.exitcode for outcome in killed] == [-signal.SIGKILL] * 2
    values(start(torn, 4).wait())
    assert_same_run(torn, whole)
    assert result_of(torn)["ledger"] == result_of(whole)["ledger"]
    assert (result_of(torn)["steps"], result_of(torn)["epochs"]) == (6, 2.0)


class Rank:
    """A runtime that only says which rank it is."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size


@pytest.mark.parametrize("memory", ["none", "encoded", "decoded"])
def test_global_batches_are_the_same_on_any_number_of_workers(make: Callable[..., Config], memory: Any) -> None:
    config = make(loader=Loader(memory=memory))
    sets = training_sets(config)
    specs = build_specs(config, sets[0].manifest)
    made = training_order(config, sets)
    assert isinstance(made, Mixture)
    assert (made.steps, [part.global_batch for part in made.parts]) == (3, [24, 8])

    def deliver(world_size: int) -> tuple[dict[int, list[tuple[Any, ...]]], dict[int, int]]:
        found: dict[int, list[tuple[Any, ...]]] = {step: [] for step in range(7)}
        ledgers = dict.fromkeys(range(7), 0)
        for rank in range(world_size):
            runtime: Any = Rank(rank, world_size)
            for batch in build_loader(config, specs, sets, training_order(config, sets), range(7), runtime):
                ledgers[batch.step] = (ledgers[batch.step] + batch.ledger) % 2**64
                for slot in np.flatnonzero(batch.status == OK).tolist():
                    numbers = [batch.labels[name][slot].tobytes() for name in sorted(batch.labels)]
                    found[batch.step].append((batch.images[slot].tobytes(), *numbers))
        return {step: sorted(samples) for step, samples in found.items()}, ledgers

    whole = deliver(1)
    for samples in whole[0].values():
        kinds = [sample[1 + sorted(config.tasks).index("kind")] for sample in samples]
        assert (len(kinds), kinds.count(np.int64(-1).tobytes())) == (32, 8)  # the other data set has none
    assert deliver(2) == whole
    assert deliver(4) == whole


def test_labels_that_a_data_set_lacks_are_missing(make: Callable[..., Config]) -> None:
    config = make()
    sets = training_sets(config)
    reader = build_reader(targets(config, build_specs(config, sets[0].manifest)), sets)
    first = len(sets[0].index.rows)
    whole, half = reader.read(first - 1), reader.read(first)
    assert (whole.number, half.number) == (first - 1, first)
    assert (whole.labels["kind"] >= 0).any()
    n = len(half.ids)
    assert half.labels["kind"].tolist() == [-1] * n
    assert np.isnan(half.labels["angle"]).all()
    assert (half.labels["object"] >= 0).any()
    assert {name: (a.dtype, a.shape[1:]) for name, a in whole.labels.items()} == {
        name: (a.dtype, a.shape[1:]) for name, a in half.labels.items()
    }
    assert sum(reader.index.rows) == 96 + 40
    assert [sum(path.startswith(f"{its.store.uri}/shards/") for path in reader.index.shard_path) for its in sets] == [
        len(its.index.shard_path) for its in sets
    ]


def test_a_bad_image_is_named_by_its_data_set(make: Callable[..., Config], data: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(data / "some", tmp_path / "some"))
    damage(open_store(str(other)), "train", 0, 0)
    config = make(other=other)
    sets = training_sets(config)
    specs, runtime = build_specs(config, sets[0].manifest), solitary()
    loader = build_loader(config, specs, sets, training_order(config, sets), range(5), runtime)
    bad = [bad for batch in loader for bad in batch.bad]
    assert [each.shard.startswith(str(other)) for each in bad] == [True]


def test_a_plan_has_a_line_for_each_data_set(make: Callable[..., Config]) -> None:
    config = make()
    plan = check(config)
    text = "\n".join(plan.describe(config))
    assert "tiny: 96 training images, 4 labels" in text
    assert "mixture  data: tiny, 96 images, weight 1; 6 of 8 lanes, 75.0% of each batch; 1.50 epochs in all" in text
    assert "more: some, 40 images, weight 0.333333; 2 of 8 lanes, 25.0% of each batch; 1.20 epochs in all" in text
    assert "3 steps an epoch, 6 in all" in text
    alone = check(config.model_copy(update={"mixture": {}}))
    assert "mixture" not in "\n".join(alone.describe(config.model_copy(update={"mixture": {}})))
    decoded = config.model_copy(update={"loader": Loader(memory="decoded")})
    assert check(decoded).memory.kept == (96 + 40) * (3 * 16**2 + 8 * 4 + 9)


def test_what_is_mixed_and_how_decides_the_run(make: Callable[..., Config], data: Path, tmp_path: Path) -> None:
    config = make()
    moved = make(other=Path(shutil.copytree(data / "some", tmp_path / "elsewhere")))
    train_here(config)
    assert check(moved).changed == {}
    assert check(moved).order.order_id == result_of(config)["order_id"]
    heavier = make(mixture={"more": Source(data=str(data / "some"), weight=1)})
    assert check(heavier).order.order_id != check(config).order.order_id
    other = some(tmp_path / "other", {"object": LABELS["object"]}, n=41)
    assert check(make(other=other)).order.order_id != check(config).order.order_id


def test_a_run_that_was_begun_otherwise_is_refused(make: Callable[..., Config], data: Path, tmp_path: Path) -> None:
    stopped = make(max_hours=1e-9)
    train_here(stopped)
    heavier = make(mixture={"more": Source(data=str(data / "some"), weight=1)})
    assert "mixture.more.weight" in refused(heavier, CheckpointError)
    assert "mixture" in refused(make(mixture={}), CheckpointError)
    moved = Path(shutil.copytree(data / "some", tmp_path / "elsewhere"))
    assert check(make(other=moved)).changed.keys() <= {"max_hours"}


def test_labels_must_mean_the_same(make: Callable[..., Config], tmp_path: Path) -> None:
    swapped = some(tmp_path / "swapped", {"object": Label(kind="class", classes=("green", "red", "blue"))})
    text = refused(make(other=swapped), DataError)
    assert "Label 'object' of the data set swapped (mixture.more) is not that of the first data set, tiny." in text
    assert "number 0 is green" in text
    assert "number 0 is red" in text
    kind = some(tmp_path / "kind", {"kind": Label(kind="real")})
    assert "kind real" in refused(make(other=kind), DataError)
    longer = some(tmp_path / "longer", {"object": Label(kind="class", classes=("red", "green", "blue", "grey"))})
    assert "4 classes, number 3 is grey" in refused(make(other=longer), DataError)
    none = some(tmp_path / "none", {"size": Label(kind="real")})
    assert "No row of the training split of the data set none (mixture.more)" in refused(make(other=none), DataError)


def test_what_does_not_fit_is_refused(make: Callable[..., Config], data: Path, tmp_path: Path) -> None:
    assert "There is no data set at" in refused(make(other=tmp_path / "nothing"), DataError)
    few = some(tmp_path / "few", {"object": LABELS["object"]}, n=7)
    text = refused(make(other=few), ConfigError)
    assert "The data set few (mixture.more) is smaller than its part of one global batch." in text
    assert "7 rows" in text
    assert "at least 8: 2 of 8 lanes, of 32 samples" in text
    source = Source(data=str(data / "some"))
    with pytest.raises(ConfigError, match="keep_tail does not go with mixture"):
        make(order=Order(lanes=8, keep_tail=True))
    with pytest.raises(ConfigError, match=r"needs as many order\.lanes"):
        make(mixture={f"m{number}": source for number in range(8)})
    with pytest.raises(ConfigError, match=r"mixture\.a b: the name"):
        make(mixture={"a b": source})
    with pytest.raises(ConfigError, match=r"source\.weight"):
        Source(data="x", weight=0)


def test_the_configuration_is_saved_and_read_back(make: Callable[..., Config], tmp_path: Path) -> None:
    config = make()
    assert parse(config.to_yaml()) == config
    (tmp_path / "mixed.yaml").write_text(make(mixture={"more": Source(data="some")}).to_yaml())
    asked = parse_arguments(["--config", str(tmp_path / "mixed.yaml"), "--mixture.more.weight", "2"]).config
    assert asked.mixture == {"more": Source(data=str(Path.cwd() / "some"), weight=2)}
    assert machine(make(mixture={"more": Source(data="s3://b/x")})).storage == "local files and S3"


def test_the_checks_look_at_every_data_set(make: Callable[..., Config], data: Path, tmp_path: Path) -> None:
    case = Case(make())
    told = [finding.what for check in (data_checks, labels, order) for finding in check(case)]
    text = "\n".join(told)
    assert "tiny: 96 train, 24 val, 24 test" in text
    assert "some: 40 train" in text
    assert "mixture.more: " in text
    assert "no kind, no angle" in text
    assert "2 of 8 lanes" in text
    (warned,) = data_if_there(Case(make(other=tmp_path / "nothing")))
    assert (warned.level, "nothing" in warned.what) == ("warn", True)
    other = Path(shutil.copytree(data / "some", tmp_path / "some"))
    next((other / "shards").iterdir()).unlink()
    with pytest.raises(DataError, match="parquet: missing"):
        list(data_checks(Case(make(other=other))))


def test_preview_and_rehearsal_show_all_data_sets(make: Callable[..., Config], tmp_path: Path) -> None:
    config = make()
    plan = check(config)
    draw(config, plan, tmp_path / "seen.png")
    assert (tmp_path / "seen.png").stat().st_size > 1000
    assert set(rehearse(config, plan.manifest).losses) <= set(config.tasks)
