"""The compiled programs of generation: prefill, a chunk of the prompt at a time, and decode.

Of an encoder-decoder the encoder reads the prompt first, once: what the decoder attends to is kept
in the cache, and its own prompt is the one token that begins every text.

All are pure functions of arrays; `session.py` compiles them once per shape. The decode loop runs
on the device until every row is done or a bound is reached that is an argument, not a constant: so
streaming runs the same program as one long call, and gives the same bits.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_jax.generate.sampling import SamplingRows, Seen, draw, seen_in
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.models.transformer import Transformer
from llmasos_jax.nn.cache import Cache, CrossCache
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.types import Tree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Ends:
    """Where texts end.

    Attributes:
      max_new_b: int32 [B], tokens to draw at most.
      eos_ids: int32 [E], tokens that end a text and do not belong to it; may be empty.
    """

    max_new_b: jax.Array
    eos_ids: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """A batch on its way.

    Attributes:
      cache: keys and values of all tokens but the newest.
      token_b: int32 [B], the newest token, which the next step reads.
      tokens_bs: int32 [B, S], the tokens drawn; row b has `num_new_b[b]` of them.
      num_new_b: int32 [B].
      is_done_b: bool [B].
      seen: tokens in the prompts, and how often each was drawn.
      num_drawn: int32 scalar, draws so far, which are the columns of `tokens_bs` in use.
    """

    cache: Cache
    token_b: jax.Array
    tokens_bs: jax.Array
    num_new_b: jax.Array
    is_done_b: jax.Array
    seen: Seen
    num_drawn: jax.Array


@dataclass(frozen=True)
class Programs:
    """What is compiled into the programs.

    Attributes:
      definition: the model.
      runtime: how it runs.
      num_ids: tokens that can be drawn are 0 to num_ids - 1 (the tokenizer's; the model's
        vocabulary may be larger).
    """

    definition: ModelDef
    runtime: Runtime
    num_ids: int

    def encode(self, params: Tree, source_bs: jax.Array, segment_ids_bs: jax.Array) -> CrossCache:
        """Reads the prompts of an encoder-decoder, padded on the right.

        Args:
          params: the weights.
          source_bs: int32 [B, S].
          segment_ids_bs: int32 [B, S], 1 for tokens, 0 for padding.
        """
        model = self.definition.bind(params)
        encoded = model.encode(source_bs, segment_ids_bs=segment_ids_bs, runtime=self.runtime)
        return model.cross_cache(encoded, self.runtime)

    def prefill(
        self, params: Tree, cache: Cache, tokens_bt: jax.Array, column: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """Reads T more tokens of the prompts.

        Args:
          params: the weights.
          cache: T more slots of it are written.
          tokens_bt: int32 [B, T].
          column: int32 scalar, which of the T the logits are of.

        Returns:
          Logits float32 [B, num_ids] and the cache.
        """
        model = self.definition.bind(params)
        hidden = model.hidden(tokens_bt, cache=cache, runtime=self.runtime)
        x_b1d = lax.dynamic_slice_in_dim(hidden.x_btd, column, 1, axis=1)
        return self._logits(model, x_b1d), _present(hidden.cache)

    def begin(
        self,
        cache: Cache,
        logits_bv: jax.Array,
        prompt_bp: jax.Array,
        num_prompt_b: jax.Array,
        rows: SamplingRows,
        ends: Ends,
    ) -> State:
        """Draws the first token of each row.

        Args:
          cache: after the prompts.
          logits_bv: of the prompts' last tokens.
          prompt_bp: int32 [B, P]; what is no token of the prompt has an id outside the vocabulary.
          num_prompt_b: int32 [B], lengths of the prompts.
          rows: the sampling options.
          ends: where texts end.
        """
        b, v = logits_bv.shape
        s = cache.num_slots
        seen = seen_in(prompt_bp, v)
        state = State(
            cache=cache,
            token_b=jnp.zeros((b,), jnp.int32),
            tokens_bs=jnp.zeros((b, s), jnp.int32),
            num_new_b=jnp.zeros((b,), jnp.int32),
            is_done_b=ends.max_new_b <= 0,
            seen=seen,
            num_drawn=jnp.int32(0),
        )
        return _add(state, draw(logits_bv, seen, num_prompt_b, rows), ends, v)

    def decode(
        self,
        params: Tree,
        state: State,
        num_prompt_b: jax.Array,
        rows: SamplingRows,
        ends: Ends,
        num_steps: jax.Array,
    ) -> State:
        """Draws at most `num_steps` more tokens of each row, fewer if all rows are done."""
        model = self.definition.bind(params)
        stop_at = state.num_drawn + num_steps

        def goes_on(state: State) -> jax.Array:
            return (state.num_drawn < stop_at) & ~jnp.all(state.is_done_b)

        def step(state: State) -> State:
            tokens_b1 = state.token_b[:, None]
            hidden = model.hidden(tokens_b1, cache=state.cache, runtime=self.runtime)
            logits_bv = self._logits(model, hidden.x_btd)
            position_b = num_prompt_b + state.num_drawn
            token_b = draw(logits_bv, state.seen, position_b, rows)
            state = dataclasses.replace(state, cache=_present(hidden.cache))
            return _add(state, token_b, ends, self.num_ids)

        return lax.while_loop(goes_on, step, state)

    def _logits(self, model: Transformer, x_b1d: jax.Array) -> jax.Array:
        logits_bv = model.logits(x_b1d, self.runtime)[:, 0]
        return logits_bv if logits_bv.shape[1] == self.num_ids else logits_bv[:, : self.num_ids]


def _present(cache: object) -> Cache:
    if not isinstance(cache, Cache):
        raise ValueError("the model was given a cache and returned none")
    return cache


def _add(state: State, token_b: jax.Array, ends: Ends, num_ids: int) -> State:
    """Takes one drawn token per row into the state."""
    is_eos_b = jnp.any(token_b[:, None] == ends.eos_ids[None, :], axis=1)
    num_new_b = state.num_new_b + (~state.is_done_b & ~is_eos_b)
    # An id outside the vocabulary says that the logits were not numbers: the session reports it.
    is_done_b = state.is_done_b | is_eos_b | (num_new_b >= ends.max_new_b) | (token_b >= num_ids)
    column = (jnp.int32(0), state.num_drawn)
    return State(
        cache=state.cache,
        token_b=token_b,
        tokens_bs=lax.dynamic_update_slice(state.tokens_bs, token_b[:, None], column),
        num_new_b=num_new_b,
        is_done_b=is_done_b,
        seen=state.seen.add(token_b),
        num_drawn=state.num_drawn + 1,
    )
