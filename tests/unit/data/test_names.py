"""The named images are those that a loader delivers: their hashes add up to its ledger."""

from pathlib import Path

import numpy as np
import pytest
import xxhash

from mtl.config import Config, Source
from mtl.data.batch import ledger
from mtl.data.names import image_ids
from mtl.local import solitary
from mtl.mixing import training_order, training_sets
from mtl.parts import build_loader, build_specs
from tests.helpers.datasets import tiny
from tests.helpers.engine import tiny_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    tiny(folder / "a", rows={"train": 200, "val": 8, "test": 8})
    tiny(folder / "b", rows={"train": 150, "val": 8, "test": 8})
    return folder


def made(data: Path, mixed: bool) -> Config:
    return tiny_config(data / "a", data / "runs", mixture={"b": Source(data=str(data / "b"))} if mixed else {})


@pytest.mark.parametrize("mixed", [False, True])
def test_names_are_those_of_the_loader(data: Path, mixed: bool) -> None:
    config = made(data, mixed)
    sets = training_sets(config)
    order, steps = training_order(config, sets), range(4, 9)
    folders = [(its.store, its.index) for its in sets]
    names = image_ids(order, folders, steps)
    specs = build_specs(config, sets[0].manifest)
    for batch in build_loader(config, specs, sets, order, steps, solitary()):
        mine, names = names[: order.global_batch], names[order.global_batch :]
        epoch, number = divmod(batch.step, order.steps)
        positions = np.arange(number * order.global_batch, (number + 1) * order.global_batch)
        ids = np.array([xxhash.xxh3_64_intdigest(name.encode()) for name in mine], np.uint64)
        assert ledger(epoch, positions, ids, np.zeros(len(ids), np.uint8)) == batch.ledger
    assert not names
