"""The compiled programs of the engine: read a chunk of a prompt, seat a text in a row, draw.

Pure functions of arrays, over rows whose texts begin and end at different times. `runner.py`
compiles each once per shape, and the shapes are the engine's, never a request's.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_jax.engine.acceptance import accept
from llmasos_jax.generate.penalties import mask_logits
from llmasos_jax.generate.sampling import (
    Sampling,
    SamplingRows,
    Seen,
    draw,
    log_probs,
    rows_with,
    sampling_rows,
    seen_in,
)
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.models.transformer import Transformer
from llmasos_jax.nn.paged import PagedCache, Places
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.types import Tree

# Alternatives that are told of a drawn token, at most.
MOST_LOGPROBS = 20
Layers = Any  # `PagedCache.layers`


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Texts that are decoded together, B of them.

    Attributes:
      token_b: int32 [B], the newest token, which the next step reads.
      length_b: int32 [B], tokens in a row's pages: all but the newest.
      prompt_b: int32 [B], tokens of the prompt.
      num_new_b: int32 [B], tokens drawn.
      max_new_b: int32 [B], tokens to draw at most.
      wants_b: bool [B], whether log-probabilities are told.
      seen: tokens in the prompt, and how often each was drawn.
      sampling: how tokens are drawn.
    """

    token_b: jax.Array
    length_b: jax.Array
    prompt_b: jax.Array
    num_new_b: jax.Array
    max_new_b: jax.Array
    wants_b: jax.Array
    seen: Seen
    sampling: SamplingRows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drawn:
    """What one call drew: K columns, of which a row has as many as it was live for.

    Attributes:
      token_bk: int32 [B, K]; one that ends a text is there too, and one outside the vocabulary
        where the logits were not numbers.
      num_b: int32 [B], columns of a row that count.
      logprob_bk: float32 [B, K], nats under the model; 0 where nobody asked.
      top_bkn: int32 [B, K, N], the likeliest tokens, N at most MOST_LOGPROBS.
      top_logprob_bkn: float32, theirs.
    """

    token_bk: jax.Array
    num_b: jax.Array
    logprob_bk: jax.Array
    top_bkn: jax.Array
    top_logprob_bkn: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Allowed:
    """What may come next, where that is not everything.

    Attributes:
      bits_bw: uint32 [B, W]; bit i of word w is token 32 w + i.
      is_bound_b: bool [B], rows that these bits bind.
    """

    bits_bw: jax.Array
    is_bound_b: jax.Array


