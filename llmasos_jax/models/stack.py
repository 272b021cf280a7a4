"""A stack of blocks in a layout, and the two drivers over it: one by one, and scanned."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.models.layout import Layout, layer_specs
from llmasos_jax.models.pipeline import border, run_stages
from llmasos_jax.models.remat import checkpointed, remat_policy
from llmasos_jax.nn.block import Block, BlockInputs, CrossInputs
from llmasos_jax.nn.cache import Cache, LayerCache
from llmasos_jax.nn.context import over_sequence
from llmasos_jax.nn.dropout import Dropout
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.moe import Routing
from llmasos_jax.nn.norm import Norm
from llmasos_jax.nn.paged import PagedCache
from llmasos_jax.nn.relative import RelativeBias
from llmasos_jax.nn.rope import document_lengths, rotations
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.weight import gathered
from llmasos_jax.parallel.schedule import Schedule


@dataclass(frozen=True)
class Hidden:
    """What the blocks give.

    Attributes:
      x_btd: after the final norm, [B, T, D].
      cache: the next state of the cache, if one was given.
      layers: L + 1 arrays [B, T, D] (the embedding, then after each block, the last after the final
        norm), if asked for.
      routing: what the routers did, each sum with a leading axis over the layers that have experts;
        None without experts.
    """

    x_btd: jax.Array
    cache: Cache | PagedCache | None = None
    layers: tuple[jax.Array, ...] | None = None
    routing: Routing | None = None


class Stack(nnx.Module):
    """Blocks, the norm after the last, and the table of relative positions that they share."""

    def __init__(self, cfg: ModelConfig, layout: Layout) -> None:
        specs = layer_specs(cfg)
        self.cfg = cfg
        self.layout = layout
        end = layout.prefix + layout.period
        tail = layout.num_layers - layout.suffix
        self.prefix = _blocks(cfg, specs[: layout.prefix], None)
        self.periods = _blocks(cfg, specs[layout.prefix : end], layout.count)
        self.suffix = _blocks(cfg, specs[tail:], None)
        self.final_norm = Norm(cfg, (cfg.embedding_dim,), (None,)) if cfg.final_norm else None
        self.relative = RelativeBias(cfg) if cfg.position == "relative" else None

    def run(
        self,
        x_btd: jax.Array,
        inputs: BlockInputs,
        *,
        cache: Cache | PagedCache | None = None,
        dropout: Dropout | None = None,
        runtime: Runtime,
        all_layers: bool = False,
    ) -> Hidden:
        """Runs the blocks and the final norm on the embeddings [B, T, D]."""
        run = _Run(inputs, dropout, runtime, [x_btd] if all_layers else None, [])
        layout, new = self.layout, {}
        caches = _Caches(cache)
        x_btd = run.each(self.prefix, x_btd, caches, new, "prefix", first=0)
        x_btd = run.scan(self.periods, x_btd, caches, new, first=layout.prefix)
        last = layout.num_layers - layout.suffix
        x_btd = run.each(self.suffix, x_btd, caches, new, "suffix", first=last)
        if self.final_norm is not None:
            x_btd = gathered(self.final_norm, runtime)(x_btd)
            x_btd = runtime.fence(x_btd)
        if isinstance(cache, PagedCache):
            cache = dataclasses.replace(cache, layers=new)
        elif cache is not None:
            cache = dataclasses.replace(cache, layers=new, slot=cache.slot + x_btd.shape[1])
        layers = None if run.outputs is None else (*run.outputs[:-1], x_btd)
        return Hidden(x_btd, cache, layers, run.routing())

    def inputs(
        self,
        positions_bt: jax.Array,
        segments_bt: jax.Array | None,
        runtime: Runtime,
        *,
        cache: Cache | PagedCache | None = None,
        prefix_bt: jax.Array | None = None,
        branches_bt: jax.Array | None = None,
        cross: CrossInputs | None = None,
    ) -> BlockInputs:
        """What every block reads; arguments as in `Transformer.hidden`."""
        b, t = positions_bt.shape
        q_index = jnp.arange(t, dtype=jnp.int32)[None]
        k_index, k_segments, slot = q_index, segments_bt, None
        k_prefix = None if prefix_bt is None else prefix_bt != 0
        if isinstance(cache, PagedCache):
            slot, segments_bt = cache.places, jnp.ones((b, t), jnp.int32)
        elif cache is not None:
            slot = cache.slot
            q_index, k_index = q_index + slot, jnp.arange(cache.num_slots, dtype=jnp.int32)[None]
            # Slots before a row's start hold padding: segment 0, which no query of segment 1 sees.
            segments_bt = jnp.ones((b, t), jnp.int32)
            k_segments = (k_index >= cache.start_b[:, None]).astype(jnp.int32)
            k_prefix = _prompt(cache, k_index, t) if self.cfg.prefix_lm and t > 1 else None
        causal = self.cfg.causal
        whole = Visibility(q_index, k_index, segments_bt, k_segments, k_prefix, causal=causal)
        windows = {spec.window for spec in layer_specs(self.cfg)}
        if branches_bt is not None:
            whole = _branched(whole, branches_bt, positions_bt, runtime)
        whole = over_sequence(whole, runtime)
        visible = {window: dataclasses.replace(whole, window=window) for window in windows}
        counted_bt = jnp.ones((b, t), bool) if segments_bt is None else segments_bt > 0
        lengths_bt = None
        if self.cfg.rope_scaling.kind == "longrope" and cache is not None:
            lengths_bt = jnp.maximum(cache.length_b[:, None], positions_bt + 1)
        elif self.cfg.rope_scaling.kind == "longrope" and segments_bt is not None:
            rows = (runtime.whole_tokens(x) for x in (positions_bt, segments_bt))
            lengths_bt = runtime.own_tokens(document_lengths(*rows))
        turns = rotations(self.cfg, positions_bt, lengths_bt)
        bias_nts = None
        if self.relative is not None:
            bias_nts = gathered(self.relative, runtime)(whole, runtime)
        return BlockInputs(visible, turns, slot, counted_bt, bias_nts, cross)

    def cross_layers(
        self, x_bsd: jax.Array, runtime: Runtime, dtype: Any
    ) -> dict[str, dict[str, LayerCache]]:
        """Keys and values of the encoder's states [B, S, D] in each layer, as `CrossCache` has."""

        def keep(block: Block) -> LayerCache:
            attention = gathered(block, runtime).cross_attn
            if attention is None:
                raise ValueError("this model has no encoder, so there is nothing to attend to")
            return LayerCache.of(*attention.keys_values(x_bsd, runtime), dtype)

        def keep_each(block: Block) -> LayerCache:
            graphdef, params = nnx.split(block)
            return lax.map(lambda row: keep(nnx.merge(graphdef, row)), params)

        parts = {
            "prefix": {name: keep(block) for name, block in self.prefix.items()},
            "periods": {name: keep_each(block) for name, block in self.periods.items()},
            "suffix": {name: keep(block) for name, block in self.suffix.items()},
        }
        return {part: layers for part, layers in parts.items() if layers}


