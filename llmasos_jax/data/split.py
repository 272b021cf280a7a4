"""Which documents are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmasos_jax.config.schema import DataConfig
from llmasos_jax.data.scan import BLANK, Dropped, Scan, scan, select
from llmasos_jax.errors import DataError


@dataclass(frozen=True)
class Split:
    """Indices of documents.

    Attributes:
      train: in the order of the documents.
      heldout: in the order of the documents.
      by_hash: `train` in the order of the hashes: a shuffle that the files' order does not change.
      digest: hash of the texts that are trained on, in `by_hash` order.
      dropped: what is on neither side, by reason.
    """

    train: list[int]
    heldout: list[int]
    by_hash: list[int]
    digest: str
    dropped: Mapping[str, Dropped] = field(default_factory=dict)


@dataclass(frozen=True)
class Sides:
    """Indices of documents, int64, rising.

    Attributes:
      train, heldout: what is kept.
      dropped: the rest, by reason.
    """

    train: np.ndarray
    heldout: np.ndarray
    dropped: Mapping[str, Dropped]


def split_documents(documents: Sequence[str], data: DataConfig) -> Split:
    """Holds out `heldout_fraction` of the documents, at least one; drops those without text.

    Those that `data.filters` and `data.deduplicate` leave out are on neither side. A document's
    side depends on its text, the seed and the other texts, not on its place or name. Equal
    documents are on one side, so nothing held out is also trained on.

    Raises:
      DataError: every document is empty or left out, a text is not Unicode, or there is one
        document alone.

    Example:
      >>> split = split_documents(["a", "b", "", "c", "a"], DataConfig(heldout_fraction=0.3))
      >>> sorted(split.train + split.heldout), len(split.heldout) > 0
      ([0, 1, 3, 4], True)
    """
    seen = scan(documents, range(len(documents)), data)
    sides = divide(seen, documents, data)
    train = sides.train.tolist()
    by_hash = sorted(train, key=lambda i: seen.hashes[i].tobytes())
    return Split(
        train=train,
        heldout=sides.heldout.tolist(),
        by_hash=by_hash,
        digest=hashlib.sha256(b"".join(seen.hashes[i].tobytes() for i in by_hash)).hexdigest(),
        dropped=sides.dropped,
    )


def divide(seen: Scan, documents: Sequence[str], data: DataConfig) -> Sides:
    """The same from what `scan` saw of all documents.

    Raises:
      DataError: as `split_documents`.
    """
    kept, dropped = select(seen, documents, data)
    if not kept.size:
        if set(dropped) == {BLANK}:
            what = f"{len(documents)} documents and all are empty; expected text"
        else:
            reasons = ", ".join(f"{d.documents:,} by {name}" for name, d in dropped.items())
            what = f"no document left ({reasons}); loosen data.filters"
        raise DataError(f'data.source="{data.source}" has {what}')
    hashes = np.ascontiguousarray(seen.hashes[kept]).view("S16").ravel()
    if data.heldout_fraction == 0:
        return Sides(kept, kept[:0], dropped)
    distinct = np.unique(hashes)
    if len(distinct) < 2:
        raise DataError(
            f'data.source="{data.source}" has one document with text; a held-out split takes '
            "two: give more "
            "documents, or set data.heldout_fraction=0 to train on all and evaluate on none"
        )
    count = max(1, min(len(distinct) - 1, round(data.heldout_fraction * len(distinct))))
    is_heldout = hashes <= distinct[count - 1]
    return Sides(kept[~is_heldout], kept[is_heldout], dropped)
