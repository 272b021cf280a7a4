"""What is asked of the engine, and what it gives back, piece by piece."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from llmasos_jax.errors import GenerationError
from llmasos_jax.generate.sampling import Sampling

_LOG = logging.getLogger(__name__)

# Why a text ended: a token or a string that ends it, its length, the one who asked, a fault.
Finish = Literal["stop", "length", "cancelled", "error"]


class Constraint(Protocol):
    """What may come next in one text; `generate.guides` makes them. It has a state of its own."""

    def allowed(self) -> np.ndarray:
        """Which ids may come next: bit i of word w is id 32 w + i, uint32 [V / 32 rounded up]."""
        ...

    def take(self, token: int) -> None:
        """The id that came."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether the text is whole and nothing may follow."""
        ...


@dataclass(frozen=True)
class Ask:
    """One text to write.

    Attributes:
      ids: the prompt, at least one token.
      max_new: tokens to draw at most, at least 1.
      sampling: how; `sampling.index` numbers the samples of one prompt.
      stop: strings that end the text and are not in it.
      num_logprobs: how many of the likeliest tokens are told at each place beside the one that was
        drawn, 0 to 20; None tells no probabilities.
      constraint: what may come next; None is everything.
      batch_size: of the engine's, the one whose step writes it: with the same one come the same
        bits. None takes what suits those who are there.
    """

    ids: tuple[int, ...]
    max_new: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    num_logprobs: int | None = None
    constraint: Constraint | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A drawn token with its natural log-probability under the model, before any option.

    Attributes:
      id: the token.
      logprob: in nats.
      top: the likeliest ids with theirs, the likeliest first.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What came of a text since the piece before.

    Attributes:
      text: settled text, maybe empty: never half a character, nothing of a stop string.
      ids: the tokens that were drawn, without one that ends the text.
      logprobs: of these tokens, if they were asked for.
      finish: why the text ended; None while it goes on.
      error: one line, where `finish` is "error".
    """

    text: str = ""
    ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None
    error: str | None = None


class Ticket:
    """A text on its way. Iterate over its pieces, from any thread; the last one has a `finish`.

    Args:
      ask: what was asked.
      on_piece: called with each piece on the engine's thread, in place of the iterator: it must
        return at once.

    Attributes:
      ask: what was asked.
      num_cached: tokens of the prompt that were found in pages of others, once it was begun.
      batch_size: of the batch that writes it, once it was begun; 0 before.
    """

    def __init__(self, ask: Ask, on_piece: Callable[[Piece], None] | None = None) -> None:
        self.ask = ask
        self.num_cached = 0
        self.batch_size = 0
        self._pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        self._on_piece = self._pieces.put if on_piece is None else on_piece
        self._is_cancelled = threading.Event()

    def cancel(self) -> None:
        """Ends the text as soon as its step is over; its last piece says "cancelled"."""
        self._is_cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._is_cancelled.is_set()

    def give(self, piece: Piece) -> None:
        """Hands out a piece; the engine calls this. Who cannot take it wants no more."""
        try:
            self._on_piece(piece)
        except Exception:
            _LOG.exception("a piece of text could not be handed out; its text is cancelled")
            self.cancel()

    def __iter__(self) -> Iterator[Piece]:
        while True:
            piece = self._pieces.get()
            yield piece
            if piece.finish is not None:
                return

    def text(self) -> str:
        """The whole text; waits for its end.

        Raises:
          GenerationError: it ended by an error.
        """
        parts = []
        for piece in self:
            if piece.error is not None:
                raise GenerationError(piece.error)
            parts.append(piece.text)
        return "".join(parts)
