"""A model before it has weights: shapes, logical axes, how to start, how to lay out."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.models.adapters import Adapters, attach
from llmasos_jax.models.layout import ENCODER, PARTS, Layout, encoder_config, unrolled_layout
from llmasos_jax.models.transformer import Transformer
from llmasos_jax.nn.cache import Cache, CrossCache, LayerCache
from llmasos_jax.nn.paged import PagedLayer
from llmasos_jax.nn.ragged import RaggedLayer, ragged_fits
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.weight import RANDOM, is_weight
from llmasos_jax.types import Tree


@dataclass(frozen=True)
class ModelDef:
    """A Transformer's structure. Its parameters are a nested dict with the keys of `shapes`."""

    cfg: ModelConfig
    layout: Layout
    adapters: Adapters | None = None

    @cached_property
    def _split(self) -> tuple[Any, Any]:
        return nnx.split(nnx.eval_shape(self._make))

    def _make(self) -> Transformer:
        model = Transformer(self.cfg, self.layout)
        if self.adapters is not None:
            attach(model, self.adapters)
        return model

    @cached_property
    def shapes(self) -> Tree:
        """Tree of ShapeDtypeStructs: float32, but for codes."""
        return jax.tree.map(
            lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), nnx.to_pure_dict(self._split[1])
        )

    @cached_property
    def axes(self) -> Tree:
        """Tree of tuples of logical axis names, "layers" in front for stacked weights."""
        return self._metadata(lambda v: ("layers",) * (len(v.shape) - len(v.axes)) + tuple(v.axes))

    @cached_property
    def inits(self) -> Tree:
        """Tree of how each weight starts: `init` of `nn.weight.weight`, or "codes"."""
        return self._metadata(lambda v: v.init)

    @cached_property
    def contractions(self) -> Tree:
        """Tree of how many dimensions (after the stacked one and `leads`) a product contracts."""
        return self._metadata(lambda v: v.num_in)

    @cached_property
    def leads(self) -> Tree:
        """Tree of how many dimensions (after the stacked one) number matrices: 1 for experts."""
        return self._metadata(lambda v: v.num_lead)

    @cached_property
    def is_narrow(self) -> Tree:
        """Tree of booleans: which weights may be bfloat16; not scales, biases and routers."""
        return self._metadata(lambda v: v.init in RANDOM and not v.is_float32)

    def bind(self, params: Tree) -> Transformer:
        """The model with these weights. Cheap: call it inside a jitted function."""
        return nnx.merge(self._split[0], params)

    def _metadata(self, read: Any) -> Tree:
        state = self._split[1]
        leaves = jax.tree.map(lambda v: v.replace(_Box(read(v))), state, is_leaf=is_weight)
        return jax.tree.map(
            lambda box: box.value, nnx.to_pure_dict(leaves), is_leaf=lambda n: isinstance(n, _Box)
        )


@dataclass(frozen=True)
class _Box:
    value: Any


