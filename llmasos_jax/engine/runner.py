"""What the engine holds on its devices, and the programs that work on it.

Everything is compiled by `warm_up`, for shapes that are the engine's own: for each batch size a
step and a seat, for each length of a chunk a read, and three more. No request compiles anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from llmasos_jax.engine.options import Sizes
from llmasos_jax.engine.programs import Allowed, Drawn, Programs, num_words, put_page, take_page
from llmasos_jax.generate.sampling import Sampling, sampling_rows
from llmasos_jax.generate.weights import Weights
from llmasos_jax.models.definition import empty_pages
from llmasos_jax.nn.paged import PagedLayer
from llmasos_jax.nn.ragged import RaggedLayer

IDLE = Sampling(temperature=0.0)


@dataclass(frozen=True)
class Seat:
    """What a row has to know of a text.

    Attributes:
      prompt: its ids.
      drawn: ids drawn so far, at least one; the last is not in the pages yet.
      max_new: tokens to draw at most.
      sampling: how.
      wants: whether log-probabilities are told.
    """

    prompt: Sequence[int]
    drawn: Sequence[int]
    max_new: int
    sampling: Sampling
    wants: bool


class Runner:
    """Pages and rows on the devices. Not for several threads.

    Args:
      weights: of one model; a batch of one row may have others (`alone`), laid out for it.
      alone: the weights for a batch of one row.
      num_ids: tokens that can be drawn are 0 to num_ids - 1.
      eos_ids: tokens that end a text.
      sizes: of everything.

    Attributes:
      num_compiled: programs compiled so far.
    """

    def __init__(
        self,
        weights: Weights,
        alone: Weights,
        num_ids: int,
        eos_ids: Sequence[int],
        sizes: Sizes,
    ) -> None:
        self.sizes = sizes
        self.num_ids = num_ids
        self.num_compiled = 0
        self._weights = {size: alone if size == 1 else weights for size in sizes.batch_sizes}
        self._reading = weights if max(sizes.batch_sizes) > 1 else alone
        make = partial(Programs, num_ids=num_ids, eos_ids=tuple(eos_ids), max_steps=sizes.max_steps)
        self._programs = {n: make(w.definition, w.runtime) for n, w in self._weights.items()}
        self._reader = make(self._reading.definition, self._reading.runtime)
        self._compiled: dict[tuple, Callable] = {}
        mesh = weights.placing.mesh
        self._whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        self._heads = None
        make_pages = page_maker(weights, sizes)
        if mesh is not None:
            specs = page_specs(jax.eval_shape(make_pages), weights.placing.rules.kv_heads)
            self._heads = jax.tree.map(partial(NamedSharding, mesh), specs)
        self._layers = jax.jit(make_pages, out_shardings=self._heads)()
        self._rows = {size: self._empty(size) for size in sizes.batch_sizes}
        self._free = {
            size: self._put(Allowed(*self._unbound(size)))  # pyright: ignore[reportArgumentType]
            for size in {1, *sizes.batch_sizes}
        }

    @property
    def num_programs(self) -> int:
        """Programs that there are."""
        is_checking = self.sizes.num_proposed > 0
        return len(self.sizes.chunks) + 2 * len(self.sizes.batch_sizes) + 3 + is_checking

    def warm_up(self) -> Iterator[str]:
        """Compiles and runs every program once; yields the name of each before."""
        nothing = Seat([0], [0], 1, IDLE, wants=False)
        for chunk in self.sizes.chunks:
            yield f"reads {chunk} tokens of a prompt"
            logits = self.read([0] * chunk, [], 0, chunk)
        yield "draws a first token"
        self.begin(logits, [0], IDLE, None)
        for size in self.sizes.batch_sizes:
            yield f"seats a text among {size}"
            self.seat(size, 0, nothing)
            yield f"steps with {size}"
            live_b = np.arange(size) == 0
            self.step(size, np.zeros((size, self.sizes.table), np.int32), live_b, {}, 1)
            if size == 1 and self.sizes.num_proposed:
                yield "checks proposals"
                self.check([], [])
            self._rows[size] = self._empty(size)
        yield "sets a page aside"
        page = self.take_page(0)
        yield "puts it back"
        self.put_page(0, page)

    def read(
        self, tokens: Sequence[int], pages: Sequence[int], first: int, length: int
    ) -> jax.Array:
        """Reads a chunk of a prompt: a whole page, or its rest.

        Args:
          tokens: at most a page of them.
          pages: of the text, up to the one that the chunk goes to.
          first: tokens before the chunk.
          length: of the whole prompt.

        Returns:
          Logits of the last of them, float32 [1, num_ids].
        """
        chunk = self.sizes.chunk_of(len(tokens))
        tokens_1t = np.zeros((1, chunk), np.int32)
        tokens_1t[0, : len(tokens)] = tokens
        numbers = (np.array([first], np.int32), np.array([length], np.int32))
        column = np.int32(len(tokens) - 1)
        args = self._put((tokens_1t, self.table([pages]), *numbers, column))
        out = (self._heads, self._whole)
        self._layers, logits_1v = self._call(
            ("read", chunk),
            self._reader.read,
            (self._reading.params, self._layers, *args),
            donate=1,
            out=out,
        )
        return logits_1v

    def begin(
        self,
        logits_1v: jax.Array,
        prompt: Sequence[int],
        sampling: Sampling,
        bits_w: np.ndarray | None,
    ) -> Drawn:
        """Draws a text's first token; `bits_w` says what it may be."""
        allowed = self._allowed(1, {} if bits_w is None else {0: bits_w})
        numbers = self._put((self._ids(prompt), np.int32(len(prompt)), sampling_rows([sampling])))
        args = (logits_1v, *numbers, allowed)
        return self._call(("begin",), self._reader.begin, args, out=self._whole)

    def seat(self, size: int, row: int, seat: Seat) -> None:
        """Puts a text into a row of the batch of `size`."""
        length = len(seat.prompt) + len(seat.drawn) - 1
        counts = (seat.drawn[-1], length, len(seat.prompt), len(seat.drawn), seat.max_new)
        args = self._put(
            (
                np.int32(row),
                self._ids(seat.prompt),
                self._ids(seat.drawn),
                np.array(counts, np.int32),
                np.bool_(seat.wants),
                sampling_rows([seat.sampling]),
            )
        )
        self._rows[size] = self._call(
            ("seat", size),
            self._reader.seat,
            (self._rows[size], *args),
            donate=0,
            out=self._whole,
        )

    def step(
        self,
        size: int,
        table_bm: np.ndarray,
        live_b: np.ndarray,
        bits: dict[int, np.ndarray],
        num_steps: int,
    ) -> Drawn:
        """Draws at most `num_steps` tokens of each live row; `bits` bind rows, by their number."""
        args = self._put((table_bm, live_b))
        steps = self._put(np.int32(num_steps))
        self._layers, self._rows[size], drawn = self._call(
            ("step", size),
            self._programs[size].step,
            (
                self._weights[size].params,
                self._layers,
                self._rows[size],
                *args,
                self._allowed(size, bits),
                steps,
            ),
            donate=(1, 2),
            out=(self._heads, self._whole, self._whole),
        )
        return drawn

    def check(self, pages: Sequence[int], proposed: Sequence[int]) -> Drawn:
        """Reads proposals of the text that is alone in its batch, and draws behind them."""
        proposed_1p = np.zeros((1, self.sizes.num_proposed), np.int32)
        proposed_1p[0, : len(proposed)] = proposed
        number = np.array([len(proposed)], np.int32)
        args = self._put((self.table([pages]), proposed_1p, number))
        self._layers, self._rows[1], drawn = self._call(
            ("check",),
            self._programs[1].check,
            (self._weights[1].params, self._layers, self._rows[1], *args),
            donate=(1, 2),
            out=(self._heads, self._whole, self._whole),
        )
        return drawn

    def take_page(self, page: int) -> Any:
        """A copy of one page in the host's memory."""
        number = self._put(np.int32(page))
        return jax.device_get(self._call(("take",), take_page, (self._layers, number)))

    def put_page(self, page: int, copy: Any) -> None:
        """Writes such a copy into a page."""
        args = (self._layers, self._put(np.int32(page)), self._put(copy))
        self._layers = self._call(("put",), put_page, args, donate=0, out=self._heads)

    def table(self, pages: Sequence[Sequence[int]]) -> np.ndarray:
        """Tables of rows, int32 [B, M]."""
        table_bm = np.zeros((len(pages), self.sizes.table), np.int32)
        for row, own in enumerate(pages):
            table_bm[row, : len(own)] = own
        return table_bm

    def _ids(self, ids: Sequence[int]) -> np.ndarray:
        """As many as the context, filled up outside the vocabulary."""
        ids_s = np.full(self.sizes.table * self.sizes.page_size, self.num_ids, np.int32)
        ids_s[: len(ids)] = ids
        return ids_s

    def _unbound(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((size, num_words(self.num_ids)), np.uint32), np.zeros(size, bool)

    def _allowed(self, size: int, bits: dict[int, np.ndarray]) -> Allowed:
        if not bits:
            return self._free[size]
        bits_bw, is_bound_b = self._unbound(size)
        for row, bits_w in bits.items():
            bits_bw[row], is_bound_b[row] = bits_w, True
        return self._put(Allowed(bits_bw, is_bound_b))  # pyright: ignore[reportArgumentType]

    def _empty(self, size: int) -> Any:
        rows = self._programs[size].empty_rows(size, sampling_rows([IDLE] * size))
        return self._put(rows)

    def _put(self, tree: Any) -> Any:
        """Onto the device, or whole onto each device of the mesh."""
        return jax.device_put(tree) if self._whole is None else jax.device_put(tree, self._whole)

    def _call(
        self,
        key: tuple,
        function: Callable,
        args: tuple,
        donate: int | tuple[int, ...] = (),
        out: Any = None,
    ) -> Any:
        if key not in self._compiled:
            jitted = jax.jit(function, donate_argnums=donate, out_shardings=out)
            self._compiled[key] = jitted.lower(*args).compile()
            self.num_compiled += 1
        return self._compiled[key](*args)


def page_maker(weights: Weights, sizes: Sizes) -> Callable[[], Any]:
    """Makes the empty pages of an engine."""
    runtime = weights.runtime
    dtype = runtime.act_dtype
    num = (sizes.num_pages, sizes.page_size)
    return partial(empty_pages, weights.definition, *num, dtype, runtime=runtime)


def page_specs(layers: Any, heads: Any) -> Any:
    """Where pages are cut: along their heads, by the mesh axis `heads` (None leaves them whole)."""

    def specs(layer: PagedLayer | RaggedLayer) -> Any:
        at = 2 if isinstance(layer, RaggedLayer) else 1
        spec = PartitionSpec(*[None] * at, heads)
        return jax.tree.map(lambda _: spec, layer)

    is_layer = lambda x: isinstance(x, PagedLayer | RaggedLayer)
    return jax.tree.map(specs, layers, is_leaf=is_layer)
