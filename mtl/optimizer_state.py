"""An optimizer's state as tensors and JSON, without pickle, keyed by parameter name instead of by position."""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict, JsonValue
from torch import Tensor, nn
from torch.optim import Optimizer

from mtl.checkpoint import OTHER_CONFIGURATION, refuse_differences
from mtl.errors import CheckpointError


def optimizer_tensors(
    optimizer: Optimizer, names: Mapping[nn.Parameter, str]
) -> tuple[dict[str, Tensor], dict[str, JsonValue]]:
    """The state of `optimizer`, for `save`.

    Args:
        optimizer: any whose per-parameter state is tensors and plain numbers.
        names: a unique name for each of its parameters, as in `model.named_parameters()`.

    Returns:
        Tensors by "<parameter>/<key>", not copied; and JSON: the optimizer's kind, the groups' hyperparameters, and the
        per-parameter values that are not tensors.

    Raises:
        CheckpointError: a value is neither a tensor nor JSON.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, JsonValue] = {}
    groups: list[JsonValue] = []
    for group in optimizer.param_groups:
        hyper: dict[str, JsonValue] = {k: _plain(k, value) for k, value in group.items() if k != "params"}
        groups.append({"parameters": [names[p] for p in group["params"]], "hyper": hyper})
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                name = f"{names[parameter]}/{key}"
                if isinstance(value, Tensor):
                    tensors[name] = value
                else:
                    values[name] = _plain(name, value)
    return tensors, {"kind": type(optimizer).__name__, "groups": groups, "values": values}


def restore_optimizer(
    optimizer: Optimizer,
    names: Mapping[nn.Parameter, str],
    tensors: Mapping[str, Tensor],
    json_state: Mapping[str, JsonValue],
) -> None:
    """Give `optimizer` the state that `optimizer_tensors` returned, bit for bit, on its parameters' devices.

    The hyperparameters come back too, the learning rate included: set scheduled or changed ones afterwards.

    Raises:
        CheckpointError: the kind of optimizer, its parameters or its groups differ. The optimizer is unchanged.
    """
    saved = _OptimizerState.model_validate(json_state)
    if saved.kind != type(optimizer).__name__:
        raise CheckpointError(
            "The checkpoint belongs to another optimizer.",
            got=saved.kind,
            expected=type(optimizer).__name__,
            do=OTHER_CONFIGURATION,
        )
    own = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
    known = {name for group in own for name in group}
    stored = {name for group in saved.groups for name in group.parameters}
    stored |= {key.rpartition("/")[0] for key in (*tensors, *saved.values)}
    refuse_differences(
        "The checkpoint's optimizer holds other parameters.",
        {"missing": sorted(known - stored), "unexpected": sorted(stored - known)},
    )
    if [set(group) for group in own] != [set(group.parameters) for group in saved.groups]:
        raise CheckpointError(
            "The checkpoint's optimizer groups its parameters differently.",
            got=f"groups of {', '.join(str(len(group.parameters)) for group in saved.groups)} parameters",
            expected=f"groups of {', '.join(str(len(group)) for group in own)}, of the same parameters",
            do=OTHER_CONFIGURATION,
        )

    optimizer.state.clear()
    for group, saved_group in zip(optimizer.param_groups, saved.groups, strict=True):
        for key, value in saved_group.hyper.items():
            # JSON has no tuples: what is one in the optimizer (betas) becomes one again.
            group[key] = tuple(value) if isinstance(value, list) and isinstance(group.get(key), tuple) else value
    place = {names[p]: (p, group) for group in optimizer.param_groups for p in group["params"]}
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition("/")
        parameter, group = place[owner]
        optimizer.state[parameter][key] = _placed(tensor, key, parameter, group)
    for name, value in saved.values.items():
        owner, _, key = name.rpartition("/")
        optimizer.state[place[owner][0]][key] = value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Group(_Strict):
    parameters: list[str]
    hyper: dict[str, JsonValue]


class _OptimizerState(_Strict):
    kind: str
    groups: list[_Group]
    values: dict[str, JsonValue]


def _placed(tensor: Tensor, key: str, parameter: nn.Parameter, group: Mapping[str, Any]) -> Tensor:
    """A copy of an optimizer's tensor where torch would have made it; a copy because updates happen in place."""
    # torch keeps the step count on the host unless the whole update runs on the device.
    if key == "step" and not (group.get("capturable") or group.get("fused")):
        return tensor.clone()
    # The parameter's strides (channels_last): torch's multi-tensor updates are slow where they differ.
    like = parameter if tensor.shape == parameter.shape else tensor
    return torch.empty_like(like, dtype=tensor.dtype, device=parameter.device, requires_grad=False).copy_(tensor)


def _plain(name: str, value: Any) -> JsonValue:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in cast("Iterable[Any]", value)]
    raise CheckpointError(
        f"The optimizer's '{name}' can not be saved.",
        got=type(value).__name__,
        expected="a number, a string, None, or a tuple of them",
        do="pass it as a plain number",
    )
