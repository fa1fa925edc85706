"""What the configuration is made of: fields with a role, strict sections, errors that a person can act on.

Every field has a role, which says what a resumed run may change:

    identity    decides the result; changing it makes another run
    resumable   may change between attempts (schedules' ends, cadences): the change is shown and recorded
    placement   where and how fast, never what: may always change
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, cast, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from mtl.errors import ConfigError

Role = Literal["identity", "resumable", "placement"]
Search = Literal["log", "simplex"]
"""How a sweep varies a field unless told otherwise: by factors around its value, or as its share of a fixed sum."""


def _with_truths(values: dict[str, int | float | bool | str]) -> dict[str, int | float | bool | str]:
    truths = {"true": True, "false": False}
    return {name: truths.get(str(value).lower(), value) for name, value in values.items()}


Arguments = Annotated[dict[str, int | float | bool | str], AfterValidator(_with_truths)]
"""Keyword arguments; `true` and `false` are truths, as in YAML, when they come from a flag too."""

WHOLE = "whole"
"""Context of a validation that begins at the root, and so knows every key's path."""


def identity(default: Any, help: str, search: Search | None = None, **limits: Any) -> Any:
    """A field of this role, which a sweep may vary if it says how."""
    return Field(default, description=help, json_schema_extra={"role": "identity", "search": search}, **limits)


def resumable(default: Any, help: str, **limits: Any) -> Any:
    """A field of this role."""
    return Field(default, description=help, json_schema_extra={"role": "resumable"}, **limits)


def placement(default: Any, help: str, **limits: Any) -> Any:
    """A field of this role."""
    return Field(default, description=help, json_schema_extra={"role": "placement"}, **limits)


class Section(BaseModel):
    """A frozen group of fields that refuses unknown keys. The root is the one whose keys have no prefix."""

    root: ClassVar[bool] = False
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _readable(cls, values: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        # A ConfigError is no ValidationError, so it reaches the user as it is through pydantic and tyro alike.
        try:
            return handler(values)
        except ValidationError as error:
            if info.context == WHOLE:
                raise
            raise invalid(cls, error) from error


def invalid(model: type[Section], error: ValidationError) -> ConfigError:
    """The readable form of a validation error of `model`."""
    section = "" if model.root else f"{model.__name__.lower()}."
    got: list[str] = []
    expected: list[str] = []
    for item in error.errors():
        where = section + ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            valid = _keys(model, item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), valid, n=1)
            got.append(f"{where}: no such key" + (f"; did you mean {near[0]}?" if near else ""))
            expected.append(f"one of {', '.join(valid)}")
        elif item["type"] == "missing":
            got.append(f"{where} is missing")
            expected.append(f"a value for {where}")
        else:
            got.append(f"{where}: {item.get('input')!r}")
            expected.append(f"{where}: {item['msg'].removeprefix('Input should be ')}")
    return ConfigError(
        "The configuration is not valid.",
        got=listed(got),
        expected=listed(expected),
        do="python jobs/train.py RECIPE --help explains every key",
    )


def _keys(model: Any, path: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at `path` below `model`."""
    for part in path:
        model = get_args(model)[1] if get_origin(model) is dict else model.model_fields[part].annotation
    return list(model.model_fields)


def refuse_unread(section: Section, fields: Iterable[str], setting: str) -> None:
    """Refuse values that say nothing.

    Args:
        fields: of `section`, that nobody reads with this `setting` of it.

    Raises:
        ConfigError: one of them has another value than its default.
    """
    of, known = type(section).__name__.lower(), type(section).model_fields
    if unread := [name for name in fields if getattr(section, name) != known[name].default]:
        raise ConfigError(
            f"{', '.join(f'{of}.{name}' for name in unread)} would have no effect.",
            got=f"{', '.join(f'{name} = {getattr(section, name)}' for name in unread)}, with {setting}",
            expected=f"{', '.join(f'{name} = {known[name].default}' for name in unread)}, the default",
            do="leave it out, or change what it belongs to",
        )


def listed(problems: list[str]) -> str:
    """One problem a line, aligned with the answers of an error message."""
    return ("\n" + " " * 12).join(problems)


def differences(old: Section, new: Section, prefix: str = "") -> dict[str, tuple[Role, object, object]]:
    """Fields that differ between two sections of one kind, by dotted name: (role, old value, new value)."""
    found: dict[str, tuple[Role, object, object]] = {}
    for name, field in type(old).model_fields.items():
        before, after = getattr(old, name), getattr(new, name)
        inner, others = _sections(before), _sections(after)
        if before == after:
            continue
        if inner and inner.keys() == others.keys():
            for key, section in inner.items():
                found |= differences(section, others[key], f"{prefix}{name}{key}.")
        else:
            extra = cast("dict[str, Role]", field.json_schema_extra)
            found[f"{prefix}{name}"] = extra["role"], before, after
    return found


def searchable(section: Section, prefix: str = "") -> dict[str, Search]:
    """Fields that say how a sweep varies them, by dotted name."""
    found: dict[str, Search] = {}
    for name, field in type(section).model_fields.items():
        extra = cast("dict[str, Search | None]", field.json_schema_extra or {})
        if how := extra.get("search"):
            found[f"{prefix}{name}"] = how
        for key, inner in _sections(getattr(section, name)).items():
            found |= searchable(inner, f"{prefix}{name}{key}.")
    return found


def _sections(value: Any) -> dict[str, Section]:
    """The sections in a field, by what follows its name: itself, or the values of a mapping of them."""
    if isinstance(value, Section):
        return {"": value}
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, object]", value).items()
        return {f".{key}": section for key, section in pairs if isinstance(section, Section)}
    return {}
