"""Batches of a stream, made ahead in a thread; the state is that of the last one taken."""

from __future__ import annotations

import hashlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmasos_jax.config.schema import Config
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.packing import PackedRow, TokenDocuments
from llmasos_jax.data.streaming.inventory import require_same
from llmasos_jax.data.streaming.rows import StreamRows, encode_documents, text_hash
from llmasos_jax.data.streaming.sources import open_stream
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, fingerprint
from llmasos_jax.errors import DataError

_PREFETCHED_BATCHES = 4
_POLLED_EVERY_S = 0.1


@dataclass(frozen=True)
class StreamedText:
    """What is known of a stream's text before it is read.

    Attributes:
      heldout: the documents that are never trained on.
      digest: hash of them, of the first document that is, and of the tokenizer.
    """

    heldout: TokenDocuments
    digest: str


def open_streamed(cfg: Config, tokenizer: Tokenizer) -> tuple[StreamedText, StreamRows]:
    """Reads the held-out documents of a stream, and the first that is trained on.

    Raises:
      ConfigError: the source does not stream.
      DataError: the stream cannot be read, or has no document to train on.
    """
    stream, count = open_stream(cfg.data), cfg.data.heldout_documents
    texts = (text for text, _ in stream.read(None) if text.strip())
    kept = list(itertools.islice(texts, count))
    ids = [x.tolist() for x in encode_documents(kept, tokenizer)] if kept else []
    heldout = TokenDocuments.from_lists(ids)
    hashes = frozenset(map(text_hash, kept))
    rows = StreamRows(stream, tokenizer, cfg.data.sequence_length, hashes)
    first = next(rows.documents())
    digest = hashlib.sha256(fingerprint(tokenizer).encode())
    for array in (heldout.ids, heldout.offsets, first.ids):
        digest.update(np.asarray(array, dtype="<i8").tobytes())
    return StreamedText(heldout, digest.hexdigest()), rows


class StreamBatches(Iterator[Batch]):
    """The batches of a run on a stream, in turn, without end.

    Each process reads the whole stream and keeps its own rows, so batches and state are the same
    for any number of them.

    Args:
      rows: of the stream.
      batch_size: rows of a batch over all processes.
      own: the numbers of this process's rows.
      prepare: of a row and its number in the run makes an example.
      stack: of examples makes a batch.

    Attributes:
      position: the step whose batch comes next.
      waited_s: seconds that the caller has spent waiting in `next`.
    """

    def __init__(
        self,
        rows: StreamRows,
        batch_size: int,
        own: Sequence[int],
        prepare: Callable[[PackedRow, int], Batch],
        stack: Callable[[Sequence[Batch]], Batch],
    ) -> None:
        self._rows, self._batch_size, self._own = rows, batch_size, own
        self._prepare, self._stack = prepare, stack
        self._state: Any = None
        self._thread: threading.Thread | None = None
        self.waited_s = 0.0
        self.position = 0

    def __getitem__(self, step: int) -> Batch:
        raise DataError(
            f"the batch of step {step} cannot be asked for: a stream (data.streaming) gives its "
            "batches in turn alone; prepare the data, or leave out data.streaming"
        )

    def __next__(self) -> Batch:
        start_s = time.perf_counter()
        if self._thread is None:
            self._begin()
        made = self._made.get()
        if isinstance(made, BaseException):
            self.close()
            raise made
        batch, self._state = made
        self.position += 1
        self.waited_s += time.perf_counter() - start_s
        return batch

    def state(self) -> dict[str, Any]:
        """What JSON keeps: the step, the stream's state behind the batches taken, its files."""
        return {
            "step": self.position,
            "stream": self._state,
            "files": dict(self._rows.files),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on behind the batches that had been taken when `state` was.

        Raises:
          DataError: the stream's files are not those of `state`.
        """
        self.close()
        if "files" in state:  # earlier versions kept none
            require_same(state["files"], self._rows.files)
        self.position, self._state = int(state["step"]), state["stream"]

    def close(self) -> None:
        """Stops the thread; the next `next` starts another."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
        self._thread = None

    def _begin(self) -> None:
        self._made: queue.Queue[Any] = queue.Queue(_PREFETCHED_BATCHES)
        self._stop = threading.Event()
        arguments = (self._state, self.position, self._made, self._stop)
        self._thread = threading.Thread(target=self._make, args=arguments, daemon=True)
        self._thread.start()

    def _make(self, state: Any, step: int, made: queue.Queue[Any], stop: threading.Event) -> None:
        try:
            rows = self._rows.read(state)
            while not stop.is_set():
                found = [next(rows) for _ in range(self._batch_size)]
                first = step * self._batch_size
                batch = self._stack([self._prepare(found[r][0], first + r) for r in self._own])
                _put(made, (batch, found[-1][1]), stop)
                step += 1
        except BaseException as error:  # raised again where the batch is asked for
            _put(made, error, stop)


def _put(made: queue.Queue[Any], thing: Any, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            return made.put(thing, timeout=_POLLED_EVERY_S)
        except queue.Full:
            continue
