"""Which records are trained on and which are held out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llmasos_jax.config.schema import DataConfig
from llmasos_jax.data.records.read import Record, canonical, heldout_records, read_records
from llmasos_jax.data.split import split_documents
from llmasos_jax.errors import DataError


@dataclass(frozen=True)
class Sides:
    """Records of both sides of the split.

    Attributes:
      records: all, in the order of the files, those of `data.heldout_path` last: wrong ones are to
        be found in this order.
      train: places in `records`, in the order of the records' hashes: a shuffle that the order of
        the files does not change.
      heldout: places in `records`, in the order of a hash of what their side depends on: files are
        often sorted, and an evaluation may take the first batches alone.
      counts: of what was left out, by why.
    """

    records: list[Record]
    train: list[int]
    heldout: list[int]
    counts: Mapping[str, int] = field(default_factory=dict)


def read_sides(data: DataConfig, key: Callable[[Record], str] = canonical) -> Sides:
    """Reads the records of a config and holds some out.

    A record's side depends on its fields, the seed and the other records, as for documents; equal
    records are on one side. With `data.heldout_path` all records there are held out, and those of
    `data.path` that stand there, too, are left out of training.

    Args:
      data: where the records are.
      key: what of a record its side depends on; the rest of it makes no other record.

    Raises:
      ConfigError: the source is text.
      DataError: a line is no record, or none is left to train on.
    """
    records, apart = read_records(data), heldout_records(data)
    texts = [key(record) for record in records]
    if apart is None:
        split = split_documents(texts, data)
        return Sides(records, split.by_hash, _shuffled(split.heldout, texts))
    held = {key(record) for record in apart}
    left = [i for i, text in enumerate(texts) if text not in held]
    if not left:
        raise DataError(
            f"every record of data.path={data.path} is in data.heldout_path={data.heldout_path}, "
            "too; hold out others than those that are trained on"
        )
    whole = dataclasses.replace(data, heldout_fraction=0.0)
    split = split_documents([texts[i] for i in left], whole)
    counts = {"held out, too": len(records) - len(left)} if len(left) < len(records) else {}
    both = records + apart
    heldout = _shuffled(range(len(records), len(both)), [key(record) for record in both])
    return Sides(both, [left[i] for i in split.by_hash], heldout, counts)


def _shuffled(places: Iterable[int], texts: Sequence[str]) -> list[int]:
    """The places in the order of their texts' hashes, which that of the files does not change."""
    return sorted(places, key=lambda i: hashlib.sha256(texts[i].encode()).digest())
