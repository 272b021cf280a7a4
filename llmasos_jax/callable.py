"""Packages that are functions too: `llmasos.train(config)` beside `llmasos.train.loop`.

The public function and the package that does its work have one name. Whichever is bound last to
`llmasos_jax.train` would hide the other, so they are one object.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any


class CallablePackage(types.ModuleType):
    """A package that passes calls on to the function that `make_callable` named."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        return _function(self)(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """The function's, for `help` and for a notebook's `?`."""
        return inspect.signature(_function(self))


def make_callable(package: str, function: str) -> None:
    """Lets a package be called.

    Args:
      package: its `__name__`; to be called from its own `__init__.py`.
      function: `"package.module:name"` of what a call runs; imported at the first call.
    """
    module = sys.modules[package]
    module.__class__ = CallablePackage
    module.__dict__["_call_goes_to"] = function


def _function(package: CallablePackage) -> Callable[..., Any]:
    module_name, _, name = package.__dict__["_call_goes_to"].partition(":")
    return getattr(importlib.import_module(module_name), name)