def _branched(
    visible: Visibility, branches_bt: jax.Array, positions_bt: jax.Array, runtime: Runtime
) -> Visibility:
    """Of branches of a segment: they go on from one position, wherever they are in the row."""
    manual = runtime.manual
    if runtime.schedule is not None or (manual is not None and manual.context > 1):
        raise ValueError("branches_bt is for whole rows: not for stages, nor for tokens split")
    return dataclasses.replace(
        visible,
        q_index=positions_bt,
        k_index=positions_bt,
        q_branches=branches_bt,
        k_branches=branches_bt,
    )


def _prompt(cache: Cache, k_index: jax.Array, num_new: int) -> jax.Array:
    """The slots that are a prompt read in both directions, bool [B, S]: all that is written yet."""
    place_bs = k_index - cache.start_b[:, None]
    length_b1 = cache.length_b[:, None]
    # Past a prompt's known end stands padding on the right, which is no token.
    is_known = (length_b1 <= 0) | (place_bs < length_b1)
    return (k_index < cache.slot + num_new) & is_known


def _blocks(cfg: ModelConfig, specs: tuple, stack: int | None) -> nnx.Dict:
    return nnx.Dict({str(i): Block(cfg, spec, stack=stack) for i, spec in enumerate(specs)})


def _in_order(blocks: nnx.Dict) -> list[tuple[str, Any]]:
    """Blocks by their number: as keys of a tree they are sorted as texts, "10" before "2"."""
    return sorted(blocks.items(), key=lambda item: int(item[0]))


def _in_layer_order(*stacks: jax.Array) -> jax.Array:
    """One array over layers from one over periods for each layer of a period."""
    return jnp.stack(stacks, axis=1).reshape(-1, *stacks[0].shape[1:])


class _Caches:
    """The caches of each part's layers: their own, and that of the encoder's states."""

    def __init__(self, cache: Cache | PagedCache | None) -> None:
        self._own = {} if cache is None else cache.layers
        self._cross = {} if cache is None or cache.cross is None else cache.cross.layers

    def of(self, part: str, name: str) -> tuple[LayerCache | None, LayerCache | None]:
        return self._own.get(part, {}).get(name), self._cross.get(part, {}).get(name)


