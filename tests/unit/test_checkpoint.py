import os
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mtl.attempt import Attempt, begin_attempt, retain
from mtl.checkpoint import MANIFEST, Checkpoint, load, load_newest, restore_model, save
from mtl.errors import CheckpointError, StoreError
from mtl.lease import Lease, acquire
from mtl.record import Commit, checkpoint_path, read
from mtl.store import LocalStore
from tests.helpers.memory_store import MemoryStore
from tests.helpers.runs import die
from tests.helpers.tensors import assert_same, small_model

ROOT = Path(__file__).parents[2]


def save_step(store: MemoryStore, step: int, attempt: int = 1) -> Commit:
    """Save a model whose weights tell the step."""
    path = checkpoint_path(step, attempt)
    sealed = save(store, path, {"model": small_model(step).state_dict()}, {"step": step})
    return Commit(path=path, step=step, epoch=0, samples=step, manifest_sha256=sealed, time="")


def assert_is_step(checkpoint: Checkpoint, step: int) -> None:
    assert checkpoint.state == {"step": step}
    assert_same(checkpoint.files["model"], small_model(step).state_dict())


def flip_one_byte(store: MemoryStore, key: str, at: int = -1) -> None:
    data = bytearray(store.get(key))
    data[at] ^= 1
    store.put(key, bytes(data))


@pytest.fixture
def attempt(store: MemoryStore) -> Attempt:
    lease = acquire(store, "cats", on_wait=lambda _: None)
    assert isinstance(lease, Lease)
    die(lease)
    return begin_attempt(store, lease.owner.id)


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@given(
    shapes=st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=4)), max_size=5),
    state=st.dictionaries(st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
        | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)),
)  # fmt: skip
def test_what_is_saved_is_loaded(shapes: list[tuple[torch.dtype, list[int]]], state: dict[str, object]) -> None:
    store = MemoryStore()
    tensors = {str(i): torch.randint(0, 2, shape).to(dtype) for i, (dtype, shape) in enumerate(shapes)}
    sealed = save(store, "checkpoints/x", {"model": tensors, "ema": {}}, state)  # type: ignore[arg-type]
    loaded = load(store, "checkpoints/x", sealed)
    assert_same(loaded.files["model"], tensors)
    assert loaded.files["ema"] == {}
    assert loaded.state == state


def test_tied_overlapping_and_strided_tensors(store: MemoryStore) -> None:
    weight = nn.Parameter(torch.randn(4, 6))
    tensors = {
        "tied.a": weight,
        "tied.b": weight,
        "view": weight[1:3],
        "transposed": weight.t(),
        "part of a larger one": torch.randn(100)[10:20],
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "expanded": torch.randn(3, 1).expand(3, 5),
    }
    sealed = save(store, "checkpoints/x", {"model": tensors}, {})
    assert_same(load(store, "checkpoints/x", sealed).files["model"], {k: v.detach() for k, v in tensors.items()})
    assert len(store.get("checkpoints/x/model.safetensors")) < 4096, "only the elements of a view are stored"


