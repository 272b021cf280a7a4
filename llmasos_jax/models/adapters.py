"""Low-rank changes of a model's products: which products, their weights, merging them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_jax.config.finetune import FinetuneConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.nn.adapters import (
    LORA,
    SCALES,
    Lora,
    column_lengths,
    dequantized,
    each,
    scales_shape,
)
from llmasos_jax.nn.attention import Projections
from llmasos_jax.nn.latent import MultiHeadLatentAttention
from llmasos_jax.nn.mlp import MLP
from llmasos_jax.nn.moe import MoE
from llmasos_jax.nn.weight import weight
from llmasos_jax.types import Tree

# Modules whose products go through `nn.adapters.product`.
_MODULES = (Projections, MultiHeadLatentAttention, MLP, MoE)
_GATE = "shared_gate"  # one column, which nothing changes by a rank below its own
_PREFIX = re.compile(r"^(encoder\.)?(prefix|periods|suffix)\.\d+\.")
BITS = {"int8": 8, "int4": 4}
CODES = {8: jnp.int8, 4: jnp.int4}


@dataclass(frozen=True)
class Adapters:
    """What stands beside the weights of a model's products.

    Attributes:
      targets: patterns of products' names without stack and layer ("attn.q", "mlp.*", "*").
      rank: of each change; 0 for none.
      scale: what A B is multiplied by.
      dora: whether each change has a magnitude.
      bits: of the weights' codes, 8 or 4, in all products of the blocks but routers; None keeps
        numbers.
      is_fixed: whether nothing moves any more: instead of a magnitude a change has what each
        column of the sum is multiplied by.
    """

    targets: tuple[str, ...] = ()
    rank: int = 0
    scale: float = 1.0
    dora: bool = False
    bits: int | None = None
    is_fixed: bool = False


def adapters_of(cfg: FinetuneConfig) -> Adapters | None:
    """The adapters of a fine-tuning run; None where it has none."""
    if cfg.base is None or cfg.method != "lora":
        return None
    bits = None if cfg.quantize is None else BITS[cfg.quantize]
    return Adapters(cfg.targets, cfg.rank, cfg.scale, cfg.dora, bits)


def attach(model: nnx.Module, adapters: Adapters) -> None:
    """Declares the adapters' weights beside those of the products.

    Raises:
      ConfigError: a pattern matches no product.
    """
    found, matched = [], set()
    for name, module, attribute in list(_products(model)):
        found.append(name)
        hits = [p for p in adapters.targets if fnmatch.fnmatchcase(name, p)]
        matched.update(hits)
        param = getattr(module, attribute)
        stack = param.shape[0] if len(param.shape) > len(param.axes) else None
        if adapters.bits is not None and not param.is_float32:
            _keep_codes(module, attribute, adapters.bits, stack)
        if hits and adapters.rank:
            lora = Lora(
                param,
                adapters.rank,
                adapters.scale,
                has_magnitude=adapters.dora,
                is_fixed=adapters.is_fixed,
                stack=stack,
            )
            setattr(module, attribute + LORA, lora)
    missed = [p for p in adapters.targets if p not in matched]
    if missed:
        raise ConfigError(
            f'finetune.targets: "{missed[0]}" matches no product of this model; its products are '
            f"{', '.join(sorted(set(found)))}"
        )


def _keep_codes(module: Any, attribute: str, bits: int, stack: int | None) -> None:
    """Makes of a weight its codes, and declares their scales."""
    param = getattr(module, attribute)
    one = param.shape if stack is None else param.shape[1:]
    lead, num_in = param.num_lead, param.num_in
    axes = (*param.axes[:lead], None, *param.axes[lead + num_in :])
    shape = (*one[:lead], *scales_shape(one[lead:], num_in, bits))
    scales = weight(shape, axes, init="ones", num_lead=lead, stack=stack)
    setattr(module, attribute + SCALES, scales)
    codes = nnx.Param(
        jnp.zeros(param.shape, CODES[bits]),
        **{**param.get_metadata(), "init": "codes"},
    )
    setattr(module, attribute, codes)


def _products(model: nnx.Module) -> Iterator[tuple[str, Any, str]]:
    """Each product that can be changed: its name without stack and layer, its module, attribute."""
    for path, module in nnx.iter_modules(model):
        if not isinstance(module, _MODULES):
            continue
        for attribute, value in sorted(vars(module).items()):
            if isinstance(value, nnx.Param) and value.num_in and attribute != _GATE:
                name = ".".join(map(str, (*path, attribute)))
                yield _PREFIX.sub("", name), module, attribute


def is_adapter(path: tuple[str, ...]) -> bool:
    """Whether a leaf belongs to an adapter.

    Example:
      >>> is_adapter(("periods", "0", "attn", "q_lora", "a")), is_adapter(("embed", "table"))
      (True, False)
    """
    return any(name.endswith(LORA) for name in path)


def merged(
    tree: Tree,
    adapters: Adapters | None,
    contractions: Tree,
    leads: Tree,
    *,
    is_stacked: bool = False,
) -> Tree:
    """The weights of a model without adapters, with their changes added and codes widened.

    Args:
      tree: of a model with adapters.
      adapters: its adapters; None gives the tree back.
      contractions: `ModelDef.contractions` of the model with adapters.
      leads: `ModelDef.leads` of it.
      is_stacked: whether the first dimension of each leaf counts layers.
    """
    if adapters is None:
        return tree
    result: Tree = {}
    for key, value in tree.items():
        if key.endswith((LORA, SCALES)):
            continue
        lora, scales = tree.get(key + LORA), tree.get(key + SCALES)
        if isinstance(value, dict):
            below = is_stacked or key == "periods"
            result[key] = merged(value, adapters, contractions[key], leads[key], is_stacked=below)
        elif lora is None and scales is None:
            result[key] = value
        else:
            merge = partial(merge_one, num_in=contractions[key], scale=adapters.scale)
            result[key] = each(merge, is_stacked + leads[key])(value, scales, lora)
    return result


def merge_one(
    w: jax.Array, scales: jax.Array | None, lora: Tree | None, num_in: int, scale: float
) -> jax.Array:
    """One matrix with its change, in its own dtype (float32 if it was codes)."""
    dtype = jnp.dtype(jnp.float32) if scales is not None else w.dtype
    whole = (w if scales is None else dequantized(w, scales, num_in)).astype(jnp.float32)
    if lora is None:
        return whole.astype(dtype)
    a, b = (lora[name].astype(jnp.float32) for name in ("a", "b"))
    changed = whole + scale * jnp.tensordot(a, b, axes=1)
    if "magnitude" in lora:
        ratio = lora["magnitude"] / column_lengths(whole, a, b, scale, num_in)
        changed = changed * jnp.expand_dims(ratio, range(num_in))
    return changed.astype(dtype)
