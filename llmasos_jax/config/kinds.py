"""Types of the schema's fields, as the config's code reads them."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any


@functools.cache
def hints(cls: Any) -> dict[str, Any]:
    """The type of each field of a dataclass."""
    return typing.get_type_hints(cls)


def parts_of(kind: Any) -> Any:
    """What the parts of a field are: X of `dict[str, X]`, whose names a config chooses; else None.

    Example:
      >>> from llmasos_jax.config.data import DataConfig
      >>> parts_of(hints(DataConfig)["mixture"]).__name__, parts_of(int)
      ('MixturePart', None)
    """
    return typing.get_args(kind)[1] if typing.get_origin(kind) is dict else None


def type_name(kind: Any) -> str:
    """How an error message calls a field's type: `int or None`, `tuple of int`."""
    if kind is type(None):
        return "None"
    if isinstance(kind, types.UnionType):
        return " or ".join(type_name(k) for k in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        inner = type_name(typing.get_args(kind)[0])
        return f"tuple of ({inner})" if " " in inner else f"tuple of {inner}"
    if parts_of(kind):
        return "groups of fields by name"
    return "a group of fields" if dataclasses.is_dataclass(kind) else kind.__name__
