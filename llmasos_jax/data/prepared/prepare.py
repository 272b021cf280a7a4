"""Makes a prepared folder, or goes on where that was stopped.

First look (every document once: hash, filters, likeness) -> plan (sides, shards) -> shards -> what
goes over all shards (offsets, the corpus digest) -> manifest. Each step's result is a file that
takes its name when it is whole; a step that finds its result is not done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.config.data import DataConfig
from llmasos_jax.data.files import TEMPORARY, locked, renamed
from llmasos_jax.data.prepared.arrays import GrowingArray, mapped
from llmasos_jax.data.prepared.crew import BenchSpec, Do, alone, crew
from llmasos_jax.data.prepared.manifest import (
    MANIFEST,
    PLAN,
    SETTINGS,
    TOKENIZER,
    Manifest,
    Shard,
    Side,
    StoredFile,
    read_manifest,
)
from llmasos_jax.data.prepared.plan import SHARD_BYTES, Plan, cut, read_plan, scan_tasks
from llmasos_jax.data.prepared.work import Bench, EncodeTask, Task
from llmasos_jax.data.scan import Scan, choice
from llmasos_jax.data.sources import Documents
from llmasos_jax.data.split import divide
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, fingerprint
from llmasos_jax.errors import DataError
from llmasos_jax.progress import Progress

_SAID_EVERY_S = 30.0  # where there is no terminal for a bar
_IDS_AT_A_TIME = 1 << 22


@dataclass(frozen=True)
class Preparation:
    """What is to be prepared.

    Attributes:
      documents: the text.
      tokenizer: what makes ids of it.
      data: decides on the split, filters and duplicates.
      by_sentence: keeps where sentences end, and adds neither bos nor eos.
      shard_bytes: of text in a shard, about; None takes what suits several processes.
    """

    documents: Documents
    tokenizer: Tokenizer
    data: DataConfig
    by_sentence: bool = False
    shard_bytes: int | None = SHARD_BYTES

    def settings(self) -> dict[str, Any]:
        """All that the ids depend on, by name."""
        data = self.data
        found: dict[str, Any] = {
            "data.source": data.source,
            "data.path": data.path,
            "data.text_field": data.text_field,
            "data.subset": data.subset,
            "data.split": data.split,
            "data.max_documents": data.max_documents,
            "data.seed": data.seed,
            "data.heldout_fraction": data.heldout_fraction,
            **choice(data),
            "by_sentence": self.by_sentence,
            "tokenizer.vocab_size": self.tokenizer.vocab_size,
            "tokenizer.fingerprint": fingerprint(self.tokenizer),
            "source.key": self.documents.key,
            "shard_bytes": self.shard_bytes,
        }
        return found


def prepare(what: Preparation, folder: Path, cache: Path, workers: int = 1) -> Manifest:
    """Fills a folder with shards of ids and their manifest.

    The files are the same for any number of workers. What an earlier call with the same settings
    left is taken if its hashes are right.

    Args:
      what: is prepared.
      folder: made if it is not there.
      cache: folder for tables of the source, for processes that open it again.
      workers: processes; 1 works in this one.

    Raises:
      DataError: the folder holds something else, another process is at work in it, or it cannot be
        written; or what the source and the split raise.
      TokenizerError: an id outside the vocabulary.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            return _prepare(what, folder, cache, workers)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror or error}); give another folder, or make "
            "room there; the same command goes on where it stopped"
        ) from error


def _prepare(what: Preparation, folder: Path, cache: Path, workers: int) -> Manifest:
    settings = what.settings()
    _check_settings(settings, folder)
    for left in folder.glob(f"{TEMPORARY}*"):
        left.unlink()
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        if not damaged(folder, manifest):
            return manifest
        (folder / MANIFEST).unlink()
    (folder / TOKENIZER).mkdir(exist_ok=True)
    entry = what.tokenizer.save(folder / TOKENIZER)
    _write(folder / SETTINGS, json.dumps(settings, ensure_ascii=False, indent=1) + "\n")
    bench = Bench(what.documents, what.tokenizer, what.data, what.by_sentence, folder)
    if workers == 1:
        return _work(alone(bench), what, folder, settings, entry)
    spec = BenchSpec(
        what.data,
        what.by_sentence,
        folder.resolve(),
        cache.resolve(),
        what.documents.key,
        entry,
        settings["tokenizer.fingerprint"],
        _modules(),
    )
    with crew(spec, workers) as do:
        return _work(do, what, folder, settings, entry)


def _work(
    do: Do,
    what: Preparation,
    folder: Path,
    settings: Mapping[str, Any],
    entry: Mapping[str, Any],
) -> Manifest:
    plan = _plan(do, what, folder)
    tasks = {side: plan.tasks(side) for side in ("train", "heldout")}
    _do(do, [*tasks["train"], *tasks["heldout"]], folder, "Tokenising")
    digest = hashlib.sha256()
    sides = {side: _over_shards(tasks[side], side, folder, digest) for side in tasks}
    manifest = Manifest(
        settings=settings,
        tokenizer=entry,
        source_documents=len(what.documents),
        dropped=plan.dropped,
        digest=digest.hexdigest(),
        plan=StoredFile.of(folder / PLAN),
        **sides,
    )
    _write(folder / MANIFEST, manifest.to_json())
    for scan in folder.glob("scan-*.npz"):
        scan.unlink()
    return manifest


