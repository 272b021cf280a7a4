"""Which documents are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from llmasos_jax.config.schema import DataConfig
from llmasos_jax.data.text import utf8
from llmasos_jax.errors import DataError, TokenizerError


@dataclass(frozen=True)
class Split:
    """Indices of documents.

    Attributes:
      train: in the order of the documents.
      heldout: in the order of the documents.
      by_hash: `train` in the order of the hashes: a shuffle that the files' order does not change.
      digest: hash of the texts that are trained on, in `by_hash` order.
    """

    train: list[int]
    heldout: list[int]
    by_hash: list[int]
    digest: str


def split_documents(documents: Sequence[str], data: DataConfig) -> Split:
    """Holds out `heldout_fraction` of the documents, at least one; drops those without text.

    A document's side depends on its text, the seed and the other texts, not on its place or name.
    Equal documents are on one side, so nothing held out is also trained on.

    Raises:
      DataError: every document is empty, a text is not Unicode, or there is one document alone.

    Example:
      >>> split = split_documents(["a", "b", "", "c", "a"], DataConfig(heldout_fraction=0.3))
      >>> sorted(split.train + split.heldout), len(split.heldout) > 0
      ([0, 1, 3, 4], True)
    """
    hashes = _hashes(documents, data.seed)
    distinct = sorted(set(hashes.values()))
    if not distinct:
        raise DataError(
            f'data.source="{data.source}" has {len(documents)} documents and all are empty; '
            "expected text"
        )
    if data.heldout_fraction == 0:
        kept: set[bytes] = set()
    else:
        if len(distinct) < 2:
            raise DataError(
                f'data.source="{data.source}" has one document with text; a held-out split takes '
                "two: give more "
                "documents, or set data.heldout_fraction=0 to train on all and evaluate on none"
            )
        count = max(1, min(len(distinct) - 1, round(data.heldout_fraction * len(distinct))))
        kept = set(distinct[:count])
    train = [i for i, h in hashes.items() if h not in kept]
    by_hash = sorted(train, key=lambda i: hashes[i])
    return Split(
        train=train,
        heldout=[i for i, h in hashes.items() if h in kept],
        by_hash=by_hash,
        digest=hashlib.sha256(b"".join(hashes[i] for i in by_hash)).hexdigest(),
    )


def _hashes(documents: Sequence[str], seed: int) -> dict[int, bytes]:
    """Hash of each document that has any text, by its index."""
    salt = str(seed).encode()
    hashes: dict[int, bytes] = {}
    for i in range(len(documents)):
        text = documents[i]
        if not text.strip():
            continue
        try:
            hashes[i] = hashlib.blake2b(utf8(text), digest_size=16, key=salt[:64]).digest()
        except TokenizerError as error:
            raise DataError(f"document {i}: {error}") from error
    return hashes
