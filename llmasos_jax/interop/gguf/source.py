"""What a config is made of, and what the metadata of all architectures says alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.interop.gguf.keys import Keys

MOST_LAYERS = 4096
MOST_EXPERTS = 65536


@dataclass(frozen=True)
class Source:
    """What a config is made of: the metadata, and the tensors that it may not mention."""

    keys: Keys
    tensors: Mapping[str, StoredTensor]

    def has(self, name: str) -> bool:
        """Whether the first layer has such a tensor ("attn_q.bias")."""
        return f"blk.0.{name}" in self.tensors


def common(source: Source) -> dict[str, Any]:
    """What all architectures say in the same words, as fields of a ModelConfig.

    Raises:
      FormatError: a key is missing or wrong, or there is no table of embeddings.
    """
    keys, tensors = source.keys, source.tensors
    if "token_embd.weight" not in tensors or len(tensors["token_embd.weight"].shape) != 2:
        raise keys.error("there is no table of embeddings, token_embd.weight; this is no model")
    layers = keys.integer("block_count", most=MOST_LAYERS)
    if layers > len(tensors):
        raise keys.error(f"{keys.arch}.block_count = {layers}, there are {len(tensors)} tensors")
    keys.must_be("nextn_predict_layers", 0, why="layers that predict further tokens")
    return {
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "embedding_dim": keys.integer("embedding_length"),
        "num_layers": layers,
        "context_length": keys.integer("context_length"),
        "num_heads": (heads := keys.integer("attention.head_count")),
        "num_kv_heads": keys.integer("attention.head_count_kv", heads),
        "tie_embeddings": "output.weight" not in tensors,
        "head_bias": "output.bias" in tensors,
    }


def head_width(keys: Keys, fields: dict[str, Any]) -> int:
    """Numbers in a head; keys and values have as many.

    Raises:
      FormatError: they have not.
    """
    default = max(1, fields["embedding_dim"] // fields["num_heads"])
    width = keys.integer("attention.key_length", default)
    if keys.integer("attention.value_length", width) != width:
        raise keys.error(f"{keys.arch}.attention.value_length differs from key_length {width}")
    return width


def turned_share(turned: int, width: int) -> float:
    """The share of a head that gives exactly so many rotated numbers.

    Example:
      >>> turned_share(96, 128)
      0.75
    """
    share = turned / width
    return share if int(width * share) == turned else math.nextafter(share, 2.0)
