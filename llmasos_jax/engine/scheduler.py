"""Who runs next: texts join between steps, prompts are read chunk by chunk, pages come and go.

A turn reads a few chunks of prompts, then makes steps with each batch that has texts: one while
prompts are being read, else a few. So prompts hold texts up for a bounded time, and a batch fills
before it decodes for long. The chunk that is read next is in turn of the prompt that came first,
which so is never held up for ever, and of the one that has least left, so that a long one does not
hold up short ones.

When no page is left, the text that came last is set aside: its pages are copied to the host's
memory and put back, as they were, when there is room. Nothing is computed twice, so no bit differs.
The text that came first is never set aside, so there is always one that gets on.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from llmasos_jax.engine.live import LiveText
from llmasos_jax.engine.pages import PagePool
from llmasos_jax.engine.programs import Drawn
from llmasos_jax.engine.request import Finish, Piece, Ticket, TokenLogprob
from llmasos_jax.engine.runner import Runner
from llmasos_jax.errors import GenerationError
from llmasos_jax.generate.stream import Decoder


@dataclass
class Counts:
    """What was done so far, in tokens and texts."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    drawn_tokens: int = 0
    finished: int = 0
    set_aside: int = 0
    proposed: int = 0
    accepted: int = 0
    steps: int = 0
    chunks: int = 0