def _plan(do: Do, what: Preparation, folder: Path) -> Plan:
    if not (folder / PLAN).is_file():
        tasks = scan_tasks(len(what.documents))
        _do(do, tasks, folder, "Reading")
        seen = Scan.joined([task.result(folder) for task in tasks])
        sides = divide(seen, what.documents, what.data)
        cut(sides, seen.sizes, what.shard_bytes).write(folder)
    return read_plan(folder)


def _do(do: Do, tasks: Sequence[Task], folder: Path, label: str) -> None:
    """Does those tasks whose result is not there."""
    left = [task for task in tasks if not task.is_done(folder)]
    total = sum(task.size for task in left)
    with Progress(label, total=total, say_every_s=_SAID_EVERY_S) as progress:
        do(left, progress.advance)


def _over_shards(tasks: Sequence[EncodeTask], side: str, folder: Path, digest: Any) -> Side:
    """Writes what goes over all shards of a side; hashes its ids into the digest.

    The digest is of each document's ids and, where they are kept, its sentences' ends; then of all
    offsets. So it does not depend on how the side is cut.
    """
    shards = [task.result(folder) for task in tasks]
    by_sentence = bool(shards) and shards[0].sentences is not None
    at = lambda kind: folder / f"{side}_{kind}.npy"
    tokens = 0
    with renamed(at("offsets")) as path, GrowingArray(path, np.dtype("<i8")) as offsets:
        offsets.append(np.zeros(1))
        for shard in shards:
            lengths = mapped(folder / shard.lengths.file)
            offsets.append(tokens + np.cumsum(lengths, dtype=np.int64))
            if not by_sentence:
                _hash(mapped(folder / shard.ids.file), digest.update)
            tokens += shard.tokens
    if by_sentence:
        with renamed(at("sentences")) as path, GrowingArray(path, np.dtype("<i8")) as ends:
            ends.append(np.zeros(1))
            start = 0
            for shard in shards:
                _hash_sentences(shard, start, folder, ends, digest)
                start += shard.tokens
    _hash(mapped(at("offsets")), digest.update)
    return Side(
        documents=sum(shard.documents for shard in shards),
        tokens=tokens,
        shards=tuple(shards),
        offsets=StoredFile.of(at("offsets")),
        sentences=StoredFile.of(at("sentences")) if by_sentence else None,
    )


def _hash(array: np.ndarray, update: Callable[[bytes], None]) -> None:
    for start in range(0, len(array), _IDS_AT_A_TIME):
        update(array[start : start + _IDS_AT_A_TIME].tobytes())


def _hash_sentences(shard: Shard, start: int, folder: Path, out: GrowingArray, digest: Any) -> None:
    """Documents one by one: the ids of each, then where its sentences end in the corpus."""
    if shard.sentences is None:
        raise ValueError("a shard without sentences")
    ids, ends = mapped(folder / shard.ids.file), mapped(folder / shard.sentences.file)
    out.append(start + ends)
    stops = np.cumsum(mapped(folder / shard.lengths.file), dtype=np.int64)
    # A document's sentences end behind its first token and at the latest with its last one.
    counts = np.searchsorted(ends, stops, side="right")
    first = first_end = 0
    for stop, stop_end in zip(stops.tolist(), counts.tolist(), strict=True):
        digest.update(ids[first:stop].tobytes())
        digest.update((start + ends[first_end:stop_end]).astype("<i8").tobytes())
        first, first_end = stop, stop_end


def damaged(folder: Path, manifest: Manifest, *, by_hash: bool = False) -> list[str]:
    """Files that are not there or not of their size, or, by hash, not what was written.

    Returns:
      A line for each: the file, what is wrong.
    """
    found = []
    for file in manifest.files():
        path = folder / file.file
        if not path.is_file():
            found.append(f"{file.file} is not there")
        elif (size := path.stat().st_size) != file.bytes:
            found.append(f"{file.file} has {size:,} bytes, expected {file.bytes:,}")
        elif by_hash and (now := StoredFile.of(path).sha256) != file.sha256:
            found.append(f"{file.file} has sha256 {now[:12]}, expected {file.sha256[:12]}")
    return found


def _check_settings(settings: Mapping[str, Any], folder: Path) -> None:
    path = folder / SETTINGS
    if not path.is_file():
        others = [p.name for p in folder.iterdir() if not p.name.startswith(".")]
        if others:
            raise DataError(
                f'{folder} holds other files ("{sorted(others)[0]}"); give a folder of its own'
            )
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); delete the folder") from error
    names = dict.fromkeys([*there, *settings])
    shown = lambda values, name: repr(values[name]) if name in values else "not set"
    differences = [
        f"{name}: {shown(there, name)} -> {shown(settings, name)}"
        for name in names
        if name not in there or name not in settings or there[name] != settings[name]
    ]
    if differences:
        raise DataError(
            f"{folder} was begun with other settings ({'; '.join(differences)}); give another "
            "folder, or those settings"
        )


def _write(path: Path, text: str) -> None:
    with renamed(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _modules() -> tuple[str, ...]:
    return tuple(path or os.getcwd() for path in sys.path)