def test_the_manifest_comes_last(store: MemoryStore) -> None:
    save(store, "checkpoints/x", {"model": {}, "optimizer": {}}, {})
    assert store.operations == [
        "put checkpoints/x/model.safetensors",
        "put checkpoints/x/optimizer.safetensors",
        "put checkpoints/x/state.json",
        "put checkpoints/x/manifest.json",
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_every_damage_is_found_and_named(store: MemoryStore, name: str, damage: str) -> None:
    commit = save_step(store, 10)
    key = f"{commit.path}/{name}"
    if damage == "flip":
        flip_one_byte(store, key)
    elif damage == "truncate":
        store.put(key, store.get(key)[:-1])
    else:
        store.delete(key)
    with pytest.raises(CheckpointError, match=name):
        load(store, commit.path, commit.manifest_sha256)


def test_a_checkpoint_of_a_newer_version_is_refused(store: MemoryStore) -> None:
    raw = b'{"format_version": 2, "parts": []}'
    store.put(f"checkpoints/x/{MANIFEST}", raw)
    with pytest.raises(CheckpointError, match="newer"):
        load(store, "checkpoints/x", sha256(raw).hexdigest())


def test_no_commits_no_checkpoint(store: MemoryStore) -> None:
    assert load_newest(store, (), pytest.fail) is None


def test_the_newest_is_loaded_without_a_word(store: MemoryStore) -> None:
    old, new = save_step(store, 10), save_step(store, 20)
    found = load_newest(store, (new, old), pytest.fail)
    assert found is not None
    assert found[0] == new
    assert_is_step(found[1], 20)


def test_one_flipped_byte_falls_back_loudly(store: MemoryStore) -> None:
    old, new = save_step(store, 10), save_step(store, 20)
    flip_one_byte(store, f"{new.path}/model.safetensors", at=100)
    warnings: list[str] = []
    found = load_newest(store, (new, old), warnings.append)
    assert found is not None
    assert found[0] == old
    assert_is_step(found[1], 10)
    assert len(warnings) == 1
    assert f"{new.path}/model.safetensors is damaged" in warnings[0]


def test_all_damaged_is_an_error_with_every_reason(store: MemoryStore) -> None:
    old, new = save_step(store, 10), save_step(store, 20)
    flip_one_byte(store, f"{new.path}/state.json")
    store.delete(f"{old.path}/model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_newest(store, (new, old), lambda _: None)
    text = str(caught.value)
    assert f"{new.path}/state.json is damaged" in text
    assert f"{old.path}/model.safetensors is missing" in text
    assert "backup" in text


def test_failing_storage_is_not_taken_for_damage(store: MemoryStore) -> None:
    commits = (save_step(store, 20), save_step(store, 10))
    store.fail(1)
    with pytest.raises(StoreError):
        load_newest(store, commits, pytest.fail)


def test_a_crash_between_upload_and_commit_leaves_the_old_commit(store: MemoryStore, attempt: Attempt) -> None:
    old = save_step(store, 10)
    attempt.commit(old)
    save_step(store, 20)
    record = read(store)
    assert record is not None
    found = load_newest(store, record.checkpoints, pytest.fail)
    assert found is not None
    assert found[0] == old


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_no_single_failure_makes_the_run_unloadable(store: MemoryStore, attempt: Attempt, after: bool) -> None:
    step, failures = 10, 0
    attempt.commit(save_step(store, step))
    while True:
        step += 10
        store.fail(failures, after=after)
        try:
            retain(store, attempt.commit(save_step(store, step)))
            failed = False
        except StoreError:
            failed = True
        store.heal()
        record = read(store)
        assert record is not None
        assert len(record.checkpoints) >= 1
        for commit in record.checkpoints:
            assert_is_step(load(store, commit.path, commit.manifest_sha256), commit.step)
        assert record.checkpoints[0].step in (step, step - 10)
        if not failed:
            break
        # The worker tries again, or a later commit succeeds: either way nothing stays behind.
        retain(store, attempt.commit(save_step(store, step)))
        failures += 1
    assert failures >= 7, "three files and manifest, read and swap of run.json, list, deletions"
    left = {key.rpartition("/")[0] for key in store.list("checkpoints/")}
    assert left == {commit.path for commit in record.checkpoints}
    assert len(left) == 2


def test_a_kill_at_any_moment_leaves_a_loadable_run(tmp_path: Path) -> None:
    """A few of the kills of the sweep in tests/integration, on real files."""
    script = (
        "import sys, torch\n"
        "from mtl.attempt import begin_attempt, retain\n"
        "from mtl.checkpoint import save\n"
        "from mtl.lease import acquire\n"
        "from mtl.record import Commit, checkpoint_path\n"
        "from mtl.store import open_store\n"
        "store = open_store(sys.argv[1])\n"
        "attempt = begin_attempt(store, acquire(store, 'cats', on_wait=print).owner.id)\n"
        "step = max([c.step for c in attempt.record.checkpoints], default=0)\n"
        "while True:\n"
        "    step += 1\n"
        "    path = checkpoint_path(step, attempt.number)\n"
        "    sealed = save(store, path, {'model': {'w': torch.full((1000,), step)}}, {'step': step})\n"
        "    commit = Commit(path=path, step=step, epoch=0, samples=step, manifest_sha256=sealed, time='')\n"
        "    retain(store, attempt.commit(commit))\n"
        "    print(step, flush=True)\n"
    )
    store = LocalStore.at(str(tmp_path))
    reached = 0
    for kill in range(3):
        command = [sys.executable, "-c", script, str(tmp_path)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(3 + kill):
                reached = int(process.stdout.readline())
            os.kill(process.pid, signal.SIGKILL)
        record = read(store)
        assert record is not None
        assert record.attempt == kill + 1
        assert len(record.checkpoints) == 2
        assert record.checkpoints[0].step >= reached
        for commit in record.checkpoints:
            loaded = load(store, commit.path, commit.manifest_sha256)
            assert loaded.files["model"]["w"].eq(commit.step).all()
            assert loaded.state == {"step": commit.step}


def test_a_model_is_restored_exactly(store: MemoryStore) -> None:
    source, target = small_model(1), small_model(2)
    sealed = save(store, "x", {"model": source.state_dict()}, {})
    restore_model(target, load(store, "x", sealed).files["model"])
    assert_same(target.state_dict(), source.state_dict())


def test_another_model_is_refused_readably_and_left_alone() -> None:
    target = small_model(1)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    tensors = small_model(2).state_dict()
    del tensors["0.bias"]
    tensors["extra"] = torch.zeros(1)
    tensors["3.weight"] = torch.zeros(5, 16)
    with pytest.raises(CheckpointError) as caught:
        restore_model(target, tensors)
    text = str(caught.value)
    assert "missing: 0.bias" in text
    assert "unexpected: extra" in text
    assert "3.weight (5, 16) -> (2, 16)" in text
    assert_same(target.state_dict(), before)
