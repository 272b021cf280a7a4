"""Keys and values in pages that rows of a batch take and give back one by one.

A pool has P pages of C tokens for each layer. A row's table names the pages of its tokens in their
order; pages that hold the same tokens may stand in several tables (Kwon et al., 2023, arXiv
2309.06180)::

    tokens of row 0   a b c d | e f . .      table 0   5 2 0 0
    tokens of row 1   a b c d | g . . .      table 1   5 7 0 0

Page 0 is nobody's: what is written beyond a row's pages goes there.

Attention goes over a row's own pages one by one, with the running maximum and sum of Milakov and
Gimelshein, 2018, arXiv 1805.02867. So a row's result depends neither on its neighbours nor on the
sizes of tables and pool, in any bit, and costs what its own length costs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.scores import MASKED


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Places:
    """Where the tokens of one call are.

    Attributes:
      table_bm: int32 [B, M], each row's pages; 0 for none.
      first_b: int32 [B], tokens of each row that are in its pages already: the position of the
        first new one.
      is_aligned: whether each row's new tokens begin with a page and fit into it: they are then
        written as one block.
    """

    table_bm: jax.Array
    first_b: jax.Array
    is_aligned: bool = field(metadata={"static": True}, default=False)

    def positions(self, num_tokens: int) -> jax.Array:
        """Of the new tokens, int32 [B, T]."""
        return self.first_b[:, None] + jnp.arange(num_tokens, dtype=jnp.int32)[None]

    def slots(self, num_tokens: int, page_size: int) -> tuple[jax.Array, jax.Array]:
        """Page and slot of the new tokens, int32 [B, T]; page 0 for what no page is there for."""
        positions_bt = self.positions(num_tokens)
        page_bt = jnp.take_along_axis(
            self.table_bm, positions_bt // page_size, axis=1, mode="fill", fill_value=0
        )
        return page_bt, positions_bt % page_size


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PagedLayer:
    """Keys and values of one layer, as attention's two products read them.

    Attributes:
      k_pkhc: keys [P, K, H, C].
      v_pkch: values [P, K, C, H]; their H may be another than the keys' (latent attention).
    """

    k_pkhc: jax.Array
    v_pkch: jax.Array

    @classmethod
    def empty(
        cls, num_pages: int, page_size: int, heads: int, widths: tuple[int, int], dtype: Any
    ) -> PagedLayer:
        """Pages of zeros; `widths` are those of a key and of a value."""
        return cls(
            jnp.zeros((num_pages, heads, widths[0], page_size), dtype),
            jnp.zeros((num_pages, heads, page_size, widths[1]), dtype),
        )

    def write(self, k_btkh: jax.Array, v_btkz: jax.Array, places: Places) -> PagedLayer:
        """With T more tokens of each row in its pages."""
        num_tokens, page_size = k_btkh.shape[1], self.k_pkhc.shape[-1]
        dtype = self.k_pkhc.dtype
        if places.is_aligned:
            return self._write_block(k_btkh.astype(dtype), v_btkz.astype(dtype), places)
        page_bt, slot_bt = places.slots(num_tokens, page_size)
        return PagedLayer(
            self.k_pkhc.at[page_bt, :, :, slot_bt].set(k_btkh.astype(dtype)),
            self.v_pkch.at[page_bt, :, slot_bt].set(v_btkz.astype(dtype)),
        )

    def _write_block(self, k_btkh: jax.Array, v_btkz: jax.Array, places: Places) -> PagedLayer:
        k_bkht, v_bktz = k_btkh.transpose(0, 2, 3, 1), v_btkz.transpose(0, 2, 1, 3)
        k_pkhc, v_pkch = self.k_pkhc, self.v_pkch
        for row in range(k_bkht.shape[0]):
            at = places.table_bm[row, places.first_b[row] // k_pkhc.shape[-1]]
            start = (at, *[jnp.zeros_like(at)] * 3)
            k_pkhc = lax.dynamic_update_slice(k_pkhc, k_bkht[row : row + 1], start)
            v_pkch = lax.dynamic_update_slice(v_pkch, v_bktz[row : row + 1], start)
        return PagedLayer(k_pkhc, v_pkch)

    def attend(
        self,
        q_btnh: jax.Array,
        places: Places,
        *,
        window: int | None,
        scale: float,
        soft_cap: float | None,
        slopes: np.ndarray | None,
        runtime: Runtime,
    ) -> jax.Array:
        """Causal attention of T new tokens of each row to all in its pages, their own included.

        Args:
          q_btnh: queries [B, T, N, H].
          places: of the new tokens, which are written already.
          window: how many places back a query sees, its own included; None sees all.
          scale: multiplies the scores.
          soft_cap: c in c tanh(scores / c), after the scale.
          slopes: ALiBi's slope of each query head, float32 [N]; None for no such bias.
          runtime: a CPU takes row after row, other devices all rows at once.

        Returns:
          [B, T, N, H of the values] in `q_btnh`'s dtype; the softmax is float32.
        """
        b, t, n, h = q_btnh.shape
        k = self.k_pkhc.shape[1]
        q_bkmh = q_btnh.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4).reshape(b, k, -1, h)
        slopes_km = None
        if slopes is not None:
            slopes_km = jnp.repeat(jnp.asarray(slopes, jnp.float32).reshape(k, n // k), t, axis=1)
        options = {"window": window, "scale": scale, "soft_cap": soft_cap, "slopes_km": slopes_km}
        row = partial(_attend_row, self, num_tokens=t, **options)
        rows = (q_bkmh, places.table_bm, places.first_b)
        if runtime.platform == "cpu":
            out_bkmz = lax.map(lambda each: row(*each), rows)
        else:
            out_bkmz = jax.vmap(row)(*rows)
        out_bkgtz = out_bkmz.reshape(b, k, n // k, t, -1)
        return out_bkgtz.transpose(0, 3, 1, 2, 4).reshape(b, t, n, -1).astype(q_btnh.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PagedCache:
    """The pages of a model and the rows of one call.

    Attributes:
      layers: a tree like the model's layers (`prefix`, `periods`, `suffix`) of PagedLayer or, on
        TPU, of `nn.ragged.RaggedLayer`.
      places: of the call's tokens.
      length_b: int32 [B], as in `nn.cache.Cache`.
    """

    layers: dict[str, dict[str, Any]]
    places: Places
    length_b: jax.Array

    # A decoder alone: what has an encoder does not run on pages.
    cross: None = field(metadata={"static": True}, default=None)


def _attend_row(
    layer: PagedLayer,
    q_kmh: jax.Array,
    table_m: jax.Array,
    first: jax.Array,
    *,
    num_tokens: int,
    window: int | None,
    scale: float,
    soft_cap: float | None,
    slopes_km: jax.Array | None,
) -> jax.Array:
    """One row: queries [K, G T, H] over its pages, [K, G T, H], float32."""
    k, m, _ = q_kmh.shape
    page, width = layer.v_pkch.shape[2:]
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    at_m = first + jnp.tile(jnp.arange(num_tokens, dtype=jnp.int32), m // num_tokens)

    def add_page(index: jax.Array, sums: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        highest_km, total_km, out_kmz = sums
        number = table_m[index]
        k_khc, v_kcz = (
            lax.dynamic_index_in_dim(x, number, keepdims=False).astype(q_kmh.dtype)
            for x in (layer.k_pkhc, layer.v_pkch)
        )
        scores_kmc = product("kmh,khc->kmc", q_kmh, k_khc) * scale
        if soft_cap is not None:
            scores_kmc = jnp.tanh(scores_kmc / soft_cap) * soft_cap
        back_mc = at_m[:, None] - (index * page + jnp.arange(page, dtype=jnp.int32))[None]
        if slopes_km is not None:
            scores_kmc = scores_kmc - slopes_km[:, :, None] * back_mc[None].astype(jnp.float32)
        seen_mc = back_mc >= 0 if window is None else (back_mc >= 0) & (back_mc < window)
        scores_kmc = jnp.where(seen_mc[None], scores_kmc, MASKED)
        next_km = jnp.maximum(highest_km, jnp.max(scores_kmc, axis=2))
        weights_kmc = jnp.exp(scores_kmc - next_km[:, :, None]) * seen_mc[None]
        shrink_km = jnp.exp(highest_km - next_km)
        more_kmz = product("kmc,kcz->kmz", weights_kmc.astype(v_kcz.dtype), v_kcz)
        return (
            next_km,
            total_km * shrink_km + jnp.sum(weights_kmc, axis=2),
            out_kmz * shrink_km[:, :, None] + more_kmz,
        )

    start = jnp.int32(0)
    if window is not None:
        start = jnp.maximum(first - window + 1, 0) // page
    end = jnp.minimum((first + num_tokens - 1) // page + 1, table_m.shape[0])
    sums = (jnp.full((k, m), MASKED), jnp.zeros((k, m)), jnp.zeros((k, m, width)))
    _, total_km, out_kmz = lax.fori_loop(start, end, add_page, sums)
    return out_kmz / total_km[:, :, None]
