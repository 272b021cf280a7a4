"""Compiled shapes, kept: prompts and caches are padded to buckets, so that few programs serve all.

    batch      1, 2, 4, 8, ...         rows that no prompt fills are dummies, done from the start
    prompt     16, 32, 64, ...         padded on the left, read in chunks of at most 256 tokens
    cache      up to a quarter more than the tokens need: 16, 32, ..., 128, 160, 192, 224, 256, 320

The shapes depend on the request alone, never on what ran before. With `deterministic` there is one
shape for all requests: batch 1, the whole context, prompts padded on the right.

Two kinds of models read a prompt in one piece, because its tokens see each other both ways: with
`prefix_lm` a chunk is the whole bucket (`deterministic`: the next multiple of 64 tokens); of an
encoder-decoder the encoder reads the bucket, padded on the right (`deterministic`: the whole
context), and the decoder starts with one token.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from llmasos_jax.errors import GenerationError
from llmasos_jax.generate.loop import Ends, Programs, State
from llmasos_jax.generate.sampling import Sampling, SamplingRows, sampling_rows
from llmasos_jax.models.definition import empty_cache
from llmasos_jax.nn.cache import Cache, CrossCache
from llmasos_jax.types import Tree

SMALLEST = 16
LARGEST_CHUNK = 256
DETERMINISTIC_CHUNK = 64
DUMMY = Sampling(temperature=0.0)


@dataclass(frozen=True)
class Request:
    """One text to write.

    Attributes:
      ids: the prompt, at least one token; of an encoder-decoder what its decoder starts with.
      max_new: tokens to draw at most.
      sampling: how.
      source: what the encoder of an encoder-decoder reads, at least one token; elsewhere ().
    """

    ids: Sequence[int]
    max_new: int
    sampling: Sampling
    source: Sequence[int] = ()


@dataclass(frozen=True)
class Shape:
    """What a batch is compiled for.

    Attributes:
      batch: rows.
      chunk: tokens that a prefill reads at a time.
      prompt: tokens that all of them read.
      slots: of the cache.
      source: tokens that the encoder reads; 0 in a model without one.
    """

    batch: int
    chunk: int
    prompt: int
    slots: int
    source: int = 0


def power_of_two(num: int) -> int:
    """The next power of two.

    Example:
      >>> [power_of_two(n) for n in (1, 3, 16, 17)]
      [1, 4, 16, 32]
    """
    return 1 << (num - 1).bit_length()


def quarter_steps(num: int) -> int:
    """Rounds up to a quarter of the power of two below, at least to a multiple of 16.

    Example:
      >>> [quarter_steps(n) for n in (5, 100, 129, 640, 641)]
      [16, 112, 160, 640, 768]
    """
    step = max(SMALLEST, 1 << max(num.bit_length() - 3, 0))
    return -(-num // step) * step


def _multiple(num: int, of: int) -> int:
    """The next multiple."""
    return -(-num // of) * of


class Session:
    """Runs batches of requests on one model.

    Args:
      programs: the model and how it runs.
      params: its weights.
      eos_ids: tokens that end a text.
      context_length: of the model, in tokens; the deterministic shape holds as many.
      cache_sharding: of a layer's cache, heads and rows first; None where there is one device.
      cache_dtype: of keys and values.

    Attributes:
      num_compiled: programs compiled so far.
    """

    def __init__(
        self,
        programs: Programs,
        params: Tree,
        eos_ids: Sequence[int],
        context_length: int,
        *,
        cache_sharding: NamedSharding | None = None,
        cache_dtype: Any = jnp.float32,
    ) -> None:
        self._programs = programs
        self._params = params
        self._eos_ids = np.array(sorted(eos_ids), np.int32)
        self._context_length = context_length
        self._cache_dtype = cache_dtype
        self._cache_sharding = cache_sharding
        self._whole = None
        if cache_sharding is not None:
            self._whole = NamedSharding(cache_sharding.mesh, PartitionSpec())
        self._compiled: dict[tuple, Callable] = {}

    def on(self, params: Tree) -> Session:
        """The same compiled programs, those to come too, on other weights of the same shapes."""
        other = copy.copy(self)
        other._params = params
        return other

    @property
    def num_ids(self) -> int:
        """Tokens that can be drawn are 0 to num_ids - 1."""
        return self._programs.num_ids

    @property
    def num_compiled(self) -> int:
        """Programs compiled so far."""
        return len(self._compiled)

    def shape_of(self, requests: Sequence[Request], *, deterministic: bool) -> Shape:
        """The shape that these requests run in."""
        cfg = self._programs.definition.cfg
        longest = max(len(r.ids) for r in requests)
        source = max(len(r.source) for r in requests)
        if bool(cfg.encoder.num_layers) != (source > 0):
            raise ValueError("requests have a source for models with an encoder, and only there")
        if deterministic:
            chunk = DETERMINISTIC_CHUNK
            slots = _multiple(self._context_length, chunk)
            prompt = _multiple(longest, chunk)
            if source:
                return Shape(1, longest, longest, slots, slots)
            return Shape(1, prompt if cfg.prefix_lm else chunk, prompt, slots)
        batch = power_of_two(len(requests))
        prompt = max(1 if source else SMALLEST, power_of_two(longest))
        slots = quarter_steps(prompt + max(r.max_new for r in requests))
        chunk = prompt if cfg.prefix_lm else min(prompt, LARGEST_CHUNK)
        source = max(SMALLEST, power_of_two(source)) if source else 0
        return Shape(batch, chunk, prompt, slots, source)

    def start(self, requests: Sequence[Request], *, deterministic: bool = False) -> Run:
        """Reads the prompts and draws the first token of each.

        Args:
          requests: one batch; one only if `deterministic`.
          deterministic: whether to use the one shape that serves all requests.
        """
        if deterministic and len(requests) != 1:
            raise ValueError(f"a deterministic batch has one request, not {len(requests)}")
        shape = self.shape_of(requests, deterministic=deterministic)
        tokens_bp, start_b, lengths_b = _padded(requests, shape, on_left=not deterministic)
        cache = self._call("cache", shape, self._empty_cache(shape), ())
        starts = {"start_b": self.put(start_b), "length_b": self.put(lengths_b.copy())}
        cache = dataclasses.replace(cache, **starts, cross=self._encoded(requests, shape))
        last = shape.prompt - 1 if not deterministic else len(requests[0].ids) - 1
        logits_bv = None
        for begin in range(0, shape.prompt, shape.chunk):
            chunk = tokens_bp[:, begin : begin + shape.chunk]
            column = np.int32(min(last - begin, shape.chunk - 1))
            args = (self._params, cache, *self.put((chunk, column)))
            logits_bv, cache = self._call("prefill", shape, self._programs.prefill, args, donate=1)
        # Padding on the right is in the cache too; the next tokens are written over it.
        cache = dataclasses.replace(cache, slot=self.put(np.int32(last + 1)))
        max_new_b = np.zeros(shape.batch, np.int32)
        max_new_b[: len(requests)] = [r.max_new for r in requests]
        dummies = [DUMMY] * (shape.batch - len(requests))
        rows = self.put(sampling_rows([*(r.sampling for r in requests), *dummies]))
        ends = self.put(Ends(max_new_b, self._eos_ids))  # pyright: ignore[reportArgumentType]
        prompt_bs, lengths_b = self.put((_widened(requests, shape, self.num_ids), lengths_b))
        args = (cache, logits_bv, prompt_bs, lengths_b, rows, ends)
        state = self._call("begin", shape, self._programs.begin, args, donate=0)
        return Run(self, shape, len(requests), state, lengths_b, rows, ends)

    def decode(self, run: Run, num_steps: int) -> State:
        """Draws more tokens of a batch."""
        steps = self.put(np.int32(num_steps))
        args = (self._params, run.state, run.lengths_b, run.rows, run.ends, steps)
        return self._call("decode", run.shape, self._programs.decode, args, donate=1)

    def _encoded(self, requests: Sequence[Request], shape: Shape) -> CrossCache | None:
        """What the decoder attends to, if the model has an encoder."""
        if not shape.source:
            return None
        source_bs = np.zeros((shape.batch, shape.source), np.int32)
        segment_ids_bs = np.zeros((shape.batch, shape.source), np.int32)
        segment_ids_bs[:, 0] = 1  # a dummy row is one token long
        for row, request in enumerate(requests):
            source_bs[row, : len(request.source)] = request.source
            segment_ids_bs[row, : len(request.source)] = 1
        args = (self._params, *self.put((source_bs, segment_ids_bs)))
        return self._call("encode", shape, self._programs.encode, args)

    def _empty_cache(self, shape: Shape) -> Callable:
        return partial(
            empty_cache, self._programs.definition, shape.batch, shape.slots, self._cache_dtype
        )

    def _call(
        self, name: str, shape: Shape, function: Callable, args: tuple, donate: int | None = None
    ) -> Any:
        """Runs a program, compiled when its shape is first met."""
        # Decoding does not care how the prompt was cut, nor prefill how many chunks it has.
        chunk = shape.chunk if name == "prefill" else 0
        slots = shape.slots if name != "encode" else 0
        key = (name, shape.batch, chunk, slots, shape.source if name != "cache" else 0)
        if key not in self._compiled:
            jitted = jax.jit(
                function,
                donate_argnums=() if donate is None else donate,
                **self._out_shardings(name),
            )
            self._compiled[key] = jitted.lower(*args).compile()
        return self._compiled[key](*args)

    def put(self, tree: Any) -> Any:
        """Host arrays onto the device, or whole onto each device of the mesh."""
        return jax.device_put(tree) if self._whole is None else jax.device_put(tree, self._whole)

    def _out_shardings(self, name: str) -> dict[str, Any]:
        # What one program gives the next one takes: on a mesh both must name the same sharding.
        whole = self._whole
        if whole is None:
            return {}
        empty: Any = Cache(self._cache_sharding, whole, whole, whole)  # pyright: ignore[reportArgumentType]
        cross: Any = CrossCache(self._cache_sharding, whole)  # pyright: ignore[reportArgumentType]
        has_encoder = self._programs.definition.cfg.encoder.num_layers > 0
        cache = dataclasses.replace(empty, cross=cross) if has_encoder else empty
        state: Any = State(cache, *[whole] * 6)  # pyright: ignore[reportArgumentType]
        outs = {"cache": empty, "encode": cross, "prefill": (whole, cache)}
        return {"out_shardings": {**outs, "begin": state, "decode": state}[name]}


class Run:
    """A batch on its way.

    Attributes:
      state: on the device.
      is_done: whether every text has ended.
    """

    def __init__(
        self,
        session: Session,
        shape: Shape,
        num_rows: int,
        state: State,
        lengths_b: jax.Array,
        rows: SamplingRows,
        ends: Ends,
    ) -> None:
        self._session = session
        self._num_rows = num_rows
        self._read = np.zeros(num_rows, np.int64)  # tokens of each row that were given out
        self.shape, self.state, self.lengths_b = shape, state, lengths_b
        self.rows, self.ends = rows, ends

    @property
    def is_done(self) -> bool:
        """Whether every text has ended."""
        return bool(np.all(np.asarray(self.state.is_done_b)))

    def advance(self, num_steps: int) -> None:
        """Draws at most `num_steps` more tokens of each row."""
        self.state = self._session.decode(self, num_steps)

    def new_ids(self) -> list[list[int]]:
        """The tokens of each row since the last call.

        Raises:
          GenerationError: the logits were not numbers.
        """
        tokens_bs, num_new_b = np.asarray(self.state.tokens_bs), np.asarray(self.state.num_new_b)
        new = []
        for row in range(self._num_rows):
            ids = tokens_bs[row, self._read[row] : num_new_b[row]].tolist()
            if ids and max(ids) >= self._session.num_ids:
                at = self._read[row] + len(ids) - 1
                raise GenerationError(
                    f"text {row}, token {at}: the model's logits are not finite numbers; its "
                    'weights are damaged, or dtype is too narrow for it (try dtype="float32")'
                )
            self._read[row] = num_new_b[row]
            new.append(ids)
        return new

    def end(self, row: int) -> None:
        """Ends a text early."""
        is_done_b = np.array(self.state.is_done_b)
        is_done_b[row] = True
        self.state = dataclasses.replace(self.state, is_done_b=self._session.put(is_done_b))


def _padded(
    requests: Sequence[Request], shape: Shape, *, on_left: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompts as int32 [B, P], the first slot of each, and their lengths [B]."""
    tokens_bp = np.zeros((shape.batch, shape.prompt), np.int32)
    lengths_b = np.ones(shape.batch, np.int32)  # a dummy row is one token long
    lengths_b[: len(requests)] = [len(r.ids) for r in requests]
    start_b = shape.prompt - lengths_b if on_left else np.zeros(shape.batch, np.int32)
    for row, request in enumerate(requests):
        tokens_bp[row, start_b[row] : start_b[row] + lengths_b[row]] = request.ids
    return tokens_bp, start_b.astype(np.int32), lengths_b


def _widened(requests: Sequence[Request], shape: Shape, outside: int) -> np.ndarray:
    """Prompts as [B, S], filled up outside the vocabulary: one shape whatever their length."""
    wide_bs = np.full((shape.batch, shape.slots), outside, np.int32)
    for row, request in enumerate(requests):
        wide_bs[row, : len(request.ids)] = request.ids
    return wide_bs
