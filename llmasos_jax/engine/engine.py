"""The engine: many threads ask for texts, one thread writes them together."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from llmasos_jax.engine.options import EngineOptions, sizes_of
from llmasos_jax.engine.refusals import require_engine
from llmasos_jax.engine.request import Ask, Piece, Ticket
from llmasos_jax.engine.runner import Runner
from llmasos_jax.engine.scheduler import Scheduler
from llmasos_jax.errors import EngineClosedError, GenerationError, QueueFullError
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.stream import Decoder

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineStats:
    """An engine at one moment.

    Attributes:
      num_running: texts that have pages.
      num_waiting: texts that wait for a row or for pages.
      pages_total: pages of the pool.
      pages_in_use: pages that some text has.
      pages_cached: pages that are nobody's and known by their tokens.
      prompt_tokens: of prompts, read so far.
      cached_tokens: of prompts, found in pages in place of being read.
      generated_tokens: drawn so far.
      num_finished: texts that came to their end, the cancelled not counted.
      num_preempted: how often a text was set aside for want of pages.
      proposed_tokens: that were proposed and checked.
      accepted_tokens: of these, that were right.
      num_compiled: programs compiled; it stays as it is after `warm_up`.
    """

    num_running: int
    num_waiting: int
    pages_total: int
    pages_in_use: int
    pages_cached: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    num_finished: int
    num_preempted: int
    proposed_tokens: int
    accepted_tokens: int
    num_compiled: int


class Engine:
    """Writes texts together: they join and leave between steps, and share pages and programs.

    A text's tokens depend on its prompt, its options and the batch size that it ran in
    (`Ticket.batch_size`), in every bit; not on its neighbours, on when they came or went, on
    what was cached, nor on whether it was set aside. `Ask.batch_size` asks for a size.

    Args:
      model: a decoder with its tokenizer.
      options: sizes.

    Raises:
      GenerationError: the model cannot run on pages.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> from llmasos_jax.format.manifest import Manifest
      >>> from llmasos_jax.generate.load import init_model
      >>> from llmasos_jax.generate.sampling import Sampling
      >>> manifest = Manifest("m", ModelConfig(259, 64, 1), tokenizer={"kind": "bytes"})
      >>> options = EngineOptions(batch_sizes=(2,), num_pages=3, page_size=16)
      >>> with Engine(init_model(manifest), options) as engine:
      ...     asks = [Ask(tuple(b"Hi"), 5, Sampling(seed=1)) for _ in range(2)]
      ...     texts = [ticket.text() for ticket in map(engine.submit, asks)]
      >>> texts[0] == texts[1]
      True
    """

    def __init__(self, model: Model, options: EngineOptions = EngineOptions()) -> None:
        tokenizer = require_engine(model)
        self.model = model
        self.options = options
        weights = model.weights
        self.sizes = sizes_of(options, weights)
        self._runner = Runner(weights, weights, model.num_ids, model.eos_ids, self.sizes)
        self._scheduler = Scheduler(
            self._runner,
            Decoder(tokenizer),
            model.eos_ids,
            shares_prefixes=options.shares_prefixes,
        )
        self._new: deque[Ticket] = deque()
        self._wake = threading.Condition()
        self._is_closing = False
        self._is_draining = False
        self._failure: str | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def warm_up(self, on_program: Callable[[str], None] | None = None) -> None:
        """Compiles all programs; no request compiles any after this.

        Args:
          on_program: called before each program with what it does.
        """
        for name in self._runner.warm_up():
            if on_program is not None:
                on_program(name)

    @property
    def num_programs(self) -> int:
        """Programs that `warm_up` goes through."""
        return self._runner.num_programs

    def submit(self, ask: Ask, on_piece: Callable[[Piece], None] | None = None) -> Ticket:
        """Takes a text into the queue; from any thread.

        Args:
          ask: what to write; a `max_new` beyond the context ends at the context.
          on_piece: as in `Ticket`.

        Raises:
          GenerationError: the prompt is empty or leaves no room in the context, or the engine has
            no such batch size.
          QueueFullError: too many wait already.
          EngineClosedError: the engine takes no more.
        """
        ticket = Ticket(self._checked(ask), on_piece)
        with self._wake:
            self._require_open()
            num_waiting = len(self._new) + self._scheduler.num_waiting
            if num_waiting >= self.options.max_queue:
                raise QueueFullError(
                    f"{num_waiting} texts wait already, as many as may; ask again later"
                )
            self._new.append(ticket)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
                self._thread.start()
            self._wake.notify()
        return ticket

    def stats(self) -> EngineStats:
        """Counts, from any thread; each is right at some moment of the last step."""
        scheduler, pool, counts = self._scheduler, self._scheduler.pool, self._scheduler.counts
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting + len(self._new),
            pages_total=pool.num_pages,
            pages_in_use=pool.num_in_use,
            pages_cached=pool.num_cached,
            prompt_tokens=counts.prompt_tokens,
            cached_tokens=counts.cached_tokens,
            generated_tokens=counts.drawn_tokens,
            num_finished=counts.finished,
            num_preempted=counts.set_aside,
            proposed_tokens=counts.proposed,
            accepted_tokens=counts.accepted,
            num_compiled=self._runner.num_compiled,
        )

    def stop_taking(self) -> None:
        """Takes no more texts; those there are go on."""
        with self._wake:
            self._is_draining = True

    def drain(self, timeout_s: float | None = None) -> bool:
        """Takes no more texts and waits for those there are; whether all ended in time."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        with self._wake:
            self._is_draining = True
            while self._new or not self._scheduler.is_idle:
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._wake.wait(left)
        return True

    def close(self) -> None:
        """Ends all texts (they are "cancelled") and the thread. Safe to call twice."""
        with self._wake:
            self._is_closing = True
            self._wake.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def is_open(self) -> bool:
        """Whether it takes texts."""
        return not (self._is_closing or self._is_draining or self._failure)

    def _require_open(self) -> None:
        if self._failure is not None:
            raise EngineClosedError(f"the engine failed ({self._failure}); start it again")
        if not self.is_open:
            raise EngineClosedError("the engine takes no more texts: it is being shut down")

    def _checked(self, ask: Ask) -> Ask:
        room = self.sizes.context - len(ask.ids)
        if not ask.ids:
            raise GenerationError("the prompt has no tokens; give at least one")
        if room < 1:
            raise GenerationError(
                f"the prompt has {len(ask.ids)} tokens; the context holds {self.sizes.context}, "
                f"the new ones included. Shorten it to at most {self.sizes.context - 1} tokens"
            )
        if ask.batch_size is not None and ask.batch_size not in self.sizes.batch_sizes:
            sizes = ", ".join(map(str, self.sizes.batch_sizes))
            raise GenerationError(
                f"batch_size={ask.batch_size} is not one of this engine's: {sizes}"
            )
        ask.sampling.require_ids(self.model.num_ids)
        return replace(ask, max_new=min(ask.max_new, room))

    def _run(self) -> None:
        """The engine's thread."""
        try:
            while self._collect():
                self._scheduler.turn()
        except Exception as error:
            _LOG.exception("the engine failed")
            self._fail(f"{type(error).__name__}: {error}".splitlines()[0])
        finally:
            with self._wake:
                self._wake.notify_all()

    def _collect(self) -> bool:
        """Takes what was submitted; waits while there is nothing to do. False at the end."""
        with self._wake:
            if self._scheduler.is_idle:
                self._wake.notify_all()  # whoever drains
            while not (self._new or self._is_closing) and self._scheduler.is_idle:
                self._wake.wait()
            if self._is_closing:
                while self._new:
                    self._scheduler.add(self._new.popleft())
                self._scheduler.cancel()
                return False
            while self._new:
                self._scheduler.add(self._new.popleft())
        return True

    def _fail(self, reason: str) -> None:
        with self._wake:
            self._failure = reason
            while self._new:
                self._scheduler.add(self._new.popleft())
            self._scheduler.fail(f"the engine failed ({reason}); start it again")
