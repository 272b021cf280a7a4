"""Documents that are there already: equal ones by a hash, similar ones by MinHash."""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from typing import Any

import numpy as np

from llmasos_jax.data.words import UNSEPARATED, word
from llmasos_jax.errors import ConfigError

WORDS = 5  # of a shingle
# The chance that two documents, as similar as the threshold, are compared at all.
_RECALL = 0.99


def normalised(text: str) -> str:
    r"""A text by which two documents are the same: NFKC, without case, one blank for blanks.

    Example:
      >>> normalised(" The\tcat\n"), normalised("ＴＨＥ cat")
      ('the cat', 'the cat')
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def exact_key(text: str) -> bytes:
    """16 bytes that documents with the same normalised text share."""
    return hashlib.blake2b(normalised(text).encode("utf-8"), digest_size=16).digest()


def shingles(text: str) -> set[str]:
    """Runs of five words; where words are not separated, each character is one.

    A text of fewer words is one shingle, and so is one without any (marks and signs alone).

    Example:
      >>> sorted(shingles("The cat, the dog and I"))
      ['cat the dog and i', 'the cat the dog and']
      >>> sorted(shingles("春眠不觉晓，处"))
      ['春 眠 不 觉 晓', '眠 不 觉 晓 处']
    """
    plain = normalised(text)
    words = _words().findall(plain) or [plain]
    return {" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1))}


class Signatures:
    """Makes MinHash signatures (Broder, 1997) of texts.

    Args:
      permutations: numbers in a signature.

    Raises:
      ConfigError: datasketch is not installed.
    """

    def __init__(self, permutations: int) -> None:
        self._empty = _empty_signature(permutations)

    def of(self, text: str) -> np.ndarray:
        """uint32 [permutations]."""
        minhash = self._empty.copy()
        minhash.update_batch(piece.encode("utf-8") for piece in shingles(text))
        return minhash.hashvalues.astype(np.uint32)


def exact_duplicates(keys: np.ndarray, indices: np.ndarray) -> dict[int, int]:
    """Documents whose key an earlier one has, each with that one.

    Args:
      keys: bytes [documents].
      indices: the documents to look at, rising.
    """
    first: dict[bytes, int] = {}
    found: dict[int, int] = {}
    for i in indices.tolist():
        earlier = first.setdefault(keys[i].tobytes(), i)
        if earlier != i:
            found[i] = earlier
    return found


def similar(signatures: np.ndarray, indices: np.ndarray, threshold: float) -> dict[int, int]:
    """Documents similar to an earlier one that is kept, each with the most similar such one.

    Candidates come from locality-sensitive hashing (datasketch's `MinHashLSH`), cut so that of
    pairs at the threshold at most one in a hundred is missed; one counts if the share of equal
    numbers in the two signatures, an estimate of the Jaccard similarity of their shingles, is at
    least `threshold`. A document is compared with those that are kept, so that each dropped one is
    similar to one that stays: chains of small changes are not dropped whole.

    Args:
      signatures: uint32 [documents, permutations].
      indices: the documents to look at, rising.
      threshold: of the similarity.
    """
    permutations = signatures.shape[1]
    index = _datasketch().MinHashLSH(num_perm=permutations, params=bands(threshold, permutations))
    model = _empty_signature(permutations)
    found: dict[int, int] = {}
    for i in indices.tolist():
        minhash = model.copy()
        minhash.hashvalues = signatures[i].astype(model.hashvalues.dtype)
        near = np.array(sorted(index.query(minhash)), dtype=np.int64)
        share = (signatures[near] == signatures[i]).mean(axis=1) if near.size else np.zeros(1)
        if share.max() >= threshold:
            found[i] = int(near[share.argmax()])
        else:
            index.insert(i, minhash)
    return found


def bands(threshold: float, permutations: int) -> tuple[int, int]:
    """How many bands of how many numbers each a signature is cut into.

    Documents are compared if one band is equal in both, whose chance is 1 - (1 - s**rows)**bands at
    a similarity s (Leskovec et al., 2014, Mining of Massive Datasets, section 3.4). The longest
    bands that find enough of those at the threshold, as longer ones compare fewer others.

    Example:
      >>> bands(0.8, 128), bands(1.0, 128), bands(0.2, 2)
      ((21, 6), (2, 64), (2, 1))
    """
    for rows in range(permutations // 2, 1, -1):
        count = permutations // rows
        if 1 - (1 - threshold**rows) ** count >= _RECALL:
            return count, rows
    return permutations, 1


@functools.cache
def _words() -> re.Pattern[str]:
    return re.compile(rf"[{UNSEPARATED}]|{word(underscores=True)}")


def _hash32(raw: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(raw, digest_size=4).digest(), "little")


def _empty_signature(permutations: int) -> Any:
    # The scheme is named, for signatures of two schemes do not compare.
    return _datasketch().MinHash(num_perm=permutations, hashfunc=_hash32, scheme="affine32")


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError as error:
        raise ConfigError(
            'data.deduplicate="minhash" needs datasketch; install it with: '
            "pip install 'llmasos-jax[data]'"
        ) from error
    return datasketch
