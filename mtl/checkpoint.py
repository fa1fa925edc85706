"""A checkpoint: complete training state in one folder, sealed by the hash of its manifest.

    <path>/<file>.safetensors   every tensor, the optimizer's included
           state.json           everything else
           manifest.json        size and sha256 of each file; written last

Only a commit in run.json makes a folder count, and it holds the manifest's sha256. Loading trusts nothing else, so a
folder that is unfinished or has decayed is never mistaken for a sound one.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from pydantic import BaseModel, ConfigDict, JsonValue
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from mtl.errors import CheckpointError, NotFound
from mtl.record import Commit
from mtl.store import Store

FORMAT_VERSION = 1
MANIFEST, STATE, TENSORS = "manifest.json", "state.json", ".safetensors"

OTHER_CONFIGURATION = "resume with the configuration that wrote it, or start a new run"


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given: tensors on the CPU by file and name, and the JSON state."""

    files: dict[str, dict[str, Tensor]]
    state: dict[str, JsonValue]


def save(store: Store, path: str, files: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, JsonValue]) -> str:
    """Upload a checkpoint to the folder `path`. It counts only once `Attempt.commit` names it.

    Args:
        store: the run.
        path: a folder that no commit names, from `checkpoint_path`.
        files: tensors of any shape, dtype and device, by file name (without suffix) and tensor name. Tied or
            overlapping tensors are stored once each.
        state: JSON values; floats come back exactly, keys must be strings at every depth.

    Returns:
        The manifest's sha256, for the commit.

    Raises:
        StoreError: storage failed.
    """
    contents = ((name + TENSORS, save_tensors(_storable(tensors))) for name, tensors in files.items())
    written = {name: _upload(store, f"{path}/{name}", data) for name, data in contents}
    written[STATE] = _upload(store, f"{path}/{STATE}", json.dumps(state).encode())
    manifest = _Manifest(files=written).model_dump_json(indent=1).encode()
    return _upload(store, f"{path}/{MANIFEST}", manifest).sha256


def snapshot(files: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Copies of tensors in the host's memory, which what comes next does not change."""
    return {
        file: {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        for file, tensors in files.items()
    }


def load(store: Store, path: str, manifest_sha256: str) -> Checkpoint:
    """Download the checkpoint at `path` and verify every byte of it.

    Raises:
        CheckpointError: a file is missing or differs from what was saved; it is named.
        StoreError: storage can not be read.
    """
    raw = _download(store, f"{path}/{MANIFEST}")
    _verify(f"{path}/{MANIFEST}", "sha256", sha256(raw).hexdigest(), manifest_sha256)
    version = _Version.model_validate_json(raw).format_version
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"The checkpoint {path} was written by a newer mtl.",
            got=f"format_version {version}",
            expected=f"at most {FORMAT_VERSION}",
            do="upgrade mtl",
        )
    files: dict[str, dict[str, Tensor]] = {}
    state: dict[str, JsonValue] = {}
    for name, seal in _Manifest.model_validate_json(raw).files.items():
        key = f"{path}/{name}"
        data = _download(store, key)
        _verify(key, "size in bytes", len(data), seal.bytes)
        _verify(key, "sha256", sha256(data).hexdigest(), seal.sha256)
        if name == STATE:
            state = json.loads(data)
        else:
            files[name.removesuffix(TENSORS)] = load_tensors(data)
    return Checkpoint(files, state)


def load_newest(
    store: Store, commits: Sequence[Commit], warn: Callable[[str], None]
) -> tuple[Commit, Checkpoint] | None:
    """Load the newest commit that is sound, telling `warn` about each that is not.

    Args:
        store: the run.
        commits: newest first, as in run.json.
        warn: gets one message per damaged checkpoint.

    Returns:
        The commit and its content; the commits before it in `commits` are damaged. None if there are no commits.

    Raises:
        CheckpointError: all are damaged; it gives the reason for each.
        StoreError: storage can not be read, which says nothing about the checkpoints.
    """
    faults: list[str] = []
    for commit in commits:
        try:
            return commit, load(store, commit.path, commit.manifest_sha256)
        except CheckpointError as error:
            faults.append(f"{error.what} (got {error.got}, expected {error.expected})")
            warn(f"The checkpoint of step {commit.step} is not used, going back to the one before it: {faults[-1]}")
    if not faults:
        return None
    raise CheckpointError(
        f"No checkpoint of the run at {store.uri} can be loaded.",
        got="\n             ".join(faults),
        expected="at least one whose files match their hashes",
        do="restore the named files from a backup or an earlier object version, or start again under another run name",
    )


def restore_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors`, a state_dict as saved, into `model`.

    Raises:
        CheckpointError: names or shapes differ; the first five of each kind are listed. The model is unchanged.
    """
    expected: dict[str, Tensor] = model.state_dict()
    shared = [name for name in expected if name in tensors]
    shapes = [
        f"{name} {tuple(tensors[name].shape)} -> {tuple(expected[name].shape)}"
        for name in shared
        if tensors[name].shape != expected[name].shape
    ]
    refuse_differences(
        "The checkpoint belongs to another model.",
        {
            "missing": [name for name in expected if name not in tensors],
            "unexpected": [name for name in tensors if name not in expected],
            "shape in checkpoint -> in model": shapes,
        },
    )
    model.load_state_dict(dict(tensors), strict=True)


def refuse_differences(what: str, differences: Mapping[str, Sequence[str]]) -> None:
    """Do nothing if there are no differences.

    Args:
        what: is wrong if there are any.
        differences: names by kind of difference.

    Raises:
        CheckpointError: there are some; the first five of each kind are listed.
    """
    found = [f"{kind}: {_first_five(names)}" for kind, names in differences.items() if names]
    if found:
        raise CheckpointError(what, got="; ".join(found), expected="the same names and shapes", do=OTHER_CONFIGURATION)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Seal(_Strict):
    bytes: int
    sha256: str


class _Manifest(_Strict):
    format_version: int = FORMAT_VERSION
    files: dict[str, _Seal]


class _Version(BaseModel):
    format_version: int


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, none of which shares memory with another: safetensors accepts nothing else."""
    result: dict[str, Tensor] = {}
    used: set[int] = set()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        memory = flat.untyped_storage().data_ptr()
        result[name] = flat.clone() if memory in used else flat
        used.add(memory)
    return result


def _upload(store: Store, key: str, data: bytes) -> _Seal:
    store.put(key, data)
    return _Seal(bytes=len(data), sha256=sha256(data).hexdigest())


def _download(store: Store, key: str) -> bytes:
    try:
        return store.get(key)
    except NotFound as error:
        raise CheckpointError(f"{key} is missing.", got="no such file", expected="the file that was saved") from error


def _verify(key: str, what: str, got: object, expected: object) -> None:
    if got != expected:
        raise CheckpointError(f"{key} is damaged.", got=f"{what} {got}", expected=f"{what} {expected}")


def _first_five(names: Sequence[str]) -> str:
    rest = len(names) - 5
    return ", ".join(names[:5]) + (f" and {rest} more" if rest > 0 else "")
