"""A source as token ids, made once and kept on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

from llmasos_jax.config.schema import DataConfig
from llmasos_jax.data.files import build_folder
from llmasos_jax.data.prepared.manifest import FORMAT_VERSION, read_manifest
from llmasos_jax.data.prepared.prepare import Preparation, prepare
from llmasos_jax.data.prepared.read import Corpus, open_folder, open_prepared
from llmasos_jax.data.scan import choice
from llmasos_jax.data.sources import Documents
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, fingerprint
from llmasos_jax.errors import DataError

_SENTENCES_VERSION = 1  # of how a text is cut into sentences

__all__ = ["Corpus", "open_corpus"]


def open_corpus(
    documents: Documents,
    tokenizer: Tokenizer,
    data: DataConfig,
    cache: Path,
    *,
    by_sentence: bool = False,
) -> Corpus:
    """Tokenises the documents, or finds that done in `cache` or, prepared, in `data.path`.

    Each document ends with the tokenizer's eos if it has one. What is in the cache is a prepared
    folder too (`data/prepared/`), made by this process alone.

    Args:
      documents: the text.
      tokenizer: what makes ids of it.
      data: decides on the split, filters and duplicates.
      cache: folder for the ids.
      by_sentence: keeps where sentences end (`TokenDocuments.sentences`): each is tokenised alone,
        with neither bos nor eos. What gives no id (blanks, for many tokenizers) is no sentence.

    Raises:
      DataError: no document has text, or too few have to hold any out; the ids are damaged, or
        were prepared in another way than the config asks for.
      TokenizerError: the tokenizer gives an id outside its own vocabulary.
    """
    if data.source == "prepared":
        return open_prepared(data, tokenizer, by_sentence=by_sentence)
    parts = (documents.key, fingerprint(tokenizer), data.seed, data.heldout_fraction)
    parts += (*choice(data).items(), f"format {FORMAT_VERSION}")
    if by_sentence:
        parts += (f"sentences {_SENTENCES_VERSION}",)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    folder = cache / f"corpus-{key}"
    if not folder.is_dir():
        what = Preparation(documents, tokenizer, data, by_sentence)
        build_folder(folder, lambda path: prepare(what, path, cache))
    try:
        return open_folder(folder, read_manifest(folder))
    except DataError as error:
        raise DataError(f"cached tokens in {folder} are damaged ({error}); delete it") from error
