"""How large an engine is: rows, pages, queue."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from llmasos_jax.errors import GenerationError
from llmasos_jax.generate.sampling import require_whole
from llmasos_jax.generate.weights import Weights, free_bytes

# Of the memory that is free once the weights are there, so much goes to pages.
CPU_SHARE, DEVICE_SHARE = 0.25, 0.85
SMALLEST_CHUNK = 16


@dataclass(frozen=True)
class EngineOptions:
    """Sizes of an engine. Checked when made.

    Attributes:
      batch_sizes: how many texts one decoding step may write, each a compiled shape. A text stays
        in the shape in which it began: the smallest that holds all texts there are at that time.
      page_size: tokens of a page; a prompt is read in chunks of as many.
      num_pages: pages of keys and values; None takes a share of the free memory, at most what all
        rows with a full context need.
      context: the most tokens of a text, prompt included; None is the model's own.
      max_queue: texts that may wait before others are refused.
      max_steps: decoding steps between two looks at the queue.
      max_prefill_tokens: of prompts, that are read between two decoding steps, in whole chunks;
        more fills batches sooner, fewer holds up those who decode for a shorter time.
      num_proposed: tokens that are proposed by looking up in the text itself what followed its last
        tokens before, and checked in one step; 0 does not. For a text that decodes alone (a batch
        of 1, which has to be among `batch_sizes`): its steps then hang on nobody else.
      shares_prefixes: whether prompts that begin alike share their pages.

    Example:
      >>> EngineOptions(batch_sizes=(8, 1)).batch_sizes
      (1, 8)
    """

    batch_sizes: tuple[int, ...] = (1, 16)
    page_size: int = 128
    num_pages: int | None = None
    context: int | None = None
    max_queue: int = 256
    max_steps: int = 4
    max_prefill_tokens: int = 512
    num_proposed: int = 0
    shares_prefixes: bool = True

    def __post_init__(self) -> None:
        if not self.batch_sizes:
            raise GenerationError("batch_sizes is empty; give at least one, such as (1, 16)")
        for size in self.batch_sizes:
            require_whole("batch_sizes", size, 1, " rows")
        object.__setattr__(self, "batch_sizes", tuple(sorted(set(self.batch_sizes))))
        require_whole("page_size", self.page_size, SMALLEST_CHUNK, " tokens")
        if self.page_size & (self.page_size - 1):
            raise GenerationError(
                f"page_size={self.page_size} is not possible; give a power of two, such as 128"
            )
        if self.num_pages is not None:
            require_whole("num_pages", self.num_pages, 2, " pages")
        if self.context is not None:
            require_whole("context", self.context, 2, " tokens")
        require_whole("max_queue", self.max_queue, 1, " texts")
        require_whole("max_steps", self.max_steps, 1, " steps")
        require_whole("max_prefill_tokens", self.max_prefill_tokens, 1, " tokens")
        require_whole("num_proposed", self.num_proposed, 0, " tokens")
        if self.num_proposed and 1 not in self.batch_sizes:
            raise GenerationError(
                f"num_proposed={self.num_proposed} needs a batch of 1, and batch_sizes are "
                f"{', '.join(map(str, self.batch_sizes))}; add 1, or leave out num_proposed"
            )


@dataclass(frozen=True)
class Sizes:
    """What `EngineOptions` come to for one model on its devices.

    Attributes:
      context: the most tokens of a text.
      page_size: tokens of a page.
      table: pages of the longest text.
      num_pages: of the pool, page 0, which is nobody's, included.
      batch_sizes: as in `EngineOptions`.
      chunks: tokens that one call reads of a prompt: whole pages, and for the rest fewer.
      max_steps, max_prefill_tokens, num_proposed: as in `EngineOptions`.
    """

    context: int
    page_size: int
    table: int
    num_pages: int
    batch_sizes: tuple[int, ...]
    chunks: tuple[int, ...]
    max_steps: int
    max_prefill_tokens: int
    num_proposed: int

    def chunk_of(self, num_tokens: int) -> int:
        """The smallest chunk that holds so many tokens, at most a page of them."""
        return next(chunk for chunk in self.chunks if chunk >= min(num_tokens, self.page_size))

    def pages_of(self, num_tokens: int) -> int:
        """Pages that so many tokens need."""
        return -(-num_tokens // self.page_size)


def sizes_of(options: EngineOptions, weights: Weights) -> Sizes:
    """The sizes of an engine.

    Raises:
      GenerationError: the context is longer than the model's, or not one text fits into the pages.
    """
    own = weights.definition.cfg.context_length
    context = own if options.context is None else options.context
    if context > own:
        raise GenerationError(
            f"context={context} is more than the model's {own} tokens; give at most {own}"
        )
    page = options.page_size
    table = -(-context // page)
    num_pages = options.num_pages
    if num_pages is None:
        most = sum(options.batch_sizes) * table
        num_pages = max(min(most, _free(weights) // page_bytes(weights, page)), 1) + 1
    if num_pages - 1 < table:
        context = (num_pages - 1) * page
        if options.context is not None and context < options.context:
            raise GenerationError(
                f"num_pages={num_pages} hold one text of {context} tokens (one page is nobody's); "
                f"give at least {table + 1}, or context={context}"
            )
        table = num_pages - 1
    chunks = tuple(1 << bit for bit in range(SMALLEST_CHUNK.bit_length() - 1, page.bit_length()))
    return Sizes(
        context=context,
        page_size=page,
        table=table,
        num_pages=num_pages,
        batch_sizes=options.batch_sizes,
        chunks=chunks,
        max_steps=options.max_steps,
        max_prefill_tokens=options.max_prefill_tokens,
        num_proposed=options.num_proposed,
    )


def page_bytes(weights: Weights, page_size: int) -> int:
    """Bytes of a page of all layers, on all devices together."""
    cfg = weights.definition.cfg
    width = cfg.kv_heads * (cfg.head_width + cfg.value_width)
    return cfg.num_layers * page_size * width * jnp.dtype(weights.runtime.act_dtype).itemsize


def _free(weights: Weights) -> int:
    """Bytes that may go to pages."""
    mesh = weights.placing.mesh
    if weights.placing.platform == "cpu":
        return int(CPU_SHARE * free_bytes())
    devices = jax.local_devices()[:1] if mesh is None else list(mesh.local_devices)
    each = []
    for device in devices:
        stats = device.memory_stats() or {}
        if "bytes_limit" not in stats:
            raise GenerationError(f"{device} does not say how much memory it has; give num_pages")
        each.append(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return int(DEVICE_SHARE * min(each) * len(devices))
