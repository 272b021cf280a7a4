"""Opens what was prepared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmasos_jax.config.data import DataConfig
from llmasos_jax.data.packing import TokenDocuments
from llmasos_jax.data.prepared.arrays import ShardedArray, mapped
from llmasos_jax.data.prepared.manifest import (
    MANIFEST,
    TOKENIZER,
    DamagedManifestError,
    Manifest,
    Side,
    StoredFile,
    read_manifest,
)
from llmasos_jax.data.prepared.prepare import damaged
from llmasos_jax.data.prepared.result import Checked
from llmasos_jax.data.scan import Dropped
from llmasos_jax.data.sources import Documents
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, fingerprint
from llmasos_jax.errors import DataError


@dataclass(frozen=True)
class Corpus:
    """Token ids of both sides of the split.

    Attributes:
      train, heldout: the documents.
      digest: hash of all ids; the same on every machine with the same text and tokenizer.
      dropped: documents on neither side, by reason.
    """

    train: TokenDocuments
    heldout: TokenDocuments
    digest: str
    dropped: Mapping[str, Dropped]


def open_folder(folder: Path, manifest: Manifest) -> Corpus:
    """The ids of a folder; they are read from disk where they are looked at.

    Raises:
      DataError: a file is not there, or not of its size.
    """
    if wrong := damaged(folder, manifest):
        raise DataError(
            f"prepared data in {folder} are damaged ({wrong[0]}"
            + (f", and {len(wrong) - 1} more" if len(wrong) > 1 else "")
            + "); llmasos data prepare with the same config makes them again"
        )
    try:
        train, heldout = (_side(folder, side) for side in (manifest.train, manifest.heldout))
    except (OSError, ValueError) as error:
        raise DataError(
            f"prepared data in {folder} are damaged ({error}); llmasos data prepare with the same "
            "config makes them again"
        ) from error
    return Corpus(train, heldout, manifest.digest, manifest.dropped)


def _side(folder: Path, side: Side) -> TokenDocuments:
    paths = [folder / shard.ids.file for shard in side.shards]
    ids: Any = mapped(paths[0]) if len(paths) == 1 else ShardedArray(paths)
    offsets = mapped(folder / side.offsets.file)
    if (len(offsets) - 1, int(offsets[-1]), len(ids)) != (side.documents, side.tokens, side.tokens):
        raise ValueError(
            f"{side.offsets.file} is of {len(offsets) - 1:,} documents and {int(offsets[-1]):,} "
            f"tokens, the shards have {len(ids):,}, and {MANIFEST} says {side.documents:,} "
            f"documents and {side.tokens:,} tokens"
        )
    if side.sentences is None:
        return TokenDocuments(ids, offsets)
    return TokenDocuments(ids, offsets, mapped(folder / side.sentences.file))


def open_prepared(data: DataConfig, tokenizer: Tokenizer, *, by_sentence: bool) -> Corpus:
    """The corpus of `data.source="prepared"`.

    The split, the filters and what was done with duplicates are the folder's. `data.seed` is that
    of the order alone, and may be another one.

    Raises:
      DataError: it is not there, not whole, damaged, or not what the config asks for.
    """
    folder = folder_of(data)
    manifest = read_manifest(folder)
    settings = manifest.settings
    made, own = settings["tokenizer.fingerprint"], fingerprint(tokenizer)
    if made != own:
        raise DataError(
            f"{folder} was prepared with another tokenizer (fingerprint {made[:12]}, "
            f"{settings['tokenizer.vocab_size']} ids) than the config's ({own[:12]}, "
            f"{tokenizer.vocab_size} ids); leave tokenizer.path out, which takes the folder's "
            f"({folder / TOKENIZER}), or prepare the text with this one; a mixture has one "
            "tokenizer, and all its parts are prepared with it"
        )
    if manifest.by_sentence != by_sentence:
        has, needs = ("with", "without") if manifest.by_sentence else ("without", "with")
        raise DataError(
            f"{folder} was prepared {has} sentences, and this objective reads documents {needs} "
            "them; prepare the text with this run's config"
        )
    _check_choices(data, manifest, folder)
    return open_folder(folder, manifest)


def _check_choices(data: DataConfig, manifest: Manifest, folder: Path) -> None:
    """Refuses what only preparing could do."""
    plain = DataConfig()
    there = manifest.settings
    asked = {
        "data.max_documents": (data.max_documents, None),
        "data.heldout_fraction": (data.heldout_fraction, plain.heldout_fraction),
        "data.deduplicate": (data.deduplicate, plain.deduplicate),
        **{f"data.filters.{n}": (v, None) for n, v in vars(data.filters).items()},
    }
    for name, (value, default) in asked.items():
        made = there.get(name, "none" if name == "data.deduplicate" else None)
        if value not in (default, made):
            raise DataError(
                f"{name}={value!r}, and {folder} was prepared with {made!r}, which a run cannot "
                f"change; set {name}={made} (--config.{name}={made}), or prepare the text again "
                f"with {value!r}"
            )


def folder_of(data: DataConfig) -> Path:
    """The folder that `data.path` names.

    Raises:
      DataError: no path is set.
    """
    if not data.path:
        raise DataError(
            'data.source="prepared" needs data.path; set it to a folder of llmasos data prepare'
        )
    return Path(data.path).expanduser()


def prepared_documents(data: DataConfig) -> Documents:
    """The texts of a folder, decoded from its ids, those held out after the others.

    Special ids give no text; where a tokenizer changes a text this is the changed one.
    """
    folder = folder_of(data)
    manifest = read_manifest(folder)
    corpus = open_folder(folder, manifest)
    tokenizer = prepared_tokenizer(data)
    train, heldout = corpus.train, corpus.heldout

    def read(index: int) -> str:
        side, number = train, index
        if index >= train.num_documents:
            side, number = heldout, index - train.num_documents
        start, stop = side.offsets[number : number + 2].tolist()
        return tokenizer.decode(side.ids[start:stop].tolist())

    return Documents(read, train.num_documents + heldout.num_documents, corpus.digest)


def prepared_tokenizer(data: DataConfig) -> Tokenizer:
    """The tokenizer that a folder was prepared with, which it keeps.

    Raises:
      DataError: it is no prepared folder, or the tokenizer is damaged.
      TokenizerError: the tokenizer's files cannot be read.
    """
    from llmasos_jax.data.tokenizers.load import load_tokenizer

    folder = folder_of(data)
    manifest = read_manifest(folder)
    for file in manifest.kept:
        if not _is_whole(file, folder):
            raise DataError(
                f"prepared data in {folder} are damaged ({file.file} is not what was written); "
                "llmasos data prepare with the same config makes them again"
            )
    tokenizer = load_tokenizer(manifest.tokenizer, folder / TOKENIZER, allow_code=True)
    made = manifest.settings["tokenizer.fingerprint"]
    if fingerprint(tokenizer) != made:
        raise DataError(
            f"the tokenizer in {folder / TOKENIZER} is not the one that the ids are of "
            f"(fingerprint {made[:12]}); put it back, or prepare the text again"
        )
    return tokenizer


def _is_whole(file: StoredFile, folder: Path) -> bool:
    try:
        return file.is_in(folder)
    except OSError as error:
        raise DataError(
            f"{folder / file.file} cannot be read ({error.strerror}); see to its permissions or "
            "the disk"
        ) from error


def check_folder(folder: Path) -> Checked:
    """Hashes every file of a folder, and compares what its manifest says with what is there.

    Raises:
      DataError: it is no prepared folder, or a file of it may not be read.
    """
    folder = folder.expanduser()
    try:
        manifest = read_manifest(folder)
    except DamagedManifestError as error:
        return Checked(folder, 1, (folder / MANIFEST).stat().st_size, (f"{MANIFEST}: {error.why}",))
    files = list(manifest.files())
    wrong = damaged(folder, manifest, by_hash=True)
    return Checked(folder, len(files), sum(file.bytes for file in files), tuple(wrong))
