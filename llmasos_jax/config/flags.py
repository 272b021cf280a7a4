"""Typed overrides: `--config.train.steps=100` on a command line, `{"train.steps": "100"}` here."""

from __future__ import annotations

import ast
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from llmasos_jax.config.build import type_of
from llmasos_jax.config.kinds import parts_of, type_name
from llmasos_jax.errors import ConfigError, did_you_mean

_BOOLS = {"true": True, "1": True, "false": False, "0": False}


def apply_overrides(config: config_dict.ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets fields of `config` in place, each text read as the type that the schema gives the field.

    Args:
      config: a ConfigDict from `read_config`.
      overrides: dotted path -> text. `none` is None; a tuple is written `2,4` or `(2, 4)`.

    Raises:
      ConfigError: an unknown path (with the nearest name), or a text of another type.

    Example:
      >>> from llmasos_jax.config.build import default_config
      >>> config = default_config()
      >>> apply_overrides(config, {"train.steps": "20", "mesh.fsdp": "2,4"})
      >>> config.train.steps, config.mesh.fsdp
      (20, (2, 4))
    """
    values = {path: parse_value(path, text) for path, text in overrides.items()}
    for path in values:
        _require_part(config, path)
    config.update_from_flattened_dict(values)


def with_values(
    config: config_dict.ConfigDict, values: Mapping[str, Any]
) -> config_dict.ConfigDict:
    """A copy of `config` with other values in some fields.

    Raises:
      ConfigError: an unknown path (with the nearest name), or a value of another type.

    Example:
      >>> from llmasos_jax.config.build import default_config
      >>> with_values(default_config(), {"train.steps": 20}).train.steps
      20
    """
    copy = config.copy_and_resolve_references()
    for path, value in values.items():
        kind = type_of(path)
        _require_part(copy, path)
        try:
            copy.update_from_flattened_dict({path: value})
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{path}={value!r} is {_article(type(value).__name__)}; expected "
                f"{_article(type_name(kind))}"
            ) from error
    return copy


def _require_part(config: Any, path: str) -> None:
    """Refuses a path into a part of the mixture that the config does not have."""
    names = config.data.mixture
    _, _, rest = path.partition("data.mixture.")
    name = rest.partition(".")[0]
    if name and name not in names:
        raise ConfigError(
            f'config.data.mixture has no part "{name}"{did_you_mean(name, list(names.keys()))}; '
            "a config file adds parts, an override changes their fields"
        )


def parse_value(path: str, text: str) -> Any:
    """Reads `text` as the type of the field at `path`.

    Raises:
      ConfigError: an unknown path, or a text of another type.
    """
    kind = type_of(path)
    if dataclasses.is_dataclass(kind):
        fields = ", ".join(f"{path}.{f.name}" for f in dataclasses.fields(kind))
        raise ConfigError(f"config.{path} is a group of fields; set one of them: {fields}")
    if parts_of(kind):
        fields = ", ".join(f"{path}.NAME.{f.name}" for f in dataclasses.fields(parts_of(kind)))
        raise ConfigError(f"config.{path} has parts by name; set a field of one: {fields}")
    try:
        return _parse(kind, text)
    except (ValueError, SyntaxError, TypeError) as error:
        raise ConfigError(f'config.{path}="{text}" is not {_article(type_name(kind))}') from error


def _parse(kind: Any, text: str) -> Any:
    if isinstance(kind, types.UnionType):
        if text.lower() == "none":
            return None
        (kind,) = (k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return tuple(_parse(inner, item) for item in _items(text))
    if kind is bool:
        if text.lower() not in _BOOLS:
            raise ValueError(text)
        return _BOOLS[text.lower()]
    return kind(text)


def _items(text: str) -> list[str]:
    """`2,4`, `(2, 4)`, `[2]` and `a.b:c,d.e:f` alike; `()` is the empty tuple."""
    bare = text.strip()
    if bare[:1] in "([" and bare[-1:] in ")]" and bare:
        bare = bare[1:-1]
    items = [item.strip() for item in bare.split(",")]
    if items[-1] == "":
        items.pop()
    return [ast.literal_eval(i) if i[:1] in "'\"" and i else i for i in items]


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
