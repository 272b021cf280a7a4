"""The engine's pieces, which come on its own thread, as an asynchronous iterator."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from llmasos_jax.engine.engine import Engine
from llmasos_jax.engine.replicas import Replicas
from llmasos_jax.engine.request import Ask, Piece, Ticket
from llmasos_jax.serve.failures import RefusedError
from llmasos_jax.serve.metrics import Metrics


class Texts:
    """The texts of one request on their way. Leaving it cancels what has not ended.

    Args:
      engine: writes them.
      asks: what.
      timeout_s: until all have ended.
      metrics: are told how long tokens take.

    Attributes:
      tickets: one for each.
    """

    def __init__(
        self, engine: Engine | Replicas, asks: list[Ask], timeout_s: float, metrics: Metrics
    ) -> None:
        self._engine, self._asks, self._metrics = engine, asks, metrics
        self._times = [_Times() for _ in asks]
        self._end_s = asyncio.get_running_loop().time() + timeout_s
        self._timeout_s = timeout_s
        # As long as all of their tokens, at most: a slow reader holds up nobody else.
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self.tickets: list[Ticket] = []

    def start(self) -> None:
        """Asks the engine.

        Raises:
          GenerationError: it refuses one of them; the others are cancelled.
        """
        loop = asyncio.get_running_loop()
        try:
            for index, ask in enumerate(self._asks):

                def give(piece: Piece, index: int = index) -> None:
                    loop.call_soon_threadsafe(self._pieces.put_nowait, (index, piece))

                self.tickets.append(self._engine.submit(ask, give))
        except Exception:
            self.cancel()
            raise

    def __enter__(self) -> Texts:
        return self

    def __exit__(self, *exc: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Ends all of them; what has ended does not notice."""
        for ticket in self.tickets:
            ticket.cancel()

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """Pieces with the numbers of their texts, until all have ended.

        Raises:
          RefusedError: a text failed, or it took too long.
        """
        num_left = len(self.tickets)
        while num_left:
            try:
                async with asyncio.timeout_at(self._end_s):
                    index, piece = await self._pieces.get()
            except TimeoutError:
                raise RefusedError(
                    504, f"the request took longer than {self._timeout_s:g} s"
                ) from None
            if piece.finish == "error":
                raise RefusedError(500, piece.error or "the text failed")
            if piece.finish == "cancelled":
                raise RefusedError(503, "the server was stopped", code="shutting_down")
            num_left -= piece.finish is not None
            self._times[index].note(piece, self._metrics)
            yield index, piece

    @property
    def batch_size(self) -> int:
        """Of the first text, once it was begun."""
        return self.tickets[0].batch_size


class _Times:
    """When a text's tokens came."""

    def __init__(self) -> None:
        self._start_s = time.perf_counter()
        self._first_s: float | None = None
        self._num = 0

    def note(self, piece: Piece, metrics: Metrics) -> None:
        """Takes a piece."""
        now_s = time.perf_counter()
        if self._first_s is None and piece.ids:
            self._first_s = now_s
            metrics.first_token_s.observe(now_s - self._start_s)
        self._num += len(piece.ids)
        if piece.finish is not None and self._first_s is not None and self._num > 1:
            metrics.token_s.observe((now_s - self._first_s) / (self._num - 1))
