"""What a run reads: where text comes from, in which shares, and how it is cut."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from llmasos_jax.config.filters import FiltersConfig, check_filters
from llmasos_jax.config.require import require_finite, require_one_of, require_positive
from llmasos_jax.errors import ConfigError

PACKING = ("concatenate", "first_fit")
DEDUPLICATE = ("none", "exact", "minhash")
# A part's name stands in config paths and in names of metrics.
_PART_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class MixturePart:
    """One text of a mixture; its fields mean what those of `DataConfig` mean.

    Attributes:
      weight: its rows are so many for each `weight` rows of the other parts, in every stretch of
        the run; 3 beside 1 is three quarters.
      source, path, subset, split, text_field, max_documents: of this part.
    """

    weight: float = 1.0
    source: str = "text"
    path: str | None = None
    subset: str | None = None
    split: str = "train"
    text_field: str = "text"
    max_documents: int | None = None


@dataclass(frozen=True)
class DataConfig:
    """Where text comes from and how it is cut.

    Attributes:
      source: "stdlib" (the Python standard library's own source), "text", "jsonl", "parquet",
        "arrow", "huggingface", "arrayrecord" (records are JSON objects), "arrayrecord_text"
        (records are the texts), "prepared" (a folder of `llmasos data prepare`), or
        "package.module:name".
      path: file, folder or glob; for "huggingface" a name on the hub, or a folder.
      subset: of a dataset of "huggingface" that has several; None takes its only one.
      split: of a dataset of "huggingface": "train", "validation", "train[:1000]", ...
      text_field: the field that holds the text in all but "stdlib", "text", "arrayrecord_text".
      sequence_length: tokens that the model reads in one sequence.
      heldout_fraction: share of the documents kept for evaluation, never trained on.
      heldout_path: file, folder or glob of records kept for evaluation, in the place of a share of
        those of `path`; for objectives that learn from records.
      max_documents: read at most so many; None reads all.
      seed: fixes the order and the split.
      streaming: reads "huggingface", "jsonl" or "parquet" as it comes, in its own order, without
        tokenising it first; for text of which a run reads only a part.
      heldout_documents: of a stream the first so many are held out, in the place of a share.
      packing: "concatenate" fills every row and cuts documents at its end; "first_fit" keeps a
        document that is no longer than a row in one row, beside others that fit, at the cost of
        some padding (`data/fitting.py`).
      deduplicate: "none"; "exact" leaves out a document whose text, but for case and blanks, an
        earlier one has; "minhash" one that is similar to an earlier one (Broder, 1997; needs the
        extra `data`). Of a mixture each part is looked at alone.
      minhash_threshold: Jaccard similarity of runs of five words from which two are similar.
      minhash_permutations: numbers that estimate it; its standard error is at most
        0.5 / sqrt(permutations).
      filters: documents to leave out for what they look like.
      mixture: several texts in the place of one, each with a name and a weight:
        `{"code": {"source": "stdlib", "weight": 3.0}, "prose": {"path": "texts", "weight": 1.0}}`.
    """

    source: str = "stdlib"
    path: str | None = None
    subset: str | None = None
    split: str = "train"
    text_field: str = "text"
    sequence_length: int = 256
    heldout_fraction: float = 0.02
    heldout_path: str | None = None
    max_documents: int | None = None
    seed: int = 0
    streaming: bool = False
    heldout_documents: int = 256
    packing: str = "concatenate"
    deduplicate: str = "none"
    minhash_threshold: float = 0.8
    minhash_permutations: int = 128
    filters: FiltersConfig = field(default_factory=FiltersConfig)
    # Not hashed, for a dict has no hash; it is compared.
    mixture: dict[str, MixturePart] = field(default_factory=dict, hash=False)


def check_data(data: DataConfig) -> None:
    """Raises ConfigError for the first field of `data` alone that breaks a rule."""
    require_finite("data", data)
    for path, value in (
        ("data.sequence_length", data.sequence_length),
        ("data.max_documents", data.max_documents),
    ):
        if value is not None:
            require_positive(path, value)
    if not 0.0 <= data.heldout_fraction < 1.0:
        raise ConfigError(
            f"data.heldout_fraction={data.heldout_fraction} must be at least 0 and below 1"
        )
    require_one_of("data.packing", data.packing, PACKING)
    require_one_of("data.deduplicate", data.deduplicate, DEDUPLICATE)
    if data.minhash_permutations < 2:
        raise ConfigError(
            f"data.minhash_permutations={data.minhash_permutations} must be at least 2; 128 "
            "estimate the similarity to about 0.04"
        )
    if not 0.0 < data.minhash_threshold <= 1.0:
        raise ConfigError(
            f"data.minhash_threshold={data.minhash_threshold} must be above 0 and at most 1"
        )
    check_filters(data.filters)
    if data.heldout_documents < 0:
        raise ConfigError(f"data.heldout_documents={data.heldout_documents} must be at least 0")
    _check_streaming(data)
    _check_mixture(data)


def _check_streaming(data: DataConfig) -> None:
    others = ("mixture", "max_documents", "heldout_path", "packing", "deduplicate", "filters")
    for name in others:
        if data.streaming and getattr(data, name) != getattr(DataConfig(), name):
            raise ConfigError(
                f"data.{name} does not go with data.streaming, which reads one text as it comes; "
                "leave one of them out"
            )


def _check_mixture(data: DataConfig) -> None:
    for name, part in data.mixture.items():
        path = f"data.mixture.{name}"
        if not _PART_NAME.fullmatch(name):
            raise ConfigError(
                f'data.mixture has a part "{name}"; a name is letters, digits, "_" and "-", and '
                "begins with a letter"
            )
        require_finite(path, part)
        require_positive(f"{path}.weight", part.weight)
        if part.max_documents is not None:
            require_positive(f"{path}.max_documents", part.max_documents)
    own = {name for name in MixturePart.__dataclass_fields__ if name != "weight"}
    for name in (*sorted(own), "heldout_path"):
        if data.mixture and getattr(data, name) != getattr(DataConfig(), name):
            where = "leave it out, and set it in the parts" if name in own else "leave it out"
            raise ConfigError(
                f"data.{name}={getattr(data, name)} does not go with data.mixture; {where}"
            )
