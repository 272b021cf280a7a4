"""LLMasOS on JAX. One config; from a laptop CPU to a TPU pod; an open format for the models.

Importing this package does not import JAX: a name is looked up when it is first used.

Example:
  >>> import llmasos_jax
  >>> llmasos_jax.load_config("quickstart").model.num_layers
  4
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmasos_jax.api import (
        LLMasOS,
        convert,
        export,
        finetune,
        launch,
        launch_sweep,
        parity,
        plan,
        prepare_data,
        sweep,
        train,
        verify_resume,
    )
    from llmasos_jax.config.build import default_config, load_config, read_config
    from llmasos_jax.config.model import ModelConfig
    from llmasos_jax.config.schema import Config
    from llmasos_jax.errors import LLMasOSError
    from llmasos_jax.evals.tasks.evaluate import evaluate
    from llmasos_jax.generate.load import init_model, load_model
    from llmasos_jax.generate.model import Model, generate_text

__version__ = "0.1.0.dev0"

__all__ = [
    "Config",
    "LLMasOS",
    "LLMasOSError",
    "Model",
    "ModelConfig",
    "convert",
    "default_config",
    "evaluate",
    "export",
    "finetune",
    "generate_text",
    "init_model",
    "launch",
    "launch_sweep",
    "load_config",
    "load_model",
    "parity",
    "plan",
    "prepare_data",
    "read_config",
    "sweep",
    "train",
    "verify_resume",
]

# Where each public name lives; a test holds this table, `__all__` and the imports above together.
_HOMES = {
    "Config": "config.schema",
    "LLMasOS": "api",
    "LLMasOSError": "errors",
    "Model": "generate.model",
    "ModelConfig": "config.model",
    "convert": "api",
    "default_config": "config.build",
    "evaluate": "evals.tasks.evaluate",
    "export": "api",
    "finetune": "api",
    "generate_text": "generate.model",
    "init_model": "generate.load",
    "launch": "api",
    "launch_sweep": "api",
    "load_config": "config.build",
    "load_model": "generate.load",
    "parity": "api",
    "plan": "api",
    "prepare_data": "api",
    "read_config": "config.build",
    "sweep": "api",
    "train": "api",
    "verify_resume": "api",
}

# Submodules that are there without being imported: `llmasos.format.read`. Where a public function
# has the name of a package (`train`), the package can be called: see `callable.py`.
_MODULES = (
    "api",
    "checkpoint",
    "cli",
    "config",
    "data",
    "errors",
    "evals",
    "finetune",
    "format",
    "generate",
    "launch",
    "models",
    "nn",
    "parallel",
    "plan",
    "sweep",
    "train",
    "types",
    "verify",
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
