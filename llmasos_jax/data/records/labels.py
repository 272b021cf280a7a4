"""Labelled texts as rows: "classify", "classify_tokens", "regress", "similarity".

    classify          {"text": "win a prize", "label": "spam"}         and "text_pair", if two
    regress           {"text": "a dog runs", "text_pair": "a dog sits", "score": 2.5}
    classify_tokens   {"tokens": ["in", "Paris"], "tags": ["none", "place"]}
    similarity        {"anchor": "...", "positive": "...", "negative": "..."}     the last may lack

A record is a row, padded on the right. Texts are read as `Model.classify` and `Model.embed` read
them: by the tokenizer's template, types of tokens included. The texts of "similarity" share a row
as its segments 1, 2 and 3, which do not see each other:

    tokens       [CLS] a a [SEP] [CLS] p p p [SEP] [PAD]
    segment_ids    1   1 1   1     2   2 2 2   2     0
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.config.schema import Config
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.examples import ExampleRows, Examples
from llmasos_jax.data.records import fields
from llmasos_jax.data.records.read import Record
from llmasos_jax.data.records.sides import read_sides
from llmasos_jax.data.tokenizers.inputs import cut_ids, first_pieces, is_encoder, read_ids
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, fingerprint
from llmasos_jax.errors import DataError

# What of a record its side of the split depends on; of "classify" and "regress" beside the field
# `data.text_field`. Pairs with one anchor are on one side.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "classify": ("text_pair",),
    "regress": ("text_pair",),
    "classify_tokens": ("tokens",),
    "similarity": ("anchor",),
}


@dataclass(frozen=True)
class LabelledRow:
    """One example.

    Attributes:
      ids, types: int32 [N], of all its texts, one after the other.
      lengths: of its texts, in tokens; 0 for one that is not there.
      targets: int32 [1], or one for each word [W]; an index of `model.classifier.labels`.
      places: int32 [W], where each word's first token is; None where the row has one target.
      score: of "regress".
      centre: the mean of the scores that are trained on.
    """

    ids: np.ndarray
    types: np.ndarray
    lengths: tuple[int, ...]
    targets: np.ndarray
    places: np.ndarray | None = None
    score: float = 0.0
    centre: float = 0.0


def read_examples(cfg: Config, tokenizer: Tokenizer, cache: Path) -> Examples:
    """Reads the records that `cfg.data` names as examples of `cfg.objective.name`.

    Args:
      cfg: `data`, `objective.name`, `finetune.too_long` and `model` are read.
      tokenizer: the model's.
      cache: not used.

    Raises:
      ConfigError: `data.source` has no records.
      DataError: a record lacks a field, has one that is not read or wrong, or is too long; says
        where.
    """
    del cache
    name = cfg.objective.name
    more = _KEYS[name]
    names = (cfg.data.text_field, *more) if name in ("classify", "regress") else more
    needed, others = _fields(cfg)

    def key(record: Record) -> str:
        # Before the split: without the field that it goes by all records would be one.
        fields.require(record, needed, others, name)
        return _key(names, record)

    sides = read_sides(cfg.data, key)
    reader = _Reader(cfg, tokenizer, Counter(sides.counts))
    read = reader.by_objective[name]
    rows = [read(record) for record in sides.records]
    train = [row for i in sides.train if (row := rows[i]) is not None]
    heldout = [row for i in sides.heldout if (row := rows[i]) is not None]
    centre = float(np.mean([row.score for row in train])) if train else 0.0
    train, heldout = ([dataclasses.replace(r, centre=centre) for r in s] for s in (train, heldout))
    return Examples(
        train=_side(train),
        heldout=_side(heldout),
        digest=_digest(cfg, tokenizer, train, heldout),
        counts=dict(reader.counts),
    )


def empty_rows(documents: Any, sequence_length: int) -> Sequence[LabelledRow]:
    """A row of the shapes of every other, for any text."""
    del documents, sequence_length
    none = np.zeros(0, np.int32)
    return [LabelledRow(none, none, (), np.zeros(1, np.int32), none)]


def prepare(cfg: Config) -> Callable[[LabelledRow, np.random.Generator], Batch]:
    """The NumPy side of the four objectives.

    Args:
      cfg: `data.sequence_length` T, `objective.name` and `model.token_types` are read.

    Returns:
      `prepare(row, rng) -> Batch` with tokens, segment_ids, positions [T]; targets and
      loss_weights [1], of "classify_tokens" [T]; extra["token_types"] (int32 [T]) where the model
      has types; of "regress" extra["score"] and extra["centre"] (float32 []).

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> from llmasos_jax.config.schema import DataConfig
      >>> cfg = Config(ModelConfig(9, 8, 1), data=DataConfig(sequence_length=5))
      >>> ids = np.array([7, 8, 6], np.int32)
      >>> row = LabelledRow(ids, ids * 0, (2, 1), np.array([1], np.int32))
      >>> batch = prepare(cfg)(row, np.random.default_rng(0))
      >>> batch.segment_ids.tolist(), batch.positions.tolist(), batch.targets.tolist()
      ([1, 1, 2, 0, 0], [0, 1, 0, 0, 0], [1])
    """
    length, name = cfg.data.sequence_length, cfg.objective.name
    is_by_word, is_score = name == "classify_tokens", name == "regress"

    def made(row: LabelledRow, rng: np.random.Generator) -> Batch:
        del rng
        numbers = [np.full(n, i + 1) for i, n in enumerate(row.lengths)]
        positions = [np.arange(n) for n in row.lengths]
        targets, weights = row.targets, np.ones(1, np.float32)
        if is_by_word and row.places is not None:
            targets, weights = np.zeros(length, np.int32), np.zeros(length, np.float32)
            targets[row.places], weights[row.places] = row.targets[: len(row.places)], 1.0
        extra = {"token_types": _filled([row.types], length)} if cfg.model.token_types else {}
        if is_score:
            extra |= {"score": np.float32(row.score), "centre": np.float32(row.centre)}
        return Batch(
            tokens=_filled([row.ids], length),
            targets=targets,
            loss_weights=weights,
            segment_ids=_filled(numbers, length),
            positions=_filled(positions, length),
            extra=extra,
        )

    return made


class _Reader:
    """Turns records into rows, and counts what it does not take as it is."""

    def __init__(self, cfg: Config, tokenizer: Tokenizer, counts: Counter[str]) -> None:
        self.cfg, self.tokenizer, self.counts = cfg, tokenizer, counts
        self.labels = cfg.model.classifier.labels
        self.by_objective: Mapping[str, Callable[[Record], LabelledRow | None]] = {
            "classify": self.classify,
            "regress": self.regress,
            "classify_tokens": self.classify_tokens,
            "similarity": self.similarity,
        }

    def classify(self, record: Record) -> LabelledRow | None:
        return self._of_text(record, target=fields.label(record, "label", self.labels))

    def regress(self, record: Record) -> LabelledRow | None:
        return self._of_text(record, score=fields.number(record, "score"))

    def _of_text(self, record: Record, target: int = 0, score: float = 0.0) -> LabelledRow | None:
        text = fields.text(record, self.cfg.data.text_field)
        pair = None
        if record.values.get("text_pair") is not None:
            pair = fields.text(record, "text_pair")
            if not is_encoder(self.cfg.model):
                raise DataError(
                    f'{record.where}: "text_pair" is for encoders, and a decoder '
                    f'(model.causal=True) reads one text; write both into "text"'
                )
        found = self._fitted(record, [read_ids(self.cfg.model, self.tokenizer, text, pair)])
        if found is None:
            return None
        return dataclasses.replace(found, targets=np.array([target], np.int32), score=score)

    def classify_tokens(self, record: Record) -> LabelledRow | None:
        words = fields.words(record, "tokens")
        tags = fields.labels_of(record, "tags", self.labels, len(words), "tokens")
        ids, types, places = first_pieces(self.cfg.model, self.tokenizer, words)
        for number, place in enumerate(places):
            if place is None:
                raise DataError(
                    f"{record.where}: the tokenizer leaves out word {number}, "
                    f"{words[number]!r}, or joins it with its neighbours, so that its tag has no "
                    "token; take out the word and its tag"
                )
        row = self._fitted(record, [(ids, types)])
        if row is None:
            return None
        # What stands after a text stays when it is cut, so a place may hold another token.
        kept = cut_ids(self.tokenizer, ids, list(range(len(ids))), len(row.ids))[1]
        taken = [(p, t) for p, t in zip(places, tags, strict=True) if p in kept]
        if len(taken) < len(tags):
            self.counts["tags of words that were cut"] += len(tags) - len(taken)
        targets = np.array([t for _, t in taken], np.int32)
        return dataclasses.replace(
            row, targets=targets, places=np.array([p for p, _ in taken], np.int32)
        )

    def similarity(self, record: Record) -> LabelledRow | None:
        names = ["anchor", "positive"]
        if record.values.get("negative") is not None:
            names.append("negative")
        read = partial(read_ids, self.cfg.model, self.tokenizer)
        return self._fitted(record, [read(fields.text(record, name)) for name in names])

    def _fitted(
        self, record: Record, texts: list[tuple[list[int], list[int]]]
    ) -> LabelledRow | None:
        """The texts of a row; None for one that is dropped."""
        for ids, _ in texts:
            if not ids:
                raise DataError(f"{record.where}: a text has no tokens; take the record out")
        most, total = self.cfg.data.sequence_length, sum(len(ids) for ids, _ in texts)
        if total > most:
            what = self.cfg.finetune.too_long
            if what == "error":
                raise DataError(
                    f"{record.where}: {total} tokens, and data.sequence_length={most}; raise it "
                    f"(model.context_length={self.cfg.model.context_length} is the most), or set "
                    'finetune.too_long="truncate" to cut the end of texts, "drop" to leave such '
                    "records out"
                )
            self.counts[f"{'dropped' if what == 'drop' else 'cut'}, too long"] += 1
            if what == "drop":
                return None
            limits = _limits([len(ids) for ids, _ in texts], most)
            texts = [
                cut_ids(self.tokenizer, *text, limit)
                for text, limit in zip(texts, limits, strict=True)
            ]
        types = [t for _, types in texts for t in types]
        return LabelledRow(
            ids=np.array([i for ids, _ in texts for i in ids], np.int32),
            # Models with one row of types or none have no other type.
            types=np.array(types, np.int32) * (self.cfg.model.token_types > 1),
            lengths=tuple(len(ids) for ids, _ in texts),
            targets=np.zeros(1, np.int32),
        )


def _limits(lengths: Sequence[int], most: int) -> list[int]:
    """How many tokens of each text fit into a row: the longest are cut to one length.

    Example:
      >>> _limits([3, 90, 50], 43)
      [3, 20, 20]
    """
    limits, left = [0] * len(lengths), most
    for count, i in enumerate(sorted(range(len(lengths)), key=lambda i: lengths[i])):
        limits[i] = min(lengths[i], left // (len(lengths) - count))
        left -= limits[i]
    return limits


def _fields(cfg: Config) -> tuple[Sequence[str], Sequence[str]]:
    """The fields that a record has to have, and those that it may have."""
    text = cfg.data.text_field
    return {
        "classify": ((text, "label"), ("text_pair",)),
        "regress": ((text, "score"), ("text_pair",)),
        "classify_tokens": (("tokens", "tags"), ()),
        "similarity": (("anchor", "positive"), ("negative",)),
    }[cfg.objective.name]


def _key(names: Sequence[str], record: Record) -> str:
    return json.dumps([record.values.get(name) for name in names], default=str)


def _side(rows: list[LabelledRow]) -> ExampleRows:
    return ExampleRows(rows, sum(len(row.ids) for row in rows), len(rows))


def _filled(parts: Sequence[np.ndarray], size: int) -> np.ndarray:
    filled = np.zeros(size, np.int32)
    if parts:
        whole = np.concatenate(parts)
        filled[: len(whole)] = whole
    return filled


def _digest(cfg: Config, tokenizer: Tokenizer, *sides: Sequence[LabelledRow]) -> str:
    """Of what the rows hold, which all that made them went into; and of the tokenizer."""
    digest = hashlib.sha256(f"{cfg.objective.name} {fingerprint(tokenizer)}".encode())
    for rows in sides:
        digest.update(f"side {len(rows)}".encode())
        for row in rows:
            digest.update(repr((row.lengths, row.score)).encode())
            for part in (row.ids, row.types, row.targets, row.places):
                digest.update(b"-" if part is None else part.tobytes())
    return digest.hexdigest()