def init_params(definition: ModelDef, key: jax.Array, *, std: float = 0.02) -> Tree:
    """Random weights: the same values whatever the layout and the mesh.

    Args:
      definition: the model.
      key: typed PRNG key; each weight draws from it, its name and its layer's number.
      std: of normal weights; those that write into the residual stream get std / sqrt(2 L)
        (Radford et al., 2019, section 2.3), L the layers of their own stack.

    Returns:
      Tree of float32 arrays. Jit it with `out_shardings` to start where the weights live.
    """
    drawn: dict[tuple[str, ...], jax.Array] = {}

    def make(path: tuple, shape: jax.ShapeDtypeStruct, init: str, num_lead: int) -> jax.Array:
        if init in ("zeros", "ones", "codes"):
            return jnp.full(shape.shape, float(init == "ones"), shape.dtype)
        names = tuple(str(entry.key) for entry in path)
        stem = names[:1] if names[0] == ENCODER else ()
        cfg, layout = _stack_of(definition, names)
        scale = std / math.sqrt(2 * cfg.num_layers) if init == "residual" else std
        part, *rest = names[len(stem) :]
        if part not in PARTS:
            return scale * jax.random.normal(_named(key, names), shape.shape)
        first = layout.first_layer(part) + int(rest[0])
        end = first + layout.period * layout.count if part == "periods" else first + 1
        one = shape.shape[1:] if part == "periods" else shape.shape
        if init == "fan_in":  # PyTorch's variance for a layer of this many inputs
            scale = (3 * math.prod(one[num_lead:-1])) ** -0.5
        layers = _layers_with(cfg, rest[1])
        name = (*stem, *rest[1:])
        if name not in drawn:
            # For all layers at once: one by one they would compile for minutes.
            drawn[name] = _draw(_named(key, name), layers, one)
        step = layout.period if part == "periods" else 1
        rows = [layers.index(layer) for layer in range(first, end, step)]
        # Evenly apart, since each period has as many such layers. A slice is cut up like the rest.
        apart = rows[1] - rows[0] if len(rows) > 1 else 1
        found = drawn[name][rows[0] : rows[-1] + 1 : apart]
        return scale * (found if part == "periods" else found[0])

    return jax.tree_util.tree_map_with_path(
        make, definition.shapes, definition.inits, definition.leads
    )


def _stack_of(definition: ModelDef, names: tuple[str, ...]) -> tuple[ModelConfig, Layout]:
    """The stack that a weight belongs to: the encoder of an encoder-decoder, or the model's own."""
    cfg, layout = definition.cfg, definition.layout
    if names[0] != ENCODER or layout.encoder is None:
        return cfg, layout
    return encoder_config(cfg), layout.encoder


def _layers_with(cfg: ModelConfig, module: str) -> list[int]:
    """The layers that have an MLP, or experts; all have the other modules."""
    wanted = {"mlp": (False,), "moe": (True,)}.get(module, (False, True))
    return [i for i in range(cfg.num_layers) if cfg.has_experts(i) in wanted]


