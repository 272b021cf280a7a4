"""The model zoo: published architectures by name, at full size and as tiny twins for tests.

A preset is a shape: `init_model("gpt2")` fills it with random weights, a training config starts
from one with `config.model.update(values("llama-3.2-1b"))`. Published weights are the hub's.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ConfigError, did_you_mean
from llmasos_jax.models.zoo import deepseek, encoders, google, llama, openai, qwen, t5
from llmasos_jax.models.zoo.preset import Preset

__all__ = ["Preset", "find", "names", "preset", "presets", "values"]

# Models that were tuned further from one of ours have its shape.
_TUNED = ("-instruct", "-chat", "-it", "-base", "-pt")


@functools.cache
def presets() -> Mapping[str, Preset]:
    """Every preset by its name, families together."""
    families = (openai, llama, google, qwen, deepseek, encoders, t5)
    return MappingProxyType({row.name: row for family in families for row in family.presets()})


def names() -> list[str]:
    """The names of all presets, families together.

    Example:
      >>> names()[:4]
      ['gpt2', 'gpt2-medium', 'gpt2-large', 'gpt2-xl']
    """
    return list(presets())


def preset(name: str) -> Preset:
    """The preset of a name, capitals or not; `NAME-instruct` is that of `NAME`.

    Raises:
      ConfigError: there is none, with the nearest name.

    Example:
      >>> preset("llama-7b").config.num_layers
      32
      >>> preset("SmolLM2-135M-Instruct").name
      'smollm2-135m'
    """
    found = _find(name)
    if found is None:
        raise ConfigError(f'no preset is called "{name}"{did_you_mean(name.lower(), names())}')
    return found


def find(name: str) -> ModelConfig | None:
    """The parameters of a preset at full size, or None if there is none of that name."""
    found = _find(name)
    return None if found is None else found.config


def values(name: str, *, tiny: bool = False) -> dict[str, Any]:
    """The parameters of a preset as nested dicts, for a ConfigDict.

    Args:
      name: as `preset`.
      tiny: whether to give its tiny twin.

    Raises:
      ConfigError: as `preset`.

    Example:
      >>> from llmasos_jax.config.build import build, default_config
      >>> config = default_config()
      >>> config.model.update(values("llama-3.2-1b"))
      >>> build(config).model.rope_scaling.kind
      'llama3'
    """
    found = preset(name)
    return dataclasses.asdict(found.tiny if tiny else found.config)


def _find(name: str) -> Preset | None:
    lower = name.lower()
    stems = (lower, *(lower.removesuffix(end) for end in _TUNED))
    return next((presets()[stem] for stem in stems if stem in presets()), None)
