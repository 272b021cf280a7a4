"""Several texts in the place of one: whose row comes where, by weights alone.

The weights become whole numbers; 2 of `code` beside 1 of `prose` are a stretch of three rows that
repeats without end, each part's rows spread evenly in it:

    row      0 1 2 | 3 4 5 | ...
    part     c p c | c p c |         c code, p prose
    its row  0 0 1 | 2 1 3 |         the part's own endless sequence: epoch after epoch

So the row at any place is found without those before it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.config.data import DataConfig, MixturePart
from llmasos_jax.data.corpus import Corpus, open_corpus
from llmasos_jax.data.overlap import trained_elsewhere, without
from llmasos_jax.data.sources import Documents, documents
from llmasos_jax.data.split import split_documents
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import DataError

# A stretch is a table in memory, so weights that are no small fractions become millionths.
_LONGEST = 1_000_000
_DENOMINATOR = 1000


@dataclass(frozen=True)
class Both:
    """What the parts have together on one side of the split.

    Attributes:
      num_tokens: of one epoch of each part.
      num_documents: in all parts.
    """

    num_tokens: int
    num_documents: int


@dataclass(frozen=True)
class MixedCorpus:
    """Token ids of the parts of a mixture.

    Attributes:
      parts: each with its own split, in the order of the config; what one trains on none holds out.
      shares: rows of each part in a stretch.
      digest: hash of the parts' digests and of the shares.
      trained_elsewhere: of a part the held-out documents that it has no more, as another trains on
        them; parts with any alone.
    """

    parts: Mapping[str, Corpus]
    shares: Mapping[str, int]
    digest: str
    trained_elsewhere: Mapping[str, int] = field(default_factory=dict)

    @property
    def train(self) -> Both:
        """What is trained on."""
        return _both([part.train for part in self.parts.values()])

    @property
    def heldout(self) -> Both:
        """What is held out."""
        return _both([part.heldout for part in self.parts.values()])


def _both(sides: Sequence[Any]) -> Both:
    tokens = sum(side.num_tokens for side in sides)
    return Both(tokens, sum(side.num_documents for side in sides))


def part_config(data: DataConfig, part: MixturePart) -> DataConfig:
    """The part as the data of a run of its own."""
    values = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    del values["weight"]
    return dataclasses.replace(data, mixture={}, **values)


def open_mixture(
    data: DataConfig, tokenizer: Tokenizer, cache: Path, *, by_sentence: bool = False
) -> MixedCorpus:
    """Tokenises each part, or finds that done; weights are no part of what is kept.

    Raises:
      DataError: what `documents` and `open_corpus` raise, with the part's name.
    """
    shares = whole_shares({name: part.weight for name, part in data.mixture.items()})
    corpora: dict[str, Corpus] = {}
    for name, part in data.mixture.items():
        own = part_config(data, part)
        with _named(name):
            texts = documents(own, cache)
            corpora[name] = open_corpus(texts, tokenizer, own, cache, by_sentence=by_sentence)
            if corpora[name].train.num_tokens == 0:
                raise DataError("no token to train on; give it longer documents")
    said = sorted((name, corpora[name].digest, shares[name]) for name in corpora)
    digest = hashlib.sha256(repr(said).encode()).hexdigest()
    parts = {name: _held_out_everywhere(name, corpora, cache) for name in corpora}
    count = lambda corpus: corpus.heldout.num_documents
    fewer = {n: count(corpora[n]) - count(part) for n, part in parts.items()}
    return MixedCorpus(parts, shares, digest, {n: number for n, number in fewer.items() if number})


@contextlib.contextmanager
def _named(part: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"data.mixture.{part}: {error}") from error


def _held_out_everywhere(name: str, corpora: Mapping[str, Corpus], cache: Path) -> Corpus:
    """The part without those held-out documents that another part trains on."""
    corpus = corpora[name]
    trained = trained_elsewhere(name, corpora, cache)
    if not trained.size:
        return corpus
    return dataclasses.replace(corpus, heldout=without(corpus.heldout, trained))


def whole_shares(weights: Mapping[str, float]) -> dict[str, int]:
    """Weights as whole numbers without a common divisor.

    Weights that are fractions with a denominator of at most 1000 are exact; others are rounded to
    millionths of their sum.

    Example:
      >>> whole_shares({"code": 2.0, "prose": 1.0}), whole_shares({"a": 0.7, "b": 0.3})
      ({'code': 2, 'prose': 1}, {'a': 7, 'b': 3})
    """
    near = {name: Fraction(w).limit_denominator(_DENOMINATOR) for name, w in weights.items()}
    common = math.lcm(*(value.denominator for value in near.values()))
    counts = {name: int(value * common) for name, value in near.items()}
    total = sum(weights.values())
    is_exact = all(math.isclose(near[name], w, rel_tol=1e-9) for name, w in weights.items())
    if not is_exact or sum(counts.values()) // math.gcd(*counts.values()) > _LONGEST:
        counts = {n: max(1, round(w / total * _LONGEST)) for n, w in weights.items()}
    divisor = math.gcd(*counts.values())
    return {name: count // divisor for name, count in counts.items()}


class MixedRows(Sequence[Any]):
    """The parts' endless sequences as one.

    Args:
      parts: of each an endless sequence of rows.
      shares: rows of each in a stretch, in the same order.

    Example:
      >>> rows = MixedRows([["c0", "c1", "c2", "c3"], ["p0", "p1"]], [2, 1])
      >>> [rows[i] for i in range(6)]
      ['c0', 'p0', 'c1', 'c2', 'p1', 'c3']
    """

    def __init__(self, parts: Sequence[Any], shares: Sequence[int]) -> None:
        self._parts, self._shares = parts, shares
        # Row j of n stands in the middle of the j-th of n equal pieces of the stretch. A quotient
        # of small whole numbers is the same double everywhere, so ties are ties everywhere.
        middles = [(2 * np.arange(share) + 1) / (2 * share) for share in shares]
        part_k = np.repeat(np.arange(len(shares)), shares)
        number_k = np.concatenate([np.arange(share) for share in shares])
        order = np.argsort(np.concatenate(middles), kind="stable")
        self._part_k, self._number_k = part_k[order], number_k[order]

    def __len__(self) -> int:
        return sys.maxsize

    def place(self, index: int) -> tuple[int, int]:
        """The part that a row is of, and its number in the part's own sequence."""
        stretch, k = divmod(index, len(self._part_k))
        part = int(self._part_k[k])
        return part, stretch * self._shares[part] + int(self._number_k[k])

    def __getitem__(self, index: Any) -> Any:
        part, number = self.place(index)
        return self._parts[part][number]


class TrainingDocuments(Documents):
    """What a tokenizer of a mixture is trained on: documents that no part holds out.

    They are read when they are asked for, so that a tokenizer from a cache reads none.

    Args:
      data: the mixture.
      cache: as `documents` takes it.
    """

    def __init__(self, data: DataConfig, cache: Path) -> None:
        self._names = list(data.mixture)
        self._configs = [part_config(data, part) for part in data.mixture.values()]
        self._sources: list[Documents] = []
        for name, config in zip(self._names, self._configs, strict=True):
            with _named(name):
                self._sources.append(documents(config, cache))
        key = hashlib.sha256("".join(source.key for source in self._sources).encode())
        super().__init__(self._read, 0, f"mixture-{key.hexdigest()}")

    def __len__(self) -> int:
        return len(self._places)

    @functools.cached_property
    def _places(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        parts = zip(self._names, self._sources, self._configs, strict=True)
        for number, (name, source, config) in enumerate(parts):
            with _named(name):
                found += [(number, index) for index in split_documents(source, config).train]
        return found

    def _read(self, index: int) -> str:
        part, document = self._places[index]
        return self._sources[part][document]
