"""The Transformer: embedding, blocks in a layout, final norm, output layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.models.layout import Layout, encoder_config
from llmasos_jax.models.stack import Hidden, Stack
from llmasos_jax.nn.block import CrossInputs
from llmasos_jax.nn.cache import Cache, CrossCache
from llmasos_jax.nn.dropout import Dropout
from llmasos_jax.nn.embed import Embed, Head, attend_table
from llmasos_jax.nn.heads import Affine, MLMHead, Scores, pool
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.paged import PagedCache
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.weight import gathered


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Encoded:
    """What an encoder gives its decoder.

    Attributes:
      x_bsd: after the encoder's final norm, [B, S, D].
      segment_ids_bs: int32 [B, S]; a decoder's token sees the states of its own segment, never
        those of segment 0, which is padding. Where `encode` was given none, 1 everywhere. Each text
        of the decoder needs one here: a token that sees no state gets an even mean of all of the
        row's, padding too, and its values say nothing.
      layers: as in `Hidden`, if asked for.
    """

    x_bsd: jax.Array
    segment_ids_bs: jax.Array
    layers: tuple[jax.Array, ...] | None = None


class Transformer(Stack):
    """A decoder or encoder with embedding and output layer, and the encoder of an encoder-decoder.

    The layout says which layers scan.
    """

    def __init__(self, cfg: ModelConfig, layout: Layout) -> None:
        super().__init__(cfg, layout)
        self.embed = Embed(cfg)
        encoder = layout.encoder
        self.encoder = None if encoder is None else Stack(encoder_config(cfg), encoder)
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
        prefix_bt: jax.Array | None = None,
        branches_bt: jax.Array | None = None,
        encoded: Encoded | None = None,
        cache: Cache | PagedCache | None = None,
        runtime: Runtime,
        dropout: Dropout | None = None,
        all_layers: bool = False,
    ) -> Hidden:
        """Runs the blocks; of an encoder-decoder, those of the decoder.

        Args:
          tokens_bt: int32 [B, T].
          positions_bt: int32 [B, T]; default counts from 0, or with a cache from each row's start.
          segment_ids_bt: int32 [B, T]; tokens attend within their segment, 0 is padding. Not with a
            cache.
          token_types_bt: int32 [B, T], for a model that has them; None is type 0 everywhere.
          prefix_bt: [B, T], not 0 for tokens that every token of their segment sees, for a model
            with `prefix_lm`; None has none. Not with a cache: there the tokens of one call and
            those before them are the prefix.
          branches_bt: int32 [B, T], for several ways in which a segment goes on, each in a run of
            its own: 0 for what they have in common, which comes first, then 1, 2, ... A token sees
            branch 0 and its own; what is before it, and how far, `positions_bt` says. None has
            none. Not with a cache.
          encoded: what `encode` gave, for an encoder-decoder; not needed where `cache.cross` is.
          cache: keys and values so far; T more are written.
          runtime: how to run.
          dropout: noise of this step; None for none.
          all_layers: whether to return the residual stream after each block.
        """
        if token_types_bt is not None and not self.cfg.token_types:
            raise ValueError("token_types_bt was given to a model without token types")
        if prefix_bt is not None and (not self.cfg.prefix_lm or cache is not None):
            raise ValueError("prefix_bt is for models with prefix_lm=True, without a cache")
        if branches_bt is not None and (positions_bt is None or cache is not None):
            raise ValueError("branches_bt needs positions_bt, and is not for a cache")
        cross = self.cross_inputs(tokens_bt, segment_ids_bt, encoded, cache)
        if positions_bt is None:
            positions_bt = _positions(tokens_bt, cache, runtime)
        inputs = self.inputs(
            positions_bt,
            segment_ids_bt,
            runtime,
            cache=cache,
            prefix_bt=prefix_bt,
            branches_bt=branches_bt,
            cross=cross,
        )
        x_btd = self._embedded(tokens_bt, positions_bt, token_types_bt, runtime)
        x_btd = x_btd if dropout is None else dropout.at(self.cfg.num_layers)(x_btd)
        return self.run(
            x_btd, inputs, cache=cache, dropout=dropout, runtime=runtime, all_layers=all_layers
        )

    def encode(
        self,
        tokens_bs: jax.Array,
        *,
        positions_bs: jax.Array | None = None,
        segment_ids_bs: jax.Array | None = None,
        runtime: Runtime,
        dropout: Dropout | None = None,
        all_layers: bool = False,
    ) -> Encoded:
        """Runs the encoder of an encoder-decoder; arguments as in `hidden`.

        Args:
          tokens_bs: int32 [B, S], what the encoder reads.
          positions_bs: int32 [B, S]; default counts from 0.
          segment_ids_bs: int32 [B, S]; tokens attend within their segment, 0 is padding.
          runtime: how to run.
          dropout: noise of this step; None for none.
          all_layers: whether to return the residual stream after each block.

        Raises:
          ConfigError: the model has no encoder.
        """
        encoder = self._encoder()
        if dropout is not None:
            # A number that no place in the decoder has, so that the two draw other noise.
            dropout = dropout.at(self.cfg.num_layers + 1)
        if positions_bs is None:
            positions_bs = _positions(tokens_bs, None, runtime)
        inputs = encoder.inputs(positions_bs, segment_ids_bs, runtime)
        with jax.named_scope("encoder"):
            x_bsd = self._embedded(tokens_bs, positions_bs, None, runtime)
            x_bsd = x_bsd if dropout is None else dropout.at(encoder.cfg.num_layers)(x_bsd)
            hidden = encoder.run(
                x_bsd, inputs, dropout=dropout, runtime=runtime, all_layers=all_layers
            )
        if segment_ids_bs is None:
            segment_ids_bs = jnp.ones_like(tokens_bs)
        return Encoded(hidden.x_btd, segment_ids_bs, hidden.layers)

    def cross_cache(self, encoded: Encoded, runtime: Runtime, dtype: Any = None) -> CrossCache:
        """What decoding keeps of the encoder's states, for `Cache.cross`.

        Args:
          encoded: of one text in each row, its tokens of segment 1.
          runtime: how to run.
          dtype: of keys and values; None is that of activations.

        Raises:
          ConfigError: the model has no encoder.
        """
        self._encoder()
        dtype = runtime.act_dtype if dtype is None else dtype
        layers = self.cross_layers(encoded.x_bsd, runtime, dtype)
        return CrossCache(layers, encoded.segment_ids_bs)

    def logits(self, x_btd: jax.Array, runtime: Runtime) -> jax.Array:
        """Scores of the next token, or of a masked one, from the last hidden state.

        Args:
          x_btd: [B, T, D]; of a masked model only the places that are wanted, [B, M, D].
          runtime: how to run.

        Returns:
          float32 [B, T, V].
        """
        score, weights = self.output_layer(runtime)
        return score(weights, x_btd)

    def output_layer(self, runtime: Runtime) -> tuple[Callable[[Any, jax.Array], jax.Array], Any]:
        """The output layer as a pure function, for losses that score a few tokens at a time.

        Args:
          runtime: how to run.

        Returns:
          `score(weights, x_btd)`, which gives `logits` of [B, T, D] and holds no array, and its
          `weights`, gathered: what is shared with the embedding, and what the head has.
        """
        if self.cfg.head is None:
            raise ConfigError("model.head=None: this model has no output layer, so no logits")
        with jax.named_scope("logits"):
            tied = isinstance(self.head, MLMHead | None) and self.cfg.tie_embeddings
            table_vd = gathered(self.embed, runtime).table[...] if tied else None
            if self.head is None:
                graphdef, state = None, None
            else:
                graphdef, state = nnx.split(gathered(self.head, runtime))
        return partial(_score, self.cfg, graphdef, runtime), (table_vd, state)

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

    def _encoder(self) -> Stack:
        if self.encoder is None:
            raise ConfigError("model.encoder.num_layers=0: this model has no encoder")
        return self.encoder

    def _embedded(
        self,
        tokens_bt: jax.Array,
        positions_bt: jax.Array,
        token_types_bt: jax.Array | None,
        runtime: Runtime,
    ) -> jax.Array:
        with jax.named_scope("embed"):
            return gathered(self.embed, runtime)(tokens_bt, positions_bt, token_types_bt, runtime)

    def cross_inputs(
        self,
        tokens_bt: jax.Array,
        segments_bt: jax.Array | None,
        encoded: Encoded | None,
        cache: Cache | PagedCache | None,
    ) -> CrossInputs | None:
        """What a decoder's blocks read of the encoder; arguments as in `hidden`."""
        kept = None if cache is None else cache.cross
        if self.encoder is None:
            if encoded is not None or kept is not None:
                raise ValueError("encoded states were given to a model without an encoder")
            return None
        if encoded is not None and kept is None:
            x_bsd, k_segments = encoded.x_bsd, encoded.segment_ids_bs
        elif kept is not None and encoded is None:
            x_bsd, k_segments = None, kept.segment_ids_bs
        else:
            raise ValueError("a decoder with an encoder needs either encoded= or cache.cross")
        q_segments = jnp.ones_like(tokens_bt) if segments_bt is None else segments_bt
        q_index, k_index = (
            jnp.arange(x.shape[1], dtype=jnp.int32)[None] for x in (q_segments, k_segments)
        )
        visible = Visibility(q_index, k_index, q_segments, k_segments, causal=False)
        return CrossInputs(x_bsd, visible)


