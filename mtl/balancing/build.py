"""A balancer from its name and arguments."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from mtl.balancing import address
from mtl.balancing.base import Balancer, Needs
from mtl.errors import ConfigError


def build_balancer(method: str, tasks: int, seed: int, arguments: Mapping[str, object] | None = None) -> Balancer:
    """The balancer `method`: a name of the registry, or `module:Class` of the user's own.

    Args:
        tasks: K.
        seed: of the run.
        arguments: keyword arguments of the class.

    Raises:
        ConfigError: there is no such method, it does not take these arguments, or it is no balancer.
    """
    module, _, name = address(method).partition(":")
    try:
        kind: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The balancing method '{method}' can not be imported: {error}",
            expected="module:Class, importable from the folder the job was started in",
        ) from error
    given = dict(arguments or {})
    try:
        taken = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is p.KEYWORD_ONLY]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"'{method}' is no class that can be built: {error}", got=kind) from error
    unknown = [name for name in given if name not in taken]
    if unknown:
        raise ConfigError(
            f"The balancing method '{method}' does not take these arguments.",
            got=", ".join(unknown),
            expected=f"some of {', '.join(taken)}" if taken else "none: it has no arguments",
            do="mend balancing.arguments",
        )
    try:
        made = kind(tasks, seed, **given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The balancing method '{method}' can not be built: {error}", got=f"{given}") from error
    missing = [part for part in ("weights", "update", "state_dict", "load_state_dict") if not hasattr(made, part)]
    if missing or not isinstance(getattr(made, "needs", None), Needs):
        raise ConfigError(
            f"'{method}' is no balancer.",
            got=f"a {type(made).__name__} without {', '.join(missing or ['needs'])}",
            expected="what mtl.balancing.base.Balancer lists",
            do="docs/balancing.md shows one in twenty lines",
        )
    return made
