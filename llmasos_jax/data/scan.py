"""The first look at documents: what decides whether one is kept, and on which side it stands."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmasos_jax.config.data import DataConfig
from llmasos_jax.config.filters import FiltersConfig
from llmasos_jax.data.duplicates import Signatures, exact_duplicates, exact_key, similar
from llmasos_jax.data.filters import rejected_by
from llmasos_jax.data.text import shown, utf8
from llmasos_jax.errors import DataError, TokenizerError

BLANK, DUPLICATE = "blank", "duplicate"
# What a document may be dropped for, in the order of a report; `Scan.reasons` has places in it.
REASONS = ("", BLANK, *(f"filters.{name}" for name in FiltersConfig.__dataclass_fields__))
_EXAMPLES = 3
_FILTERS_VERSION = _LIKENESS_VERSION = 2  # of `data/filters.py`, and of shingles and bands
_EXAMPLE_CHARS = 60


@dataclass(frozen=True)
class Scan:
    """What was seen of n documents.

    Attributes:
      hashes: uint8 [n, 16], of the text with the seed; zeros for one that is dropped.
      sizes: int64 [n], bytes of UTF-8.
      reasons: uint8 [n], place in `REASONS` of why it is dropped; 0 where it is not.
      likeness: uint8 [n, 16], the same for equal documents, or uint32 [n, permutations], MinHash
        signatures; [n, 0] where duplicates are kept.
    """

    hashes: np.ndarray
    sizes: np.ndarray
    reasons: np.ndarray
    likeness: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name."""
        return dict(vars(self))

    @classmethod
    def joined(cls, scans: Sequence[Scan]) -> Scan:
        """Scans of one range of documents after the other as one."""
        fields = cls.__dataclass_fields__
        return cls(*(np.concatenate([getattr(s, name) for s in scans]) for name in fields))


@dataclass(frozen=True)
class Dropped:
    """Documents that are left out for one reason.

    Attributes:
      documents: how many.
      share: of all documents.
      examples: the first of them: "document", its number; "text", how it begins; for a duplicate
        "of", the number of the document that stays.
    """

    documents: int
    share: float
    examples: tuple[dict[str, Any], ...]


def choice(data: DataConfig) -> dict[str, Any]:
    """What decides which documents are left out, by name; what is off is not in it.

    Whatever is kept of documents that were chosen is kept under this. The measures have a version,
    so that nothing chosen by older ones is taken for the same.

    Example:
      >>> choice(DataConfig(deduplicate="exact"))
      {'data.deduplicate': 'exact'}
    """
    found: dict[str, Any] = {}
    if data.deduplicate != "none":
        found["data.deduplicate"] = data.deduplicate
    if data.deduplicate == "minhash":
        found["data.minhash_threshold"] = data.minhash_threshold
        found["data.minhash_permutations"] = data.minhash_permutations
        found["version of likeness"] = _LIKENESS_VERSION
    filters = {f"data.filters.{n}": v for n, v in vars(data.filters).items() if v is not None}
    if filters:
        filters["version of filters"] = _FILTERS_VERSION
    return found | filters


def scan(
    documents: Sequence[str],
    indices: Iterable[int],
    data: DataConfig,
    advance: Callable[[int], None] = lambda _: None,
) -> Scan:
    """Reads documents once.

    Args:
      documents: the source.
      indices: which of them.
      data: `seed`, `filters` and `deduplicate` are read.
      advance: told of each document.

    Raises:
      DataError: a text is not Unicode; names the document.
      ConfigError: a library is not there.
    """
    salt = str(data.seed).encode()[:64]
    has_filters = data.filters != FiltersConfig()
    likeness_of, empty = _likeness(data)
    hashes, sizes, reasons, likeness = [], [], [], []
    for i in indices:
        text = documents[i]
        try:
            raw = utf8(text)
        except TokenizerError as error:
            raise DataError(f"document {i}: {error}") from error
        reason = BLANK if not text or text.isspace() else ""
        if not reason and has_filters:
            rejected = rejected_by(text, data.filters)
            reason = f"filters.{rejected}" if rejected else ""
        is_kept = not reason
        hashes.append(
            hashlib.blake2b(raw, digest_size=16, key=salt).digest() if is_kept else bytes(16)
        )
        sizes.append(len(raw))
        reasons.append(REASONS.index(reason))
        likeness.append(likeness_of(text) if is_kept else empty)
        advance(1)
    n = len(sizes)
    return Scan(
        np.frombuffer(b"".join(hashes), np.uint8).reshape(n, 16),
        np.array(sizes, np.int64),
        np.array(reasons, np.uint8),
        np.array(likeness, empty.dtype).reshape(n, len(empty)),
    )


def _likeness(data: DataConfig) -> tuple[Callable[[str], np.ndarray], np.ndarray]:
    if data.deduplicate == "exact":
        empty = np.zeros(16, np.uint8)
        return lambda text: np.frombuffer(exact_key(text), np.uint8), empty
    if data.deduplicate == "minhash":
        empty = np.zeros(data.minhash_permutations, np.uint32)
        return Signatures(data.minhash_permutations).of, empty
    empty = np.zeros(0, np.uint8)
    return lambda _: empty, empty


def select(
    seen: Scan, documents: Sequence[str], data: DataConfig
) -> tuple[np.ndarray, dict[str, Dropped]]:
    """Which documents stay, and what was dropped and why.

    Args:
      seen: of all documents.
      documents: the source, of which examples are read.
      data: as in `scan`.

    Returns:
      int64, rising; and the dropped ones by reason, those with any alone.
    """
    kept = np.flatnonzero(seen.reasons == 0)
    groups = {
        name: np.flatnonzero(seen.reasons == place).tolist()
        for place, name in enumerate(REASONS)
        if place
    }
    twins: dict[int, int] = {}
    if data.deduplicate == "exact":
        twins = exact_duplicates(seen.likeness, kept)
    elif data.deduplicate == "minhash":
        twins = similar(seen.likeness, kept, data.minhash_threshold)
    groups[DUPLICATE] = sorted(twins)
    kept = np.setdiff1d(kept, np.array(sorted(twins), np.int64), assume_unique=True)
    count = len(seen.sizes)
    dropped = {
        name: Dropped(
            len(group),
            len(group) / count,
            tuple(_example(i, documents, twins) for i in group[:_EXAMPLES]),
        )
        for name, group in groups.items()
        if group
    }
    return kept, dropped


def _example(index: int, documents: Sequence[str], twins: dict[int, int]) -> dict[str, Any]:
    example: dict[str, Any] = {"document": index, "text": _beginning(documents[index])}
    return example | ({"of": twins[index]} if index in twins else {})


def _beginning(text: str) -> str:
    return shown(" ".join(text[: 10 * _EXAMPLE_CHARS].split()), _EXAMPLE_CHARS)
