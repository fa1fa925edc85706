"""Initial weights from a file: what fits is loaded, and what was not is said aloud."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from mtl.errors import ConfigError, NotFound
from mtl.model.sharing import MultiTaskModel
from mtl.store import open_store

_SHOWN = 6


@dataclass(frozen=True)
class Initial:
    """What `load_initial` did, by the names of the model's tensors; `unused` are names of the file's."""

    address: str
    loaded: tuple[str, ...]
    replaced: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def describe(self) -> list[str]:
        """One line for each kind that there is, for people."""
        kinds = {
            "start anew, because the file's have another shape": self.replaced,
            "start anew, because the file has none": self.missing,
            "of the file are not used": self.unused,
        }
        told = [f"{len(self.loaded)} tensors loaded from {self.address}"]
        return told + [f"{len(names)} tensors {what}: {_some(names)}" for what, names in kinds.items() if names]


def load_initial(model: MultiTaskModel, address: str, *, partial: bool = False) -> Initial:
    """Load the tensors of a safetensors file that fit `model`.

    A tensor is found under its own name, or under the one that it has in the plain backbone, with or without the prefix
    `backbone.`; so a file that torchvision's or timm's state_dict was saved to serves every copy of a stage.

    Args:
        address: a file, local or `s3://`: a checkpoint's `model.safetensors`, or an exported state_dict.
        partial: let tensors of the backbone start anew that the file lacks, as those of heads and patterns may.

    Raises:
        ConfigError: the file can not be read, nothing in it fits, or it lacks tensors of the backbone. The model is
            unchanged.
    """
    tensors = _read(address)
    own: dict[str, Tensor] = model.state_dict()
    origins = {name: origin for name, origin in _origins(model)}
    fits: dict[str, str] = {}
    replaced: list[str] = []
    missing: list[str] = []
    for name, tensor in own.items():
        origin = origins.get(name)
        sources = [name] if origin is None else [name, f"backbone.{origin}", origin]
        there = [source for source in sources if source in tensors]
        fitting = [source for source in there if tensors[source].shape == tensor.shape]
        if fitting:
            fits[name] = fitting[0]
        elif there:
            replaced.append(f"{name} {list(tensors[there[0]].shape)} -> {list(tensor.shape)}")
        else:
            missing.append(name)
    if not any(own[name].is_floating_point() for name in fits):
        raise ConfigError(
            f"No tensor of {address} fits the model.",
            got=_some(tuple(tensors)),
            expected=_some(tuple(own)),
            do="choose the backbone that the file was saved from, or another file",
        )
    # A counter of batches is no weight: older files have none.
    short = [t for t in (*replaced, *missing) if (n := t.split(" ")[0]) in origins and own[n].is_floating_point()]
    if short and not partial:
        raise ConfigError(
            f"{len(short)} tensors of the backbone are not in {address}.",
            got=_some(tuple(short)),
            expected="all of the backbone",
            do="choose the backbone that the file was saved from, or let them start anew: --model.init-partial",
        )
    with torch.no_grad():
        for name, source in fits.items():
            own[name].copy_(tensors[source])
    unused = tuple(sorted(tensors.keys() - set(fits.values())))  # safetensors keeps no order
    return Initial(address, tuple(fits), tuple(replaced), tuple(missing), unused)


def _origins(model: MultiTaskModel) -> Iterator[tuple[str, str]]:
    """Names in the model, and in the plain backbone, of what comes from there."""
    for path, part in model.backbone_parts().items():
        for name in part.state_dict():
            yield f"{path}.{name}", name


def _read(address: str) -> Mapping[str, Tensor]:
    folder, _, name = address.rpartition("/")
    try:
        return load(open_store(folder or ("/" if address.startswith("/") else ".")).get(name))
    except (SafetensorError, NotFound) as error:
        raise ConfigError(
            f"The weights {address} can not be read.",
            got=error.what if isinstance(error, NotFound) else f"no safetensors file: {error}",
            expected="a safetensors file, local or s3://bucket/key",
            do="docs/models.md shows how to convert a .pth file",
        ) from error


def _some(names: tuple[str, ...]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
