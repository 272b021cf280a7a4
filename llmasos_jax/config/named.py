"""Looks up a part that a config names: one of ours, or `"package.module:name"` of anybody's."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

from llmasos_jax.errors import ConfigError, did_you_mean

_NAMED = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")


def resolve(name: str, table: Mapping[str, Any], field: str) -> Any:
    """Returns `table[name]`, or the object that `"package.module:name"` points to.

    Args:
      name: a key of `table`, or a module path, a colon and an attribute.
      table: the parts that ship with the package.
      field: the config field that holds `name`, for the error message (`"model.attention"`).

    Raises:
      ConfigError: no such part, or the module cannot be imported.

    Example:
      >>> resolve("relu", {"relu": max}, "model.mlp")
      <built-in function max>
    """
    if name in table:
        return table[name]
    if not _NAMED.fullmatch(name):
        hint = did_you_mean(name, table)
        raise ConfigError(
            f'{field}="{name}" is not known{hint} (or name your own as "package.module:name")'
        )
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f'{field}="{name}": cannot import "{module_name}" ({error}); is it on PYTHONPATH?'
        ) from error
    if not hasattr(module, attribute):
        hint = did_you_mean(attribute, [n for n in vars(module) if not n.startswith("_")])
        raise ConfigError(f'{field}="{name}": "{module_name}" has no "{attribute}"{hint}')
    return getattr(module, attribute)
