"""Which family of transformers a model of ours is, and what of it a family cannot say.

No list says what a family can express: its `config.json` is written, read back, and compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmasos_jax.config.heads import Encoder
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.rope import RopeScaling
from llmasos_jax.errors import ConfigError, FormatError
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.names import expected
from llmasos_jax.format.strict import shown
from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families import FAMILIES
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.tables import unbind

# Families of ours that another's class says.
_SAID_BY = {"SmolLM": "LLaMA"}
# Written beside the config, not in it.
_BESIDE = ("pooling",)
_SIZES = "sizes: "


@dataclass(frozen=True)
class Expressed:
    """A model as a family of transformers says it.

    Attributes:
      family: of transformers.
      config: `config.json`.
    """

    family: Family
    config: dict[str, Any]

    @property
    def saved_class(self) -> str:
        """The class of transformers that opens it."""
        return self.config["architectures"][0]

    @property
    def has_class(self) -> bool:
        """Whether there is such a class, and it is computed alike."""
        return self.saved_class in self.family.architectures


def express(manifest: Manifest) -> Expressed:
    """The family that says all of a model.

    The model's own family is tried first, by the class that it was read from and then by its
    architecture; a plain "Transformer" is tried as each.

    Raises:
      FormatError: none does; the message names the fields that the nearest one cannot say.
    """
    written = [family for family in FAMILIES if family.write_config is not None]
    source = manifest.metadata.get("source_class")
    own = _SAID_BY.get(manifest.architecture, manifest.architecture)
    named = [family for family in written if family.name == own]
    candidates = sorted(
        written if manifest.architecture == "Transformer" else named,
        key=lambda family: source not in family.architectures,
    )
    apart: list[tuple[list[str], Expressed]] = []
    for family in candidates:
        found, problems = _as(family, manifest)
        if not problems:
            return found
        apart.append((problems, found))
    if not apart:
        known = ", ".join(dict.fromkeys(family.name for family in written))
        raise FormatError(
            f"a model of the architecture {manifest.architecture} is not written for Hugging Face "
            f"in this version; known: {known}"
        )
    problems, nearest = min(
        apart,
        key=lambda pair: (
            *(_is_of_other_kind(pair[0]), not pair[1].has_class),
            *(pair[0][0].startswith(_SIZES), len(pair[0])),
        ),
    )
    more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
    raise FormatError(
        f"no class of transformers is this model; the nearest, {nearest.saved_class}, differs in "
        f"{'; '.join(problems[:4])}{more}. A head that is too many can be left out where the model "
        "is read (ignore); the rest is another network"
    )


def _is_of_other_kind(problems: Sequence[str]) -> bool:
    """Whether one is a decoder, an encoder or both, and the other is not."""
    return any(p.startswith(("parameters.causal=", "parameters.encoder=")) for p in problems)


def _as(family: Family, manifest: Manifest) -> tuple[Expressed, list[str]]:
    """A model as a family would say it, and the fields that it says otherwise."""
    if family.write_config is None:
        raise FormatError(f"{family.name} is not written in this version")
    cfg = manifest.parameters
    found = Expressed(family, family.write_config(manifest))
    if not found.has_class:
        return found, [f"its heads: there is no class {found.saved_class} that is computed alike"]
    # A base class has the pooler that its file has; the others have what their class says.
    names: Collection[str] = ()
    if found.saved_class.endswith("Model"):
        names = tuple(unbind(family.table(cfg), cfg, _without_numbers(cfg)))
    keys = Keys(found.config, "config.json", tensors=lambda: names)
    try:
        back = family.read_config(keys)
        keys.finish()
    except (ConfigError, FormatError) as error:  # sizes that this family never has, or odd heads
        return found, [f"{_SIZES}{error}"]
    return found, differences(cfg, back.replace(**{name: getattr(cfg, name) for name in _BESIDE}))


def _without_numbers(cfg: ModelConfig) -> dict[str, StoredTensor]:
    def read() -> Any:
        raise FormatError("this tensor has a shape alone")

    return {name: StoredTensor(spec.shape, "float32", read) for name, spec in expected(cfg).items()}


def differences(cfg: ModelConfig, other: ModelConfig) -> list[str]:
    """The fields in which two models are not the same network, as "parameters.x=1, not 2".

    Numbers are compared as float32, in which both are computed: a square root that is squared again
    differs in its last bit.
    """
    one, two = canonical(cfg), canonical(other)
    return [
        f"parameters.{f.name}={shown(repr(getattr(cfg, f.name)))}, not "
        f"{shown(repr(getattr(two, f.name)))}"
        for f in dataclasses.fields(ModelConfig)
        if not _is_alike(getattr(one, f.name), getattr(two, f.name))
    ]


def _is_alike(one: Any, two: Any) -> bool:
    if isinstance(one, float) and isinstance(two, float):
        return bool(np.float32(one) == np.float32(two))
    return one == two


def canonical(cfg: ModelConfig) -> ModelConfig:
    """The same network with every default filled in, and what it does not use at its default.

    Example:
      >>> canonical(ModelConfig(10, 64, 1)).ffn_dim
      192
    """
    defaults = {f.name: f.default for f in dataclasses.fields(ModelConfig)}
    windows = tuple(cfg.layer_window(layer) for layer in range(cfg.num_layers))
    changes: dict[str, Any] = {
        "num_heads": cfg.query_heads,
        "num_kv_heads": cfg.kv_heads,
        "head_dim": cfg.head_width,
        "ffn_dim": cfg.ffn_width,
        "attention_windows": _shortest(windows),
    }
    if cfg.experts.count and cfg.experts.ffn_dim is None:
        changes["experts"] = dataclasses.replace(cfg.experts, ffn_dim=cfg.ffn_width)
    if cfg.attention_scale is not None and cfg.attention_scale == cfg.head_width**-0.5:
        changes["attention_scale"] = None
    unused: list[str] = []
    if cfg.position != "rope":
        unused += ["rope_theta", "rope_theta_local", "rope_fraction", "rope_interleaved"]
        changes["rope_scaling"] = RopeScaling()
    elif cfg.rope_theta_local == cfg.rope_theta or not any(windows):
        unused += ["rope_theta_local"]
    if cfg.position != "relative":
        unused += ["relative_buckets", "relative_max_distance"]
    if cfg.norm != "layernorm":
        unused += ["norm_bias"]
    if cfg.causal and cfg.encoder == Encoder():
        unused += ["pooling"]
    return cfg.replace(**changes, **{name: defaults[name] for name in unused})


def _shortest(pattern: Sequence[int | None]) -> tuple[int | None, ...]:
    for period in range(1, len(pattern)):
        if pattern[period:] == pattern[:-period]:
            return tuple(pattern[:period])
    return tuple(pattern)
