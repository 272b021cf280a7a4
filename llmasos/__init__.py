"""The name of the LLMasOS standard: `llmasos.X` is `llmasos_jax.X`, submodules included.

Example:
  >>> import llmasos
  >>> from llmasos.config.schema import Config
  >>> llmasos.Config is Config
  True
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import llmasos_jax

__all__ = llmasos_jax.__all__  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = llmasos_jax.__version__

_REAL = "llmasos_jax"


class _SameModule(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `llmasos.a.b` as the very module `llmasos_jax.a.b`, so that no class exists twice."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        del path, target
        if not fullname.startswith(f"{__name__}.") or fullname == f"{__name__}.__main__":
            return None
        real = importlib.util.find_spec(_REAL + fullname.removeprefix(__name__))
        if real is None:
            return None
        return importlib.machinery.ModuleSpec(
            fullname, self, is_package=real.submodule_search_locations is not None
        )

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(_REAL + spec.name.removeprefix(__name__))
        # The import system is about to write the alias's spec into the module; keep its own.
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        alias = module.__spec__
        if alias is not None and alias.loader is self:
            module.__spec__ = alias.loader_state


# First in line: `llmasos.config` has a path, and the usual finder would load its files once more.
sys.meta_path.insert(0, _SameModule())


def __getattr__(name: str) -> Any:
    return getattr(llmasos_jax, name)


def __dir__() -> list[str]:
    return sorted({*dir(llmasos_jax), "__version__"})
