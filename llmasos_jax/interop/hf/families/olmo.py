"""OLMo 2: norms after attention and MLP, queries and keys normalised over all heads."""

from __future__ import annotations

from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families.decoder import (
    ATTENTION,
    DROP,
    ENDS,
    IGNORED,
    MLP,
    OUTPUT_NORMS,
    read_biases,
    read_decoder,
    write_decoder,
)
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.hf.families.llama import LLAMA
from llmasos_jax.interop.tables import Table

# The defaults of transformers' Olmo2Config.
_OLMO2 = LLAMA | {"vocab_size": 50304, "rms_norm_eps": 1e-5}
_TABLE = Table((*ENDS, *ATTENTION, *MLP, *OUTPUT_NORMS), IGNORED)


def _read(keys: Keys) -> ModelConfig:
    return ModelConfig(
        **read_decoder(keys, _OLMO2), **read_biases(keys), norm_placement="output", qk_norm="full"
    )


def _write(manifest: Manifest) -> dict[str, Any]:
    bias = manifest.parameters.qkv_bias
    more = {"head_dim": DROP, "attention_bias": bias}
    return write_decoder(manifest, "Olmo2ForCausalLM", "olmo2", **more)


FAMILIES = (
    Family(
        "OLMo",
        "olmo2",
        ("Olmo2ForCausalLM", "Olmo2Model"),
        _read,
        lambda _: _TABLE,
        write_config=_write,
    ),
)
