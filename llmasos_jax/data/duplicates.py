"""Documents that are there already: equal ones by a hash, similar ones by MinHash."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Any

import numpy as np

from llmasos_jax.data.filters import UNSEPARATED
from llmasos_jax.errors import ConfigError

WORDS = 5  # of a shingle
_WORD = re.compile(rf"[{UNSEPARATED}]|(?:(?![{UNSEPARATED}])\w)+")


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

    A text of fewer words is one shingle.

    Example:
      >>> sorted(shingles("The cat, the dog and I"))
      ['cat the dog and i', 'the cat the dog and']
      >>> sorted(shingles("春眠不觉晓，处"))
      ['春 眠 不 觉 晓', '眠 不 觉 晓 处']
    """
    words = _WORD.findall(normalised(text))
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

    Candidates come from locality-sensitive hashing (datasketch's `MinHashLSH`); one counts if the
    share of equal numbers in the two signatures, an estimate of the Jaccard similarity of their
    shingles, is at least `threshold`. A document is compared with those that are kept, so that each
    dropped one is similar to one that stays: chains of small changes are not dropped whole.

    Args:
      signatures: uint32 [documents, permutations].
      indices: the documents to look at, rising.
      threshold: of the similarity.
    """
    permutations = signatures.shape[1]
    index = _datasketch().MinHashLSH(threshold=threshold, num_perm=permutations)
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
