"""One text on its way through the engine."""

from __future__ import annotations

from typing import Any

from llmasos_jax.engine.pages import page_keys
from llmasos_jax.engine.proposals import PromptLookup
from llmasos_jax.engine.request import Finish, Piece, Ticket, TokenLogprob
from llmasos_jax.engine.runner import Seat
from llmasos_jax.errors import GenerationError
from llmasos_jax.generate.stream import Decoder, TextStream


class LiveText:
    """A text, from its first chunk to its last token.

    Args:
      number: later ones have larger numbers.
      ticket: where its pieces go.
      decoder: of the tokenizer.
      page_size: tokens of a page.

    Attributes:
      ask: what was asked.
      pages: in the order of their tokens.
      keys: of the pages that are full of the prompt's tokens.
      num_read: tokens of the prompt that are in its pages.
      drawn: tokens drawn, the ends of texts left out.
      size, row: the batch and the row that it decodes in; row None while it has none.
      aside: copies of its pages, while it is set aside.
    """

    def __init__(self, number: int, ticket: Ticket, decoder: Decoder, page_size: int) -> None:
        self.number, self.ticket, self.ask = number, ticket, ticket.ask
        self.pages: list[int] = []
        self.keys = page_keys(ticket.ask.ids, page_size)
        self.num_read = 0
        self.drawn: list[int] = []
        self.size = 0
        self.row: int | None = None
        self.aside: list[Any] | None = None
        self._lookup = PromptLookup()
        self._lookup.extend(ticket.ask.ids)
        self._text = TextStream(decoder, ticket.ask.ids, ticket.ask.stop)

    @property
    def is_read(self) -> bool:
        """Whether the whole prompt is in the pages."""
        return self.num_read == len(self.ask.ids)

    @property
    def num_held(self) -> int:
        """Tokens that are in the pages: all but the newest drawn."""
        return self.num_read + max(len(self.drawn) - 1, 0)

    def propose(self, num: int) -> list[int]:
        """At most `num` tokens that may come next, as far as the text may still grow.

        A constraint knows one token ahead only, so a text that has one gets none.
        """
        left = self.ask.max_new - len(self.drawn) - 1
        if self.ask.constraint is not None or min(num, left) < 1:
            return []
        return self._lookup.propose(min(num, left))

    def seat(self) -> Seat:
        """What a row has to know."""
        ask = self.ask
        wants = ask.num_logprobs is not None
        return Seat(ask.ids, self.drawn, ask.max_new, ask.sampling, wants)

    def add(
        self, ids: list[int], told: list[TokenLogprob], eos_ids: frozenset[int], num_ids: int
    ) -> Finish | None:
        """Takes drawn tokens, hands out their text, and says whether the text ended."""
        finish: Finish | None = None
        error = None
        kept: list[int] = []
        for token in ids:
            if token >= num_ids:
                finish, error = "error", _NOT_FINITE
                break
            if token in eos_ids:
                finish = "stop"
                break
            kept.append(token)
            if self.ask.constraint is not None:
                try:
                    self.ask.constraint.take(token)
                    is_done = self.ask.constraint.is_done
                except GenerationError as failure:
                    finish, error = "error", str(failure)
                    break
                if is_done:
                    finish = "stop"
                    break
            if len(self.drawn) + len(kept) >= self.ask.max_new:
                finish = "length"
                break
        text = ""
        for at, token in enumerate(kept):
            text += self._text.push([token])
            if self._text.is_stopped:
                finish, error, kept = "stop", None, kept[: at + 1]
                break
        self.drawn.extend(kept)
        self._lookup.extend(kept)
        if finish is not None:
            text += self._text.finish()
            finish = "stop" if self._text.is_stopped and finish != "error" else finish
        if text or kept or finish:
            piece = Piece(text, tuple(kept), tuple(told[: len(kept)]), finish, error)
            self.ticket.give(piece)
        return finish


_NOT_FINITE = (
    "the model's logits are not finite numbers; its weights are damaged, or dtype is too narrow "
    'for it (try dtype="float32")'
)