class Scheduler:
    """Runs texts on a runner. Not for several threads.

    Args:
      runner: pages and programs.
      decoder: of the tokenizer.
      eos_ids: tokens that end a text.
      shares_prefixes: whether prompts that begin alike share pages.

    Attributes:
      pool: the pages' users.
      counts: what was done so far.
    """

    def __init__(
        self, runner: Runner, decoder: Decoder, eos_ids: Iterable[int], *, shares_prefixes: bool
    ) -> None:
        self.pool = PagePool(runner.sizes.num_pages)
        self.counts = Counts()
        self._runner, self._decoder = runner, decoder
        self._eos_ids = frozenset(eos_ids)
        self._shares = shares_prefixes
        self._number = 0
        self._all: set[LiveText] = set()  # that have not ended
        self._waiting: list[LiveText] = []  # by number
        self._reading: list[LiveText] = []
        self._rows: dict[int, list[LiveText | None]] = {
            size: [None] * size for size in runner.sizes.batch_sizes
        }

    @property
    def num_waiting(self) -> int:
        """Texts that have not begun, or are set aside."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Texts that have pages."""
        return len(self._reading) + sum(1 for _ in self._seated())

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self.num_running

    def add(self, ticket: Ticket) -> None:
        """Takes a text to the end of the queue."""
        live = LiveText(self._number, ticket, self._decoder, self._runner.sizes.page_size)
        self._number += 1
        self._all.add(live)
        self._waiting.append(live)

    def turn(self) -> None:
        """Does a little of everything that there is to do."""
        self._drop_cancelled()
        self._admit()
        self._read_some()
        for size, rows in self._rows.items():
            if any(rows) and not (size == 1 and self._check()):
                self._step(size)

    def cancel(self) -> None:
        """Ends all texts, as if each had been cancelled."""
        for live in self._all:
            live.ticket.cancel()
        self._drop_cancelled()

    def fail(self, error: str) -> None:
        """Ends all texts by an error."""
        for live in list(self._all):
            self._end(live)
            live.ticket.give(Piece(finish="error", error=error))

    def _seated(self) -> Iterable[LiveText]:
        return (live for rows in self._rows.values() for live in rows if live is not None)

    def _drop_cancelled(self) -> None:
        for live in list(self._all):
            if live.ticket.is_cancelled:
                self._end(live)
                live.ticket.give(Piece(finish="cancelled"))

    # Who comes in.

    def _admit(self) -> None:
        """Lets texts in as long as there are rows and pages, in their order."""
        for live in list(self._waiting):
            size = live.size or self._size_for(live)
            if self._rows_left(size) < 1:
                continue  # who asks for another batch size need not wait for this one
            # Alone, a text has all pages. Beside others it leaves each of them one to go on with.
            spare = self.num_running
            if self.pool.num_available < max(len(live.aside or ()), 1) + spare:
                return
            self._waiting.remove(live)
            live.size = live.ticket.batch_size = size
            if live.aside is None:
                self._reading.append(live)
            else:
                self._bring_back(live)

    def _size_for(self, live: LiveText) -> int:
        """The batch that a text belongs to: the smallest that holds all there are, or the last."""
        if live.ask.batch_size is not None:
            return live.ask.batch_size
        num_there = self.num_running + 1
        return next((size for size in self._rows if size >= num_there), max(self._rows))

    def _rows_left(self, size: int) -> int:
        taken = sum(live.size == size for live in self._reading)
        return sum(live is None for live in self._rows[size]) - taken

    def _row_for(self, live: LiveText) -> int:
        row = self._rows[live.size].index(None)
        self._rows[live.size][row] = live
        live.row = row
        return row

    # Prompts.

    def _read_some(self) -> None:
        """Reads as much of prompts as may hold up those who decode."""
        sizes = self._runner.sizes
        for _ in range(-(-sizes.max_prefill_tokens // sizes.page_size)):
            if not self._reading:
                return
            self._read(self._next_to_read())

    def _next_to_read(self) -> LiveText:
        """In turn the prompt that came first and the one that has least left."""
        if self.counts.chunks % 2:
            return min(self._reading, key=lambda live: len(live.ask.ids) - live.num_read)
        return min(self._reading, key=lambda live: live.number)

    def _read(self, live: LiveText) -> None:
        """Reads the next chunk of a prompt; after the last, its first token is drawn."""
        page_size = self._runner.sizes.page_size
        self._share_known(live)
        if not self._has_room(live, live.num_read + 1):
            return  # set aside itself, before it began
        ids = live.ask.ids
        tokens = ids[live.num_read : live.num_read + page_size]
        logits = self._runner.read(tokens, live.pages, live.num_read, len(ids))
        self.counts.chunks += 1
        self.counts.prompt_tokens += len(tokens)
        if len(tokens) == page_size and self._shares:
            self.pool.name(live.pages[-1], live.keys[live.num_read // page_size])
        live.num_read += len(tokens)
        if not live.is_read:
            return
        bits = self._bits([live])
        if live not in self._reading:
            return  # its constraint failed
        drawn = self._runner.begin(logits, ids, live.ask.sampling, bits.get(0))
        if self._take(live, drawn, 0) is None:
            self._reading.remove(live)
            self._runner.seat(live.size, self._row_for(live), live.seat())

    def _share_known(self, live: LiveText) -> None:
        """Takes pages that have the prompt's next tokens already; one token is left to read."""
        page_size = self._runner.sizes.page_size
        while self._shares and live.num_read + page_size < len(live.ask.ids):
            page = self.pool.find(live.keys[live.num_read // page_size])
            if page is None:
                return
            self.pool.share(page)
            live.pages.append(page)
            live.num_read += page_size
            live.ticket.num_cached += page_size
            self.counts.cached_tokens += page_size

    # Steps.

    def _step(self, size: int) -> None:
        """Makes a few steps with the texts of one batch."""
        rows = self._rows[size]
        bits = self._bits(rows)
        # What may come next is known one token ahead only.
        # Nor are proposals known before the token that they follow.
        is_proposing = size == 1 and self._runner.sizes.num_proposed > 0
        is_short = bool(bits) or is_proposing or bool(self._reading)
        num_steps = 1 if is_short else self._runner.sizes.max_steps
        for live in sorted(filter(None, rows), key=lambda live: live.number):
            if live.row is not None:  # not set aside by an older one in the meantime
                left = live.ask.max_new - len(live.drawn)
                self._has_room(live, live.num_held + min(num_steps, left))
        live_b = np.array([live is not None for live in rows])
        if not live_b.any():
            return
        table_bm = self._runner.table([live.pages if live else [] for live in rows])
        bits = {row: bit for row, bit in bits.items() if rows[row] is not None}
        drawn = self._runner.step(size, table_bm, live_b, bits, num_steps)
        self.counts.steps += 1
        for row, live in enumerate(list(rows)):
            if live is not None:
                self._take(live, drawn, row)

    def _bits(self, rows: Iterable[LiveText | None]) -> dict[int, np.ndarray]:
        """What may come next in the rows that a constraint binds; ends those whose own fails."""
        bits = {}
        for row, live in enumerate(list(rows)):
            if live is None or live.ask.constraint is None:
                continue
            try:
                bits[row] = live.ask.constraint.allowed()
            except GenerationError as error:
                self._end(live)
                self.counts.finished += 1
                live.ticket.give(Piece(finish="error", error=str(error)))
        return bits

    def _check(self) -> bool:
        """Checks proposals for the text that is alone in its batch; False if there are none."""
        live = self._rows[1][0]
        if live is None or not self._runner.sizes.num_proposed:
            return False
        proposed = live.propose(self._runner.sizes.num_proposed)
        if not proposed:
            return False
        if not self._has_room(live, live.num_held + 1 + len(proposed)):
            return True  # set aside; there is nothing to step
        drawn = self._runner.check(live.pages, proposed)
        self.counts.steps += 1
        self.counts.proposed += len(proposed)
        self.counts.accepted += int(np.asarray(drawn.num_b)[0]) - 1
        self._take(live, drawn, 0)
        return True

    def _take(self, live: LiveText, drawn: Drawn, row: int) -> Finish | None:
        """Hands a row's new tokens to its text, which may end by them."""
        num = int(np.asarray(drawn.num_b)[row])
        ids = np.asarray(drawn.token_bk)[row, :num].tolist()
        told = _told(drawn, row, num, live.ask.num_logprobs)
        before = len(live.drawn)
        finish = live.add(ids, told, self._eos_ids, self._runner.num_ids)
        self.counts.drawn_tokens += len(live.drawn) - before
        if finish is not None:
            self._end(live)
            self.counts.finished += 1
        return finish

    def _end(self, live: LiveText) -> None:
        """A text is over."""
        self._leave(live)
        self._all.discard(live)

    def _leave(self, live: LiveText) -> None:
        """Gives back all that a text has."""
        self.pool.give_back(live.pages)
        live.pages, live.aside = [], None
        if live.row is not None:
            self._rows[live.size][live.row] = None
            live.row = None
        for queue in (self._waiting, self._reading):
            if live in queue:
                queue.remove(live)

    # Pages.

    def _has_room(self, live: LiveText, num_tokens: int) -> bool:
        """Gives a text pages for so many tokens; False if it was set aside for want of them."""
        need = self._runner.sizes.pages_of(num_tokens)
        while len(live.pages) < need:
            page = self.pool.take()
            if page is not None:
                live.pages.append(page)
                continue
            holders = [h for h in (*self._reading, *self._seated()) if h.pages or h is live]
            last = max(holders, key=lambda h: h.number)
            self._set_aside(last)
            if last is live:
                return False
        return True

    def _set_aside(self, live: LiveText) -> None:
        """Takes a text's pages away, and puts it to the front of the queue."""
        self.counts.set_aside += 1
        if live.row is not None:
            live.aside = [self._runner.take_page(page) for page in live.pages]
        else:
            # Its prompt is read again: the same chunks give the same bits.
            live.num_read, live.ticket.num_cached = 0, 0
        pages = live.aside
        self._leave(live)
        live.aside = pages
        bisect.insort(self._waiting, live, key=lambda other: other.number)

    def _bring_back(self, live: LiveText) -> None:
        """Puts a text that was set aside into pages and a row again."""
        for copy in live.aside or ():
            page = self.pool.take()
            if page is None:
                raise RuntimeError("pages were counted and are not there")
            self._runner.put_page(page, copy)
            live.pages.append(page)
        live.aside = None
        self._runner.seat(live.size, self._row_for(live), live.seat())


def _told(drawn: Drawn, row: int, num: int, num_top: int | None) -> list[TokenLogprob]:
    """Log-probabilities of a row's new tokens, if they were asked for."""
    if num_top is None:
        return []
    tokens, own = np.asarray(drawn.token_bk)[row], np.asarray(drawn.logprob_bk)[row]
    tops, theirs = np.asarray(drawn.top_bkn)[row], np.asarray(drawn.top_logprob_bkn)[row]
    return [
        TokenLogprob(
            int(tokens[k]),
            float(own[k]),
            tuple(
                (int(i), float(x))
                for i, x in zip(tops[k][:num_top], theirs[k][:num_top], strict=True)
            ),
        )
        for k in range(num)
    ]
