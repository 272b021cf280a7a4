"""Which kinds of tokenizers there are, and what loads or trains each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmasos_jax.config.named import resolve
from llmasos_jax.config.schema import Config, TokenizerConfig
from llmasos_jax.data.mixture import TrainingDocuments
from llmasos_jax.data.sources import documents
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer, Tokenizer
from llmasos_jax.errors import ConfigError, TokenizerError


def _load_bytes(entry: Mapping[str, Any], folder: Path) -> Tokenizer:
    return ByteTokenizer()


def _load_sentencepiece(entry: Mapping[str, Any], folder: Path) -> Tokenizer:
    from llmasos_jax.data.tokenizers.sentencepiece import SentencePieceTokenizer

    tokenizer = SentencePieceTokenizer.from_file(entry_file(entry, folder))
    for key in ("bos_id", "eos_id"):
        said, own = entry.get(key), getattr(tokenizer, key)
        if said is not None and said != own:
            raise TokenizerError(
                f"tokenizer.{key}={said}, but the sentencepiece file has {own}; correct it, or "
                "leave it out: a sentencepiece model knows its own"
            )
    return tokenizer


def _load_tokenizers(entry: Mapping[str, Any], folder: Path) -> Tokenizer:
    from llmasos_jax.data.tokenizers.huggingface import HuggingFaceTokenizer

    # The entry says it all: in a model's folder nothing is guessed from the names of tokens.
    said = {"bos_id": None, "eos_id": None, "adds_bos": False, **entry}
    return HuggingFaceTokenizer.from_file(entry_file(entry, folder), said)


# What loads a kind: (entry, folder) -> Tokenizer. The libraries are imported only when used.
TABLE: dict[str, Callable[[Mapping[str, Any], Path], Tokenizer]] = {
    "bytes": _load_bytes,
    "sentencepiece": _load_sentencepiece,
    "tokenizers": _load_tokenizers,
}


# Kinds that are trained where there is no path.
_TRAINED = ("sentencepiece", "tokenizers")


def load_tokenizer(
    entry: Mapping[str, Any], folder: Path, *, allow_code: bool = False
) -> Tokenizer:
    """Loads the tokenizer that a `model.json` describes; the inverse of `Tokenizer.save`.

    Args:
      entry: `{"kind": ..., "file": ..., ...}`; `file` stands in `folder`.
      folder: the model's folder.
      allow_code: whether `kind` may be `"package.module:name"`, a callable `(entry, folder) ->
        Tokenizer`, which is imported and run. Off by default: opening a model runs no code.

    Raises:
      TokenizerError: the kind is unknown, or the file is absent or no such tokenizer.

    Example:
      >>> load_tokenizer({"kind": "bytes"}, Path(".")).vocab_size
      259
    """
    kind = entry.get("kind")
    if not isinstance(kind, str):
        raise TokenizerError(
            f"tokenizer.kind={kind!r} is not a string; known: {', '.join(sorted(TABLE))}"
        )
    if ":" in kind and not allow_code:
        raise TokenizerError(
            f'tokenizer.kind="{kind}" names code, and opening a model runs none; pass '
            "allow_code=True (--allow-code) if you trust it"
        )
    try:
        load = resolve(kind, TABLE, "tokenizer.kind")
    except ConfigError as error:
        raise TokenizerError(str(error)) from error
    tokenizer = load(entry, folder)
    if not isinstance(tokenizer, Tokenizer):
        raise TokenizerError(
            f'tokenizer.kind="{kind}" gave a {type(tokenizer).__name__}; expected vocab_size, '
            "bos_id, eos_id, "
            "adds_bos, encode, decode and save (llmasos_jax.data.tokenizers.tokenizer.Tokenizer)"
        )
    return tokenizer


def entry_file(entry: Mapping[str, Any], folder: Path) -> Path:
    """Returns the path of an entry's file, which may not leave `folder`.

    Raises:
      TokenizerError: the entry has no file, the file leaves the folder, or is not there.
    """
    name = entry.get("file")
    if not isinstance(name, str) or not name:
        raise TokenizerError(
            f'tokenizer "{entry["kind"]}" has file={name!r}; expected the name of its file'
        )
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise TokenizerError(
            f'tokenizer file "{name}" leaves the folder {folder}; copy it in and name it there'
        )
    if not path.is_file():
        raise TokenizerError(
            f"tokenizer file {path} is not there; put it back or correct tokenizer.file"
        )
    return path


def tokenizer_of_run(cfg: Config, cache: Path, *, has_records: bool) -> Tokenizer:
    """The tokenizer of a run that takes over none: loaded, or trained on its text.

    Of prepared data it is the one they were prepared with, unless `tokenizer.path` names another.

    Args:
      cfg: as in `build_tokenizer`.
      cache: folder for the trained tokenizer.
      has_records: whether the run learns from records, of which none is trained.

    Raises:
      ConfigError: there is none to load, and no text to train one on.
      TokenizerError, DataError: as in `build_tokenizer` and `data.sources.documents`.
    """
    if not has_records:
        if (kept := _of_prepared(cfg)) is not None:
            return kept
        return build_tokenizer(cfg, _texts(cfg, cache), cache)
    if cfg.tokenizer.path is None and cfg.tokenizer.kind in _TRAINED:
        raise ConfigError(
            f'objective.name="{cfg.objective.name}" learns from records, of which no tokenizer is '
            "trained; set finetune.base, whose tokenizer is taken, or tokenizer.path"
        )
    return build_tokenizer(cfg, (), cache)


def _texts(cfg: Config, cache: Path) -> Sequence[str]:
    """What a tokenizer of this run would be trained on."""
    if cfg.data.streaming:
        from llmasos_jax.data.streaming.sample import sample_texts

        is_trained = cfg.tokenizer.path is None and cfg.tokenizer.kind in _TRAINED
        return sample_texts(cfg) if is_trained else ()
    return (TrainingDocuments if cfg.data.mixture else documents)(cfg.data, cache)


def build_tokenizer(cfg: Config, documents: Sequence[str], cache: Path) -> Tokenizer:
    """Returns a training run's tokenizer: loads `cfg.tokenizer.path`, or trains one.

    Args:
      cfg: `tokenizer`, `model.vocab_size` and, for the split, `data` are read.
      documents: all documents; a tokenizer is trained on those that are not held out.
      cache: folder for the trained tokenizer, so that a second run does not train it again.

    Raises:
      TokenizerError: unknown kind, no such file, not such a file, more ids than `model.vocab_size`,
        or too little text for so many pieces.
    """
    kind, path = cfg.tokenizer.kind, cfg.tokenizer.path
    if kind == "sentencepiece" and path is None:
        from llmasos_jax.data.tokenizers.sentencepiece import trained

        tokenizer: Tokenizer = trained(cfg, documents, cache)
    elif kind == "tokenizers" and path is None:
        from llmasos_jax.data.tokenizers import trained as jsons

        tokenizer = jsons.trained(cfg, documents, cache)
    else:
        file = None if path is None else Path(path).expanduser()
        if file is not None and file.is_dir():
            file = _file_in(file, kind)
        entry = {"kind": kind} if file is None else {"kind": kind, "file": file.name}
        folder = file.parent if file else Path()
        if kind == "tokenizers":
            tokenizer = _from_path(entry_file(entry, folder), cfg.tokenizer.lowercase)
        else:
            tokenizer = load_tokenizer(entry, folder, allow_code=True)
    return _fitting(tokenizer, cfg, str(path or kind))


def _fitting(tokenizer: Tokenizer, cfg: Config, name: str) -> Tokenizer:
    if tokenizer.vocab_size > cfg.model.vocab_size:
        raise TokenizerError(
            f'tokenizer "{name}" has {tokenizer.vocab_size} ids, '
            f"model.vocab_size={cfg.model.vocab_size} is "
            f"fewer; set model.vocab_size={tokenizer.vocab_size} or more"
        )
    return tokenizer


def _of_prepared(cfg: Config) -> Tokenizer | None:
    """The tokenizer that prepared data keep; of a mixture, the first prepared part's."""
    from llmasos_jax.data.mixture import part_config
    from llmasos_jax.data.prepared.manifest import read_manifest
    from llmasos_jax.data.prepared.read import folder_of, prepared_tokenizer

    texts = [part_config(cfg.data, part) for part in cfg.data.mixture.values()] or [cfg.data]
    found = [data for data in texts if data.source == "prepared"]
    if not found or cfg.tokenizer.path is not None:
        return None
    kind, there = cfg.tokenizer.kind, read_manifest(folder_of(found[0])).tokenizer["kind"]
    if kind not in (TokenizerConfig().kind, there):
        raise TokenizerError(
            f'tokenizer.kind="{kind}", and {found[0].path} was prepared with one of kind '
            f'"{there}"; leave tokenizer.kind out, or prepare the text with this one'
        )
    return _fitting(prepared_tokenizer(found[0]), cfg, f"of {found[0].path}")


def _file_in(folder: Path, kind: str) -> Path:
    if kind != "tokenizers":
        return folder / "tokenizer.model"
    has_list = (folder / "vocab.txt").is_file() and not (folder / "tokenizer.json").is_file()
    return folder / ("vocab.txt" if has_list else "tokenizer.json")


def _from_path(path: Path, lowercase: bool) -> Tokenizer:
    """A `tokenizer.json`, or BERT's list of pieces."""
    if path.suffix == ".txt":
        from llmasos_jax.data.tokenizers.wordpiece import from_vocabulary_file

        return from_vocabulary_file(path, lowercase=lowercase)
    from llmasos_jax.data.tokenizers.huggingface import HuggingFaceTokenizer

    return HuggingFaceTokenizer.from_file(path)
