"""Prepares the text that a config names."""

from __future__ import annotations

import os
import time
from pathlib import Path

from llmasos_jax.config.data import DataConfig
from llmasos_jax.data.prepared.manifest import MANIFEST, TOKENIZER
from llmasos_jax.data.prepared.prepare import Preparation, prepare
from llmasos_jax.data.prepared.result import Prepared
from llmasos_jax.data.sources import documents, is_read
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import ConfigError


def run(
    data: DataConfig,
    tokenizer: Tokenizer,
    folder: Path,
    cache: Path,
    *,
    workers: int | None = None,
    by_sentence: bool = False,
) -> Prepared:
    """Prepares a folder, or finds it there.

    Args:
      data: the source, its split, filters and duplicates.
      tokenizer: makes ids.
      folder: for the result.
      cache: folder for tables of the source.
      workers: processes; None takes one for each core.
      by_sentence: keeps where sentences end, and adds neither bos nor eos.

    Raises:
      ConfigError: not one text to prepare, a folder in the text itself, or `workers` is below 1.
      DataError, TokenizerError: as `prepare`.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers} must be at least 1")
    if data.mixture:
        raise ConfigError(
            "data.mixture has several texts; prepare each with a config of its own, and name the "
            'folders in the parts (source="prepared")'
        )
    if data.streaming:
        raise ConfigError("data.streaming reads a text as it comes; leave it out to prepare one")
    if data.source == "prepared":
        raise ConfigError(
            f'data.source="prepared": {data.path} is prepared already; name the text itself'
        )
    if data.heldout_path is not None:
        raise ConfigError(
            f"data.heldout_path={data.heldout_path} is for objectives that learn from records; "
            "leave it out: of a prepared text data.heldout_fraction is held out"
        )
    folder = folder.expanduser()
    _require_outside(data, folder)
    start_s = time.monotonic()
    is_there = (folder / MANIFEST).is_file()
    stamp = (folder / MANIFEST).stat().st_mtime_ns if is_there else None
    source = documents(data, cache)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = workers or cores or 1
    what = Preparation(source, tokenizer, data, by_sentence, shard_bytes=None)
    manifest = prepare(what, folder, cache, count)
    is_new = (folder / MANIFEST).stat().st_mtime_ns != stamp
    return Prepared.of(folder, manifest, is_new, time.monotonic() - start_s)


def _require_outside(data: DataConfig, folder: Path) -> None:
    """Refuses a folder whose files would be read as text."""
    names = (MANIFEST, "train-00000_ids.npy", f"{TOKENIZER}/tokenizer.json")
    if any(is_read(data, folder / name) for name in names):
        raise ConfigError(
            f"{folder} is inside of data.path={data.path}, so what is prepared would be read as "
            "text; give a folder outside of it"
        )