def _score(
    cfg: ModelConfig, graphdef: Any, runtime: Runtime, weights: Any, x_btd: jax.Array
) -> jax.Array:
    """`Transformer.logits` with the output layer's weights as an argument."""
    with jax.named_scope("logits"):
        table_vd, state = weights
        if graphdef is None:
            logits_btv = attend_table(x_btd, table_vd, runtime)
        else:
            head = nnx.merge(graphdef, state)
            more = (table_vd,) if isinstance(head, MLMHead) else ()
            logits_btv = head(x_btd, *more, runtime=runtime)
        if cfg.logit_scale != 1.0:
            logits_btv = logits_btv * cfg.logit_scale
        if cfg.logit_soft_cap is not None:
            logits_btv = jnp.tanh(logits_btv / cfg.logit_soft_cap) * cfg.logit_soft_cap
        return runtime.place(logits_btv, None, None, "vocab")


def _head(cfg: ModelConfig) -> Head | MLMHead | None:
    if cfg.head == "mlm":
        return MLMHead(cfg)
    return None if cfg.tie_embeddings else Head(cfg)


def _positions(
    tokens_bt: jax.Array, cache: Cache | PagedCache | None, runtime: Runtime
) -> jax.Array:
    counted = jnp.arange(tokens_bt.shape[1], dtype=jnp.int32)[None]
    if cache is None:
        return jnp.broadcast_to(counted, tokens_bt.shape) + runtime.first_token(counted.shape[1])
    if isinstance(cache, PagedCache):
        return cache.places.positions(tokens_bt.shape[1])
    return jnp.maximum(counted + cache.slot - cache.start_b[:, None], 0)