def _draw(key: jax.Array, layers: list[int], shape: tuple[int, ...]) -> jax.Array:
    """Normal numbers for each of these layers, by its own number."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.array(layers))
    return jax.vmap(lambda one: jax.random.normal(one, shape))(keys)


def relayout(params: Tree, source: Layout, target: Layout) -> Tree:
    """The same weights (or any tree of that shape) in another layout."""
    tree = {name: part for name, part in params.items() if name not in PARTS}
    if source.encoder is not None and target.encoder is not None:
        tree[ENCODER] = relayout(params[ENCODER], source.encoder, target.encoder)
    rows: dict[tuple[str, str], list] = {}
    for layer in range(target.num_layers):
        part, name, row = source.place_of(layer)
        block = params[part][str(name)]
        if row is not None:
            block = jax.tree.map(lambda stacked, row=row: stacked[row], block)
        part, name, row = target.place_of(layer)
        rows.setdefault((part, str(name)), []).append(block)
    for (part, name), blocks in rows.items():
        whole = jax.tree.map(lambda *xs: jnp.stack(xs), *blocks) if part == "periods" else blocks[0]
        tree.setdefault(part, {})[name] = whole
    return tree


def out_first(definition: ModelDef, params: Tree) -> Tree:
    """Weights with output axes first, for `nn.runtime.dot_out_first`. Unstacked layouts only."""
    return jax.tree.map(turned, params, definition.contractions, definition.leads)


def turned(w: Any, num_in: int, num_lead: int = 0, *, back: bool = False) -> Any:
    """One weight with its output axes first; with `back`, the inverse.

    Args:
      w: array of NumPy or JAX.
      num_in: dimensions that a product contracts; 0 leaves the weight as it is.
      num_lead: dimensions before these, which stay.
      back: whether the output axes are first now.

    Example:
      >>> turned(jnp.zeros((8, 2, 3)), 1, 1).shape
      (8, 3, 2)
    """
    if not num_in:
        return w
    split = w.ndim - num_in if back else num_lead + num_in
    return w.transpose(*range(num_lead), *range(split, w.ndim), *range(num_lead, split))


def empty_cache(
    definition: ModelDef,
    batch_size: int,
    num_slots: int,
    dtype: Any = jnp.float32,
    *,
    encoder_slots: int | None = None,
) -> Cache:
    """A cache with room for `num_slots` tokens in each of `batch_size` rows, at slot 0.

    Its bytes are L B S K times the widths of a key and a value times the width of `dtype`, and of
    an encoder-decoder as many again for the encoder's tokens.

    Args:
      definition: the model.
      batch_size: rows.
      num_slots: tokens of a row.
      dtype: of keys and values.
      encoder_slots: tokens of the encoder, for the shape of what `Transformer.cross_cache` gives
        (here all are padding); None leaves `cross` out.
    """
    starts_b, lengths_b = (jnp.zeros(batch_size, jnp.int32) for _ in range(2))
    layers = _empty_layers(definition, batch_size, num_slots, dtype)
    cross = None
    if encoder_slots is not None:
        if definition.layout.encoder is None:
            raise ValueError("encoder_slots were given for a model without an encoder")
        kept = _empty_layers(definition, batch_size, encoder_slots, dtype)
        cross = CrossCache(kept, jnp.zeros((batch_size, encoder_slots), jnp.int32))
    return Cache(layers, starts_b, jnp.int32(0), lengths_b, cross)


def empty_pages(
    definition: ModelDef,
    num_pages: int,
    page_size: int,
    dtype: Any = jnp.float32,
    *,
    runtime: Runtime = Runtime(),
) -> dict[str, dict[str, PagedLayer | RaggedLayer]]:
    """Pages of zeros for each layer, as `nn.paged.PagedCache.layers` has them.

    Their bytes are L P C K times the widths of a key and a value times the width of `dtype`.

    Args:
      definition: the model, in a layout without stacked layers.
      num_pages: P, page 0, which is nobody's, included.
      page_size: C, tokens of a page.
      dtype: of keys and values.
      runtime: its devices choose the kernel, and so how pages lie.
    """
    cfg = definition.cfg
    kind = RaggedLayer if ragged_fits(cfg, runtime, dtype) else PagedLayer
    widths = (cfg.head_width, cfg.value_width)

    def make(lead: tuple[int, ...]) -> PagedLayer | RaggedLayer:
        if lead:
            raise ValueError("pages are for layouts without stacked layers")
        return kind.empty(num_pages, page_size, cfg.kv_heads, widths, dtype)

    return _for_each_layer(definition, make)


def _empty_layers(
    definition: ModelDef, batch_size: int, num_slots: int, dtype: Any
) -> dict[str, dict[str, LayerCache]]:
    cfg = definition.cfg
    rows = cfg.kv_heads * batch_size
    keys, values = (rows, cfg.head_width, num_slots), (rows, num_slots, cfg.value_width)
    return _for_each_layer(
        definition,
        lambda lead: LayerCache(
            jnp.zeros((*lead, *keys), dtype), jnp.zeros((*lead, *values), dtype)
        ),
    )


def _for_each_layer(
    definition: ModelDef, make: Callable[[tuple[int, ...]], Any]
) -> dict[str, dict[str, Any]]:
    """What `make` gives for each layer in the layout's places; its argument is the stacked axis."""
    layout = definition.layout
    parts = {
        "prefix": {str(i): make(()) for i in range(layout.prefix)},
        "periods": {str(i): make((layout.count,)) for i in range(layout.period)},
        "suffix": {str(i): make(()) for i in range(layout.suffix)},
    }
    return {name: part for name, part in parts.items() if part}


@functools.lru_cache(maxsize=64)
def file_def(cfg: ModelConfig) -> ModelDef:
    """The model as files hold it: one tensor per layer and weight."""
    return ModelDef(cfg, unrolled_layout(cfg))


def _named(key: jax.Array, names: Iterable[str]) -> jax.Array:
    return jax.random.fold_in(key, zlib.crc32(".".join(names).encode()))