@dataclass(frozen=True)
class Programs:
    """What is compiled into the programs.

    Attributes:
      definition: the model.
      runtime: how it runs.
      num_ids: tokens that can be drawn are 0 to num_ids - 1.
      eos_ids: tokens that end a text.
      max_steps: K, columns of `Drawn`.
    """

    definition: ModelDef
    runtime: Runtime
    num_ids: int
    eos_ids: tuple[int, ...]
    max_steps: int

    def read(
        self,
        params: Tree,
        layers: Layers,
        tokens_1t: jax.Array,
        table_1m: jax.Array,
        first_1: jax.Array,
        length_1: jax.Array,
        column: jax.Array,
    ) -> tuple[Layers, jax.Array]:
        """Reads T tokens of a prompt into a page.

        Args:
          params: the weights.
          layers: the pages.
          tokens_1t: int32 [1, T]; behind the prompt's end anything.
          table_1m: int32 [1, M], the text's pages.
          first_1: int32 [1], tokens before these, whole pages of them.
          length_1: int32 [1], tokens of the whole prompt.
          column: int32 scalar, which of the T the logits are of.

        Returns:
          The pages, and logits float32 [1, num_ids].
        """
        places = Places(table_1m, first_1, is_aligned=True)
        model = self.definition.bind(params)
        cache = PagedCache(layers, places, length_1)
        hidden = model.hidden(tokens_1t, cache=cache, runtime=self.runtime)
        x_11d = lax.dynamic_slice_in_dim(hidden.x_btd, column, 1, axis=1)
        return _pages(hidden.cache), self._logits(model, x_11d)

    def empty_rows(self, size: int, sampling: SamplingRows) -> Rows:
        """Rows without texts."""
        seen = seen_in(jnp.full((size, 1), self.num_ids), self.num_ids)
        zeros = lambda: jnp.zeros(size, jnp.int32)
        return Rows(
            token_b=zeros(),
            length_b=zeros(),
            prompt_b=zeros(),
            num_new_b=zeros(),
            max_new_b=zeros(),
            wants_b=jnp.zeros(size, bool),
            seen=seen,
            sampling=sampling,
        )

    def begin(
        self,
        logits_1v: jax.Array,
        prompt_s: jax.Array,
        length: jax.Array,
        sampling: SamplingRows,
        allowed: Allowed,
    ) -> Drawn:
        """Draws a text's first token, of the logits of its prompt's last.

        Args:
          logits_1v: float32 [1, num_ids].
          prompt_s: int32 [S], the prompt, filled up outside the vocabulary.
          length: int32 scalar, tokens of the prompt.
          sampling: one row.
          allowed: one row.
        """
        seen = seen_in(prompt_s[None], self.num_ids)
        token_b = self._draw(logits_1v, seen, length[None], sampling, allowed)
        told = log_probs(logits_1v, token_b, self.num_told)
        return Drawn(token_b[:, None], jnp.ones(1, jnp.int32), *(x[:, None] for x in told))

    def seat(
        self,
        rows: Rows,
        row: jax.Array,
        prompt_s: jax.Array,
        drawn_s: jax.Array,
        numbers: jax.Array,
        wants: jax.Array,
        sampling: SamplingRows,
    ) -> Rows:
        """Puts a text into a row: one that was just begun, or one that was set aside.

        Args:
          rows: the others.
          row: int32 scalar, which.
          prompt_s: int32 [S], the prompt, filled up outside the vocabulary.
          drawn_s: int32 [S], the tokens drawn, likewise.
          numbers: int32 [5]: newest token, tokens in pages, tokens of the prompt, tokens drawn,
            tokens to draw at most.
          wants: bool scalar, whether log-probabilities are told.
          sampling: one row.
        """
        seen = seen_in(prompt_s[None], self.num_ids)
        count_v = seen.count_bv[0].at[drawn_s].add(1, mode="drop")
        put = lambda array, value: array.at[row].set(value)
        return Rows(
            token_b=put(rows.token_b, numbers[0]),
            length_b=put(rows.length_b, numbers[1]),
            prompt_b=put(rows.prompt_b, numbers[2]),
            num_new_b=put(rows.num_new_b, numbers[3]),
            max_new_b=put(rows.max_new_b, numbers[4]),
            wants_b=put(rows.wants_b, wants),
            seen=Seen(
                put(rows.seen.prompt_bv, seen.prompt_bv[0]), put(rows.seen.count_bv, count_v)
            ),
            sampling=rows_with(rows.sampling, row, sampling),
        )

    def step(
        self,
        params: Tree,
        layers: Layers,
        rows: Rows,
        table_bm: jax.Array,
        live_b: jax.Array,
        allowed: Allowed,
        num_steps: jax.Array,
    ) -> tuple[Layers, Rows, Drawn]:
        """Draws at most `num_steps` tokens of each live row.

        Args:
          params: the weights.
          layers: the pages.
          rows: the texts.
          table_bm: int32 [B, M], their pages, with room for what is drawn.
          live_b: bool [B], rows that have a text.
          allowed: what may come next; binds one step only.
          num_steps: int32 scalar, at most `max_steps`; fewer are made if all texts end.
        """
        model = self.definition.bind(params)
        size = live_b.shape[0]
        # A row without a text asks for nothing, whatever the last one there asked for.
        rows = dataclasses.replace(
            rows, sampling=_asleep(rows.sampling, live_b), wants_b=rows.wants_b & live_b
        )
        drawn = Drawn(
            jnp.zeros((size, self.max_steps), jnp.int32),
            jnp.zeros(size, jnp.int32),
            jnp.zeros((size, self.max_steps)),
            jnp.zeros((size, self.max_steps, self.num_told), jnp.int32),
            jnp.zeros((size, self.max_steps, self.num_told)),
        )

        def goes_on(carry: tuple) -> jax.Array:
            index, live_b, *_ = carry
            return (index < num_steps) & jnp.any(live_b)

        def step(carry: tuple) -> tuple:
            index, live_b, layers, rows, drawn = carry
            cache = PagedCache(layers, Places(table_bm, rows.length_b), rows.prompt_b)
            hidden = model.hidden(rows.token_b[:, None], cache=cache, runtime=self.runtime)
            logits_bv = self._logits(model, hidden.x_btd)
            # The token read now stands at `length_b`, the one that is drawn behind it.
            token_b = self._draw(logits_bv, rows.seen, rows.length_b + 1, rows.sampling, allowed)
            drawn = self._note(drawn, index, live_b, token_b, logits_bv, rows.wants_b)
            is_end_b = token_b >= self.num_ids
            for eos in self.eos_ids:
                is_end_b |= token_b == eos
            num_new_b = rows.num_new_b + (live_b & ~is_end_b)
            counted_b = jnp.where(live_b, token_b, self.num_ids)
            rows = dataclasses.replace(
                rows,
                token_b=token_b,
                length_b=rows.length_b + live_b,
                num_new_b=num_new_b,
                seen=rows.seen.add(counted_b),
            )
            live_b = live_b & ~is_end_b & (num_new_b < rows.max_new_b)
            return index + 1, live_b, _pages(hidden.cache), rows, drawn

        start = (jnp.int32(0), live_b, layers, rows, drawn)
        _, _, layers, rows, drawn = lax.while_loop(goes_on, step, start)
        return layers, rows, drawn

    def check(
        self,
        params: Tree,
        layers: Layers,
        rows: Rows,
        table_bm: jax.Array,
        proposed_bp: jax.Array,
        num_proposed_b: jax.Array,
    ) -> tuple[Layers, Rows, Drawn]:
        """Reads proposals behind the newest tokens, and draws up to the first that is wrong.

        Args:
          params: the weights.
          layers: the pages.
          rows: the texts, all of them live.
          table_bm: int32 [B, M], their pages, with room for the proposals.
          proposed_bp: int32 [B, P].
          num_proposed_b: int32 [B], how many of them there are.
        """
        model = self.definition.bind(params)
        tokens_bt = jnp.concatenate([rows.token_b[:, None], proposed_bp], axis=1)
        cache = PagedCache(layers, Places(table_bm, rows.length_b), rows.prompt_b)
        hidden = model.hidden(tokens_bt, cache=cache, runtime=self.runtime)
        logits_btv = model.logits(hidden.x_btd, self.runtime)[..., : self.num_ids]
        places = (rows.seen, rows.length_b + 1, rows.sampling)
        accepted = accept(logits_btv, proposed_bp, num_proposed_b, *places)
        num_b = accepted.num_b + 1
        told = jax.vmap(self._told, in_axes=(1, 1, None), out_axes=1)(
            logits_btv, accepted.token_bt, rows.wants_b
        )
        rows = dataclasses.replace(
            rows,
            token_b=accepted.next_b,
            length_b=rows.length_b + num_b,
            num_new_b=rows.num_new_b + num_b,
            seen=accepted.seen,
        )
        return _pages(hidden.cache), rows, Drawn(accepted.token_bt, num_b, *told)

    def _told(
        self, logits_bv: jax.Array, token_b: jax.Array, wants_b: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Log-probabilities as `Drawn` has them of one column; zeros where nobody asks."""
        size, num = token_b.shape[0], self.num_told
        return lax.cond(
            jnp.any(wants_b),
            lambda: log_probs(logits_bv, token_b, num),
            lambda: (
                jnp.zeros(size),
                jnp.zeros((size, num), jnp.int32),
                jnp.zeros((size, num)),
            ),
        )

    @property
    def num_told(self) -> int:
        """Alternatives in `Drawn`."""
        return min(MOST_LOGPROBS, self.num_ids)

    def _note(
        self,
        drawn: Drawn,
        index: jax.Array,
        live_b: jax.Array,
        token_b: jax.Array,
        logits_bv: jax.Array,
        wants_b: jax.Array,
    ) -> Drawn:
        """Writes one column."""
        told = self._told(logits_bv, token_b, wants_b & live_b)
        columns = zip(
            (drawn.token_bk, drawn.logprob_bk, drawn.top_bkn, drawn.top_logprob_bkn),
            (token_b, *told),
            strict=True,
        )
        token_bk, *told_bk = (
            lax.dynamic_update_index_in_dim(whole, column, index, 1) for whole, column in columns
        )
        return Drawn(token_bk, drawn.num_b + live_b, *told_bk)

    def _draw(
        self,
        logits_bv: jax.Array,
        seen: Seen,
        position_b: jax.Array,
        sampling: SamplingRows,
        allowed: Allowed,
    ) -> jax.Array:
        logits_bv = lax.cond(
            jnp.any(allowed.is_bound_b),
            lambda: _bind(logits_bv, allowed),
            lambda: logits_bv,
        )
        return draw(logits_bv, seen, position_b, sampling)

    def _logits(self, model: Transformer, x_b1d: jax.Array) -> jax.Array:
        logits_bv = model.logits(x_b1d, self.runtime)[:, 0]
        return logits_bv if logits_bv.shape[1] == self.num_ids else logits_bv[:, : self.num_ids]


def num_words(num_ids: int) -> int:
    """Words of 32 bits that hold a bit for each token."""
    return -(-num_ids // 32)


def take_page(layers: Layers, page: jax.Array) -> Layers:
    """A copy of one page of all layers."""
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, page, keepdims=False), layers)


def put_page(layers: Layers, page: jax.Array, copy: Layers) -> Layers:
    """Writes such a copy into a page."""
    return jax.tree.map(
        lambda x, one: lax.dynamic_update_index_in_dim(x, one, page, 0), layers, copy
    )


def _bind(logits_bv: jax.Array, allowed: Allowed) -> jax.Array:
    """-inf where a bound row may not go."""
    masked_bv = mask_logits(logits_bv, allowed.bits_bw)
    return jnp.where(allowed.is_bound_b[:, None], masked_bv, logits_bv)


def _asleep(sampling: SamplingRows, live_b: jax.Array) -> SamplingRows:
    """Greedy and nothing else in rows without a text, so that they switch no option on."""
    off = sampling_rows([Sampling(temperature=0.0)] * live_b.shape[0])

    def chosen(name: str) -> jax.Array:
        own, plain = getattr(sampling, name), getattr(off, name)
        return jnp.where(live_b.reshape(-1, *[1] * (own.ndim - 1)), own, plain)

    names = [field.name for field in dataclasses.fields(sampling) if field.name != "key_b"]
    return dataclasses.replace(sampling, **{name: chosen(name) for name in names})


def _pages(cache: Any) -> Layers:
    if not isinstance(cache, PagedCache):
        raise ValueError("the model was given pages and returned none")
    return cache.layers
