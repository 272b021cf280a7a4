"""Makes a prepared folder, or goes on where that was stopped.

First look (every document once: hash, filters, likeness) -> plan (sides, shards) -> shards -> what
goes over all shards (offsets, the corpus digest) -> manifest. Each step's result is a file that
takes its name when it is whole; a step that finds its result is not done again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.config.data import DataConfig
from llmasos_jax.data.files import TEMPORARY, locked, renamed
from llmasos_jax.data.prepared.arrays import GrowingArray, mapped
from llmasos_jax.data.prepared.crew import BenchSpec, Do, alone, crew
from llmasos_jax.data.prepared.digest import corpus_digest
from llmasos_jax.data.prepared.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    PLAN,
    SETTINGS,
    TOKENIZER,
    DamagedManifestError,
    Manifest,
    Side,
    StoredFile,
    read_manifest,
)
from llmasos_jax.data.prepared.plan import SHARD_BYTES, Plan, cut, read_plan, scan_tasks
from llmasos_jax.data.prepared.work import UNREADABLE, Bench, EncodeTask, Task
from llmasos_jax.data.scan import Scan, choice
from llmasos_jax.data.sources import Documents
from llmasos_jax.data.split import divide
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, fingerprint
from llmasos_jax.errors import DataError
from llmasos_jax.progress import Progress

_SAID_EVERY_S = 30.0  # where there is no terminal for a bar


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
    settings = what.settings()
    if (folder / MANIFEST).is_file():  # where all is done nothing is written, not even a lock
        _check_settings(settings, folder)
        if (done := _finished(folder)) is not None:
            return done
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            return _prepare(what, settings, folder, cache, workers)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written ({error.strerror or error}); give another folder, or make "
            "room there; the same command goes on where it stopped"
        ) from error


def _finished(folder: Path) -> Manifest | None:
    """The manifest of a folder that is whole and of this version."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(folder)
    except DamagedManifestError:
        return None
    is_current = manifest.format_version == FORMAT_VERSION
    return manifest if is_current and not damaged(folder, manifest) else None


def _prepare(
    what: Preparation, settings: Mapping[str, Any], folder: Path, cache: Path, workers: int
) -> Manifest:
    _check_settings(settings, folder)
    if (done := _finished(folder)) is not None:
        return done
    for left in folder.glob(f"{TEMPORARY}*"):
        left.unlink()
    # First of all: by it a folder is known as this preparation's, whenever that is killed.
    _write(folder / SETTINGS, json.dumps(settings, ensure_ascii=False, indent=1) + "\n")
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder / TOKENIZER, ignore_errors=True)
    (folder / TOKENIZER).mkdir()
    entry = what.tokenizer.save(folder / TOKENIZER)
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
    sides = {side: _over_shards(tasks[side], side, folder) for side in tasks}
    kept = sorted(path for path in (folder / TOKENIZER).rglob("*") if path.is_file())
    manifest = Manifest(
        settings=settings,
        tokenizer=entry,
        source_documents=len(what.documents),
        dropped=plan.dropped,
        digest=corpus_digest(folder, [sides["train"], sides["heldout"]]),
        plan=StoredFile.of(folder / PLAN),
        kept=tuple(StoredFile.of(path, folder) for path in (folder / SETTINGS, *kept)),
        train=sides["train"],
        heldout=sides["heldout"],
    )
    _write(folder / MANIFEST, manifest.to_json())
    for scan in folder.glob("scan-*.npz"):
        scan.unlink()
    return manifest


def _plan(do: Do, what: Preparation, folder: Path) -> Plan:
    with contextlib.suppress(*UNREADABLE):  # which is made again
        return read_plan(folder)
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


def _over_shards(tasks: Sequence[EncodeTask], side: str, folder: Path) -> Side:
    """Writes what goes over all shards of a side."""
    shards = [task.result(folder) for task in tasks]
    by_sentence = bool(shards) and shards[0].sentences is not None
    at = lambda kind: folder / f"{side}_{kind}.npy"
    tokens = 0
    with contextlib.ExitStack() as stack:
        opened = lambda kind: stack.enter_context(
            GrowingArray(stack.enter_context(renamed(at(kind))), np.dtype("<i8"))
        )
        offsets, ends = opened("offsets"), opened("sentences") if by_sentence else None
        offsets.append(np.zeros(1))
        if ends is not None:
            ends.append(np.zeros(1))
        for shard in shards:
            lengths = mapped(folder / shard.lengths.file)
            offsets.append(tokens + np.cumsum(lengths, dtype=np.int64))
            if ends is not None and shard.sentences is not None:
                ends.append(tokens + mapped(folder / shard.sentences.file))
            tokens += shard.tokens
    return Side(
        documents=sum(shard.documents for shard in shards),
        tokens=tokens,
        shards=tuple(shards),
        offsets=StoredFile.of(at("offsets")),
        sentences=StoredFile.of(at("sentences")) if by_sentence else None,
    )


def damaged(folder: Path, manifest: Manifest, *, by_hash: bool = False) -> list[str]:
    """What is not there, not of its size, or, by hash, not what was written.

    Small files, the settings and the tokenizer's, are always hashed. By hash of all files the
    corpus digest is made again too, if they are whole.

    Returns:
      A line for each: the file, what is wrong.

    Raises:
      DataError: the system does not let a file be read, which says nothing of what is in it.
    """
    found = manifest.faults()
    for file in manifest.files():
        path, is_hashed = folder / file.file, by_hash or file in manifest.kept
        try:
            if not path.is_file():
                found.append(f"{file.file} is not there")
            elif (size := path.stat().st_size) != file.bytes:
                found.append(f"{file.file} has {size:,} bytes, expected {file.bytes:,}")
            elif is_hashed and (now := StoredFile.of(path).sha256) != file.sha256:
                found.append(f"{file.file} has sha256 {now[:12]}, expected {file.sha256[:12]}")
        except OSError as error:
            raise DataError(
                f"{path} cannot be read ({error.strerror}); it may be whole: see to its "
                "permissions or the disk"
            ) from error
    if by_hash and not found:
        digest = corpus_digest(folder, [manifest.train, manifest.heldout])
        if digest != manifest.digest:
            found.append(f"{MANIFEST} has digest {manifest.digest[:12]}, the ids {digest[:12]}")
    return found


def _check_settings(settings: Mapping[str, Any], folder: Path) -> None:
    there = _settings_there(folder)
    if there is None:
        others = [p.name for p in folder.glob("*") if not p.name.startswith(".")]
        if others:
            raise DataError(
                f'{folder} holds other files ("{sorted(others)[0]}"); give a folder of its own'
            )
        return
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


def _settings_there(folder: Path) -> Mapping[str, Any] | None:
    """What a folder was begun with: its settings, or those in its manifest; None of a new one."""
    path = folder / SETTINGS
    if path.is_file():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(there, dict):
                return there
            why = f"a JSON {type(there).__name__}"
        except ValueError as error:
            why = str(error)
        if not (folder / MANIFEST).is_file():
            raise DataError(f"{path} is damaged ({why}); delete the folder")
    if not (folder / MANIFEST).is_file():
        return None
    with contextlib.suppress(DamagedManifestError):
        return read_manifest(folder).settings
    return None


def _write(path: Path, text: str) -> None:
    with renamed(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _modules() -> tuple[str, ...]:
    return tuple(path or os.getcwd() for path in sys.path)