@dataclass
class _Run:
    """The two drivers over blocks, one by one and scanned, with what they share."""

    inputs: BlockInputs
    dropout: Dropout | None
    runtime: Runtime
    outputs: list[jax.Array] | None
    routings: list[Routing]  # each with a leading axis over layers

    def each(
        self, blocks: nnx.Dict, x_btd: jax.Array, caches: _Caches, new: dict, part: str, first: int
    ) -> jax.Array:
        """Runs blocks one after the other, each with its own weights."""
        for name, block in _in_order(blocks):
            graphdef, params = nnx.split(block)
            run = checkpointed(partial(self._block, graphdef), self.runtime)
            x_btd, layer_cache, routing = run(
                params, x_btd, caches.of(part, name), first + int(name)
            )
            if routing is not None:
                self.routings.append(jax.tree.map(lambda x: x[None], routing))
            if layer_cache is not None:
                new.setdefault(part, {})[name] = layer_cache
            if self.outputs is not None:
                self.outputs.append(x_btd)
        return x_btd

    def scan(
        self, blocks: nnx.Dict, x_btd: jax.Array, caches: _Caches, new: dict, first: int
    ) -> jax.Array:
        """Runs the periods, each a row of the stacked weights, in one loop."""
        if not blocks:
            return x_btd
        split = {name: nnx.split(block) for name, block in _in_order(blocks)}
        params = {name: state for name, (_, state) in split.items()}
        graphdefs = {name: graphdef for name, (graphdef, _) in split.items()}
        period = len(split)
        if self.runtime.schedule is not None:
            stages = self.runtime.schedule
            x_btd, routings = self._in_stages(graphdefs, params, x_btd, first, stages)
            self.routings += [jax.tree.map(_in_layer_order, *routings)] if routings else []
            return x_btd
        count = jax.tree.leaves(params)[0].shape[0]
        pairs = {name: caches.of("periods", name) for name in split}
        layers = first + period * jnp.arange(count, dtype=jnp.int32)
        x_btd, (next_caches, outputs, routings) = self._rows(
            graphdefs, x_btd, (params, pairs, layers)
        )
        if routings:
            self.routings.append(jax.tree.map(_in_layer_order, *routings))
        if self.inputs.slot is not None:
            new["periods"] = next_caches
        if self.outputs is not None:
            self.outputs += [outputs[i % period][i // period] for i in range(period * count)]
        return x_btd

    def _rows(
        self, graphdefs: dict[str, Any], x_btd: jax.Array, rows: tuple[Any, Any, jax.Array]
    ) -> tuple[jax.Array, Any]:
        """One loop over rows of stacked weights, of caches, and of layers' numbers."""

        def step(x_btd: jax.Array, row: Any) -> tuple[jax.Array, Any]:
            weights, layer_caches, layer = row
            next_caches, outputs, routings = {}, [], []
            for name, graphdef in graphdefs.items():
                x_btd, next_caches[name], routing = self._block(
                    graphdef, weights[name], x_btd, layer_caches[name], layer + int(name)
                )
                outputs.append(x_btd)
                routings += [] if routing is None else [routing]
            return x_btd, (next_caches, outputs if self.outputs is not None else None, routings)

        is_unrolled = rows[2].shape[0] <= self.runtime.max_unrolled
        run = checkpointed(step, self.runtime)
        if self.runtime.schedule is not None and "block" not in self.runtime.remat_offload:
            inner = run
            run = lambda x_btd, row: inner(border(x_btd), row)
        return lax.scan(run, x_btd, rows, unroll=is_unrolled)

    def _in_stages(
        self, graphdefs: dict[str, Any], params: Any, x_btd: jax.Array, first: int, stages: Schedule
    ) -> tuple[jax.Array, list[Routing]]:
        """Runs the periods in stages of a pipeline, each a run of rows of the stacked weights."""
        if self.outputs is not None or self.inputs.slot is not None or self.inputs.cross:
            raise ValueError("stages of a pipeline have no caches, and give no layer's own output")
        pairs = dict.fromkeys(graphdefs, (None, None))

        def run_layers(
            weights: Any, x_btd: jax.Array, number: Any, inputs: BlockInputs, dropout: Any
        ) -> tuple[jax.Array, list[Routing]]:
            count = jax.tree.leaves(weights)[0].shape[0]
            periods = number * count + jnp.arange(count, dtype=jnp.int32)
            run = dataclasses.replace(self, inputs=inputs, dropout=dropout)
            rows = (weights, pairs, first + len(graphdefs) * periods)
            x_btd, (_, _, routings) = run._rows(graphdefs, x_btd, rows)
            return x_btd, routings

        policy = remat_policy(self.runtime)
        return run_stages(run_layers, params, x_btd, self.inputs, self.dropout, stages, policy)

    def _block(
        self, graphdef: Any, params: Any, x_btd: jax.Array, caches: Any, layer: Any
    ) -> tuple[jax.Array, Any, Routing | None]:
        block = gathered(nnx.merge(graphdef, params), self.runtime)
        dropout = None if self.dropout is None else self.dropout.at(layer)
        own, cross = caches
        x_btd = self.runtime.tag(x_btd, "block")
        return block(x_btd, self.inputs, own, dropout, self.runtime, cross)

    def routing(self) -> Routing | None:
        """What the routers did, of all layers."""
        if not self.routings:
            return None
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *self.routings)
