"""What the families with LayerNorms, biases and plain MLPs share."""

from __future__ import annotations

from typing import Any

from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.rows import VECTOR, Arrangement
from llmasos_jax.interop.tables import Ignored, Row, row

OURS = "layers.{i}."

# By their names in transformers; "gelu_fast" is the same sum written otherwise.
PLAIN = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# A LayerNorm in every place, and a bias in every product.
GPT: dict[str, Any] = {
    "norm": "layernorm",
    "qkv_bias": True,
    "attention_out_bias": True,
    "mlp_bias": True,
}


def norm(ours: str, theirs: str) -> tuple[Row, Row]:
    """The rows of a LayerNorm, by the names without their ends.

    Example:
      >>> [r.theirs for r in norm("final_norm", "ln_f")]
      [('ln_f.weight',), ('ln_f.bias',)]
    """
    return (
        row(f"{ours}.scale", f"{theirs}.weight", VECTOR),
        row(f"{ours}.bias", f"{theirs}.bias", VECTOR),
    )


def product(ours: str, theirs: str, arrangement: Arrangement) -> tuple[Row, Row]:
    """The rows of a product of one layer and of its bias."""
    return (
        row(OURS + ours, f"{theirs}.weight", arrangement),
        row(f"{OURS}{ours}_bias", f"{theirs}.bias", VECTOR),
    )


def fused(theirs: str, weight: Arrangement, bias: Arrangement) -> tuple[Row, Row]:
    """The rows of queries, keys and values in one product, and of their biases."""
    parts = [f"{OURS}attn.{part}" for part in "qkv"]
    return (
        row(" ".join(parts), f"{theirs}.weight", weight),
        row(" ".join(f"{part}_bias" for part in parts), f"{theirs}.bias", bias),
    )


def tied_head(embedding: str) -> Ignored:
    """A head that a file repeats though the config ties it to the embedding."""
    return Ignored(
        r"lm_head\.weight",
        "and the config ties the head to the embedding (tie_word_embeddings)",
        equals=embedding,
    )


def masks(attention: str) -> Ignored:
    """The causal mask that older versions of transformers stored in each layer."""
    return Ignored(rf"{attention}\.(bias|masked_bias)", "the causal mask, which is computed")


def integer(keys: Keys, *names: str, default: int) -> int:
    """A whole number under the first of these names that the file has.

    Raises:
      FormatError: it is something else.
    """
    present = [name for name in names if name in keys]
    for name in present[1:]:
        keys.only(name, keys.found[present[0]], why=f'"{present[0]}" says it too')
    return keys.integer(present[0] if present else names[0], default)


def rotated_share(keys: Keys, key: str, rotated: int, width: int) -> float:
    """The share of a head of `width` that makes `rotated` of its numbers rotate.

    Raises:
      FormatError: there is none.
    """
    if rotated < 2 or rotated % 2 or rotated > width:
        raise keys.error(key, f"must be even and at most the {width} numbers of a head")
    exact = rotated / width
    return exact if int(width * exact) == rotated else (rotated + 0.5) / width
