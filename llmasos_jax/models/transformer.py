"""The Transformer: embedding, blocks in a layout, final norm, output layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.models.layout import Layout, layer_specs
from llmasos_jax.nn.block import Block, BlockInputs
from llmasos_jax.nn.cache import Cache, LayerCache
from llmasos_jax.nn.dropout import Dropout
from llmasos_jax.nn.embed import Embed, Head
from llmasos_jax.nn.heads import Affine, MLMHead, Scores, pool
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.moe import Routing
from llmasos_jax.nn.norm import Norm
from llmasos_jax.nn.rope import document_lengths, rotations
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.weight import gathered


def _all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """What `remat="none"` keeps: were gathered weights kept, each device would hold the model."""
    return primitive.name != "all_gather"


REMAT_POLICIES: dict[str, Callable | None] = {
    "none": _all_but_gathered,
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


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
    cache: Cache | None = None
    layers: tuple[jax.Array, ...] | None = None
    routing: Routing | None = None


class Transformer(nnx.Module):
    """A decoder or encoder trunk with its output layer. The layout says which layers scan."""

    def __init__(self, cfg: ModelConfig, layout: Layout) -> None:
        specs = layer_specs(cfg)
        self.cfg = cfg
        self.layout = layout
        end = layout.prefix + layout.period
        tail = layout.num_layers - layout.suffix
        self.embed = Embed(cfg)
        self.prefix = _blocks(cfg, specs[: layout.prefix], None)
        self.periods = _blocks(cfg, specs[layout.prefix : end], layout.count)
        self.suffix = _blocks(cfg, specs[tail:], None)
        self.final_norm = Norm(cfg, (cfg.embedding_dim,), (None,)) if cfg.final_norm else None
        self.head = _head(cfg)
        self.pooler = Affine(cfg, cfg.embedding_dim) if cfg.pooler else None
        # Called with what `pooled` gives: float32 [B, 2], "b follows a", "b is from elsewhere".
        self.next_sentence = Scores(cfg, 2) if cfg.next_sentence else None
        labels = cfg.classifier.labels
        self.classifier = Scores(cfg, len(labels)) if labels else None

    def hidden(
        self,
        tokens_bt: jax.Array,
        *,
        positions_bt: jax.Array | None = None,
        segment_ids_bt: jax.Array | None = None,
        token_types_bt: jax.Array | None = None,
        cache: Cache | None = None,
        runtime: Runtime,
        dropout: Dropout | None = None,
        all_layers: bool = False,
    ) -> Hidden:
        """Runs the blocks.

        Args:
          tokens_bt: int32 [B, T].
          positions_bt: int32 [B, T]; default counts from 0, or with a cache from each row's start.
          segment_ids_bt: int32 [B, T]; tokens attend within their segment, 0 is padding. Not with a
            cache.
          token_types_bt: int32 [B, T], for a model that has them; None is type 0 everywhere.
          cache: keys and values so far; T more are written.
          runtime: how to run.
          dropout: noise of this step; None for none.
          all_layers: whether to return the residual stream after each block.
        """
        if token_types_bt is not None and not self.cfg.token_types:
            raise ValueError("token_types_bt was given to a model without token types")
        positions_bt = _positions(tokens_bt, cache) if positions_bt is None else positions_bt
        inputs = self._inputs(tokens_bt, positions_bt, segment_ids_bt, cache)
        with jax.named_scope("embed"):
            embed = gathered(self.embed, runtime)
            x_btd = embed(tokens_bt, positions_bt, token_types_bt, runtime)
        x_btd = x_btd if dropout is None else dropout.at(self.cfg.num_layers)(x_btd)
        run = _Run(inputs, dropout, runtime, [x_btd] if all_layers else None, [])
        caches = {} if cache is None else cache.layers
        new: dict[str, dict[str, LayerCache]] = {}
        x_btd = run.each(self.prefix, x_btd, caches, new, "prefix", first=0)
        x_btd = run.scan(self.periods, x_btd, caches, new, first=self.layout.prefix)
        x_btd = run.each(
            self.suffix,
            x_btd,
            caches,
            new,
            "suffix",
            first=self.layout.num_layers - self.layout.suffix,
        )
        if self.final_norm is not None:
            x_btd = gathered(self.final_norm, runtime)(x_btd)
        if cache is not None:
            cache = dataclasses.replace(cache, layers=new, slot=cache.slot + tokens_bt.shape[1])
        layers = None if run.outputs is None else (*run.outputs[:-1], x_btd)
        return Hidden(x_btd, cache, layers, run.routing())

    def logits(self, x_btd: jax.Array, runtime: Runtime) -> jax.Array:
        """Scores of the next token, or of a masked one, from the last hidden state.

        Args:
          x_btd: [B, T, D]; of a masked model only the places that are wanted, [B, M, D].
          runtime: how to run.

        Returns:
          float32 [B, T, V].
        """
        if self.cfg.head is None:
            raise ConfigError("model.head=None: this model has no output layer, so no logits")
        with jax.named_scope("logits"):
            if isinstance(self.head, MLMHead):
                head, embed = gathered(self.head, runtime), gathered(self.embed, runtime)
                logits_btv = head(x_btd, embed, runtime)
            elif self.head is None:
                logits_btv = gathered(self.embed, runtime).attend(x_btd, runtime)
            else:
                logits_btv = gathered(self.head, runtime)(x_btd, runtime)
            if self.cfg.logit_scale != 1.0:
                logits_btv = logits_btv * self.cfg.logit_scale
            if self.cfg.logit_soft_cap is not None:
                logits_btv = (
                    jnp.tanh(logits_btv / self.cfg.logit_soft_cap) * self.cfg.logit_soft_cap
                )
            return runtime.place(logits_btv, None, None, "vocab")

    def pooled(
        self, x_btd: jax.Array, runtime: Runtime, mask_bt: jax.Array | None = None
    ) -> jax.Array:
        """What stands for a whole text: the pooler's state, or without one what `pooling` gives.

        Args:
          x_btd: the last hidden state [B, T, D].
          runtime: how to run.
          mask_bt: [B, T], not 0 for tokens and 0 for padding, on either side; None has no padding.

        Returns:
          [B, D].
        """
        if self.pooler is None:
            return pool(x_btd, mask_bt, self.cfg.pooling)
        with jax.named_scope("pooler"):
            first_bd = pool(x_btd, mask_bt, "cls")
            return jnp.tanh(gathered(self.pooler, runtime)(first_bd, runtime))

    def classify(self, x: jax.Array, runtime: Runtime) -> jax.Array:
        """Scores of the labels, C of them.

        Args:
          x: what `pooled` gives, [B, D], where the classifier's level is "sequence"; the last
            hidden state [B, T, D] where it is "token".
          runtime: how to run.

        Returns:
          float32 [B, C] or [B, T, C].
        """
        if self.classifier is None:
            raise ConfigError("model.classifier has no labels: this model has no classifier")
        level = self.cfg.classifier.level
        if x.ndim != (2 if level == "sequence" else 3):
            raise ValueError(f'a classifier of level "{level}" was given {x.shape}')
        return self.classifier(x, runtime)

    def _inputs(
        self,
        tokens_bt: jax.Array,
        positions_bt: jax.Array,
        segments_bt: jax.Array | None,
        cache: Cache | None,
    ) -> BlockInputs:
        q_index = jnp.arange(tokens_bt.shape[1], dtype=jnp.int32)[None]
        k_index, k_segments, slot = q_index, segments_bt, None
        if cache is not None:
            slot = cache.slot
            q_index, k_index = q_index + slot, jnp.arange(cache.num_slots, dtype=jnp.int32)[None]
            # Slots before a row's start hold padding: segment 0, which no query of segment 1 sees.
            segments_bt = jnp.ones_like(tokens_bt)
            k_segments = (k_index >= cache.start_b[:, None]).astype(jnp.int32)
        whole = Visibility(q_index, k_index, segments_bt, k_segments, causal=self.cfg.causal)
        windows = {spec.window for spec in layer_specs(self.cfg)}
        visible = {window: dataclasses.replace(whole, window=window) for window in windows}
        counted_bt = jnp.ones(tokens_bt.shape, bool) if segments_bt is None else segments_bt > 0
        lengths_bt = None
        if self.cfg.rope_scaling.kind == "longrope" and cache is not None:
            lengths_bt = jnp.maximum(cache.length_b[:, None], positions_bt + 1)
        elif self.cfg.rope_scaling.kind == "longrope" and segments_bt is not None:
            lengths_bt = document_lengths(positions_bt, segments_bt)
        turns = rotations(self.cfg, positions_bt, lengths_bt)
        return BlockInputs(visible, turns, slot, counted_bt)


def _head(cfg: ModelConfig) -> Head | MLMHead | None:
    if cfg.head == "mlm":
        return MLMHead(cfg)
    return None if cfg.tie_embeddings else Head(cfg)


def _blocks(cfg: ModelConfig, specs: tuple, stack: int | None) -> nnx.Dict:
    return nnx.Dict({str(i): Block(cfg, spec, stack=stack) for i, spec in enumerate(specs)})


def _positions(tokens_bt: jax.Array, cache: Cache | None) -> jax.Array:
    counted = jnp.arange(tokens_bt.shape[1], dtype=jnp.int32)[None]
    if cache is None:
        return jnp.broadcast_to(counted, tokens_bt.shape)
    return jnp.maximum(counted + cache.slot - cache.start_b[:, None], 0)


def _in_order(blocks: nnx.Dict) -> list[tuple[str, Any]]:
    """Blocks by their number: as keys of a tree they are sorted as texts, "10" before "2"."""
    return sorted(blocks.items(), key=lambda item: int(item[0]))


def _in_layer_order(*stacks: jax.Array) -> jax.Array:
    """One array over layers from one over periods for each layer of a period."""
    return jnp.stack(stacks, axis=1).reshape(-1, *stacks[0].shape[1:])


@dataclass
class _Run:
    """The two drivers over blocks, one by one and scanned, with what they share."""

    inputs: BlockInputs
    dropout: Dropout | None
    runtime: Runtime
    outputs: list[jax.Array] | None
    routings: list[Routing]  # each with a leading axis over layers

    def each(
        self, blocks: nnx.Dict, x_btd: jax.Array, caches: dict, new: dict, part: str, first: int
    ) -> jax.Array:
        """Runs blocks one after the other, each with its own weights."""
        for name, block in _in_order(blocks):
            graphdef, params = nnx.split(block)
            layer_cache = caches.get(part, {}).get(name)
            run = self._checkpointed(partial(self._block, graphdef))
            x_btd, layer_cache, routing = run(params, x_btd, layer_cache, first + int(name))
            if routing is not None:
                self.routings.append(jax.tree.map(lambda x: x[None], routing))
            if layer_cache is not None:
                new.setdefault(part, {})[name] = layer_cache
            if self.outputs is not None:
                self.outputs.append(x_btd)
        return x_btd

    def scan(
        self, blocks: nnx.Dict, x_btd: jax.Array, caches: dict, new: dict, first: int
    ) -> jax.Array:
        """Runs the periods, each a row of the stacked weights, in one loop."""
        if not blocks:
            return x_btd
        split = {name: nnx.split(block) for name, block in _in_order(blocks)}
        params = {name: state for name, (_, state) in split.items()}
        count = jax.tree.leaves(params)[0].shape[0]
        period = len(split)
        rows = (params, caches.get("periods"), first + period * jnp.arange(count, dtype=jnp.int32))

        def step(x_btd: jax.Array, row: Any) -> tuple[jax.Array, Any]:
            weights, layer_caches, layer = row
            next_caches, outputs, routings = {}, [], []
            for name, (graphdef, _) in split.items():
                layer_cache = None if layer_caches is None else layer_caches[name]
                x_btd, next_caches[name], routing = self._block(
                    graphdef, weights[name], x_btd, layer_cache, layer + int(name)
                )
                outputs.append(x_btd)
                routings += [] if routing is None else [routing]
            return x_btd, (next_caches, outputs if self.outputs is not None else None, routings)

        x_btd, (next_caches, outputs, routings) = lax.scan(self._checkpointed(step), x_btd, rows)
        if routings:
            self.routings.append(jax.tree.map(_in_layer_order, *routings))
        if caches.get("periods") is not None:
            new["periods"] = next_caches
        if self.outputs is not None:
            self.outputs += [outputs[i % period][i // period] for i in range(period * count)]
        return x_btd

    def _block(
        self, graphdef: Any, params: Any, x_btd: jax.Array, cache: Any, layer: Any
    ) -> tuple[jax.Array, Any, Routing | None]:
        block = gathered(nnx.merge(graphdef, params), self.runtime)
        dropout = None if self.dropout is None else self.dropout.at(layer)
        return block(x_btd, self.inputs, cache, dropout, self.runtime)

    def routing(self) -> Routing | None:
        """What the routers did, of all layers."""
        if not self.routings:
            return None
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *self.routings)

    def _checkpointed(self, fn: Callable) -> Callable:
        manual = self.runtime.manual
        if self.runtime.remat == "none" and (manual is None or not manual.gathers):
            return fn
        return jax.checkpoint(fn, policy=REMAT_POLICIES[self.runtime.remat])
