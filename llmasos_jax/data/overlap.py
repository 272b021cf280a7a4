"""Documents that one part of a mixture holds out and another trains on: those no part holds out.

Each part has its own split, so that its ids are the same beside any other part. A text that stands
in two parts may then be on another side in each, and a loss over it would be no held-out loss.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from llmasos_jax.data.files import write_atomically
from llmasos_jax.data.packing import TokenDocuments
from llmasos_jax.data.prepared.read import Corpus
from llmasos_jax.progress import Progress

_VERSION = 1
_SAID_EVERY_S = 30.0


def trained_elsewhere(name: str, parts: Mapping[str, Corpus], cache: Path) -> np.ndarray:
    """Held-out documents of a part whose ids are those of a document that another one trains on.

    Args:
      name: of the part.
      parts: all parts, made with one tokenizer.
      cache: folder where the answer is kept, under the parts' digests.

    Returns:
      int64, rising: places in the part's `heldout`.
    """
    own, others = parts[name], [part for other, part in parts.items() if other != name]
    heldout = own.heldout
    if not others or not heldout.num_documents:
        return np.zeros(0, np.int64)
    said = (_VERSION, own.digest, sorted(part.digest for part in others))
    path = cache / f"overlap-{hashlib.sha256(repr(said).encode()).hexdigest()[:16]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or damaged
        return np.load(path, allow_pickle=False)
    wanted: dict[bytes, list[int]] = {}
    for number, key in _keys(heldout, range(heldout.num_documents)):
        wanted.setdefault(key, []).append(number)
    lengths = np.unique(np.diff(heldout.offsets))
    found: set[int] = set()
    for part in others:
        # Few are as long as one that is held out where documents are long; the rest is not read.
        near = np.flatnonzero(np.isin(np.diff(part.train.offsets), lengths))
        with Progress("Comparing", total=len(near), say_every_s=_SAID_EVERY_S) as progress:
            for _, key in _keys(part.train, near):
                found.update(wanted.get(key, ()))
                progress.advance(1)
    answer, file = np.array(sorted(found), np.int64), io.BytesIO()
    np.save(file, answer)
    write_atomically(path, file.getvalue())
    return answer


def _keys(documents: TokenDocuments, numbers: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    for number in numbers:
        start, stop = documents.offsets[number : number + 2].tolist()
        ids = np.asarray(documents.ids[start:stop], dtype="<u4")
        yield number, hashlib.blake2b(ids.tobytes(), digest_size=16).digest()


def without(documents: TokenDocuments, numbers: np.ndarray) -> TokenDocuments:
    """The other documents, in memory.

    Args:
      documents: some.
      numbers: int64, which of them are left out.

    Example:
      >>> some = TokenDocuments.from_lists([[5, 6], [7], [8, 9]])
      >>> rest = without(some, np.array([1]))
      >>> rest.ids.tolist(), rest.offsets.tolist()
      ([5, 6, 8, 9], [0, 2, 4])
    """
    offsets = np.asarray(documents.offsets)
    kept = np.setdiff1d(np.arange(documents.num_documents), numbers, assume_unique=True)
    pieces = [np.asarray(documents.ids[offsets[i] : offsets[i + 1]]) for i in kept]
    ids = np.concatenate(pieces) if pieces else np.zeros(0, np.uint32)
    new = np.concatenate([[0], np.cumsum(np.diff(offsets)[kept])]).astype(np.int64)
    if documents.sentences is None:
        return TokenDocuments(ids, new)
    ends = np.asarray(documents.sentences)
    # Of each document the borders after its first token, moved to where the document is now.
    borders = np.searchsorted(ends, offsets, side="right")
    moved = [
        ends[borders[i] : borders[i + 1]] - offsets[i] + start
        for i, start in zip(kept, new, strict=False)
    ]
    return TokenDocuments(ids, new, np.concatenate([np.zeros(1, np.int64), *moved]))
