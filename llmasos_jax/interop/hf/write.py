"""A model of ours as a Hugging Face folder: `config.json`, safetensors, tokenizer files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmasos_jax.data.tokenizers.huggingface import FILE as TOKENIZER
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, encode_input
from llmasos_jax.errors import FormatError, TokenizerError
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.write import write_file, write_weights
from llmasos_jax.interop.hf.express import Expressed, express
from llmasos_jax.interop.hf.files import MAX_TOKENIZER_BYTES, read_object
from llmasos_jax.interop.hf.open import CONFIG, GENERATION
from llmasos_jax.interop.hf.rebuilt import NAMED, rebuilding_class, splits_alike
from llmasos_jax.interop.hf.sentence import MODULES
from llmasos_jax.interop.hf.sentencepiece import FILES, sentencepiece_tokenizer
from llmasos_jax.interop.hf.tokenizer import CONFIG as TOKENIZER_CONFIG
from llmasos_jax.interop.hf.tokenizer import folder_tokenizer_files
from llmasos_jax.interop.tables import unbind
from llmasos_jax.interop.written import Written

_POOLING = "1_Pooling"
_UNKNOWN = ("<unk>", "[UNK]")
_PROBES = ("Hello, world! 123", "  two  spaces\nand a line", "Über naïve 世界 🙂", "")


def write_huggingface(
    files: ModelFiles, out: Path, *, on_tensor: Callable[[str, int], None] | None = None
) -> Written:
    """Writes a model as a Hugging Face folder. Its memory is the largest group of tensors.

    Args:
      files: the model.
      out: an empty folder.
      on_tensor: called with the name and size in bytes of each tensor written.

    Returns:
      What was written.

    Raises:
      FormatError: no class of transformers is this model, or the disk does not take it.
    """
    cfg, found = files.manifest.parameters, express(files.manifest)
    tensors = unbind(found.family.table(cfg), cfg, files.tensors)
    tokenizer = None if files.tokenizer is None else files.tokenizer.load()
    notes = write_tokenizer(files, tokenizer, out, found.family.model_type)
    has_tokenizer = (out / TOKENIZER).is_file()
    config = config_with_ids(found, files, tokenizer if has_tokenizer else None)
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) == 1:
        config["dtype"] = dtypes.pop()
    _write_json(out / CONFIG, config)
    write_generation(files, out, tokenizer if has_tokenizer else None)
    if cfg.pooling != "mean":
        _write_pooling(cfg.pooling, cfg.embedding_dim, out)
    write_weights(out, tensors, on_tensor=on_tensor, kind="pt")
    num_bytes = sum(tensor.nbytes for tensor in tensors.values())
    if found.saved_class.endswith("Model") and not cfg.causal and _may_have_pooler(found, files):
        notes.append(
            f"{found.saved_class} is without a pooler: open it with add_pooling_layer=False"
        )
    return Written(found.saved_class, len(tensors), num_bytes, tuple(notes))


def _may_have_pooler(found: Expressed, files: ModelFiles) -> bool:
    cfg = files.manifest.parameters
    names = {name for row in found.family.table(cfg).rows for name in row.ours}
    return "pooler.w" in names and not cfg.pooler


def config_with_ids(
    found: Expressed, files: ModelFiles, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """The config with the ids of special tokens; null goes before the defaults of a class."""
    cfg, generation = files.manifest.parameters, files.manifest.generation
    ends = _ends(files, tokenizer)
    has_ends = cfg.causal or bool(ends)  # BERT has neither beginning nor end
    ids: dict[str, Any] = {
        "bos_token_id": getattr(tokenizer, "bos_id", None) if has_ends else None,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": getattr(tokenizer, "pad_id", None),
    }
    if generation.decoder_start_id is not None:
        ids["decoder_start_token_id"] = generation.decoder_start_id
    if found.family.model_type == "modernbert":
        ids["cls_token_id"] = getattr(tokenizer, "cls_id", None)
        ids["sep_token_id"] = getattr(tokenizer, "sep_id", None)
    return {**ids, **found.config}


def _ends(files: ModelFiles, tokenizer: Tokenizer | None) -> list[int]:
    ends = list(files.manifest.generation.eos_ids)
    end = getattr(tokenizer, "eos_id", None)
    if not ends and files.manifest.parameters.causal and end is not None:
        return [end]  # what ends a text of such a model here, too
    return ends


def write_generation(files: ModelFiles, out: Path, tokenizer: Tokenizer | None) -> None:
    """Writes what ends a text, and the chat template.

    Args:
      files: the model.
      out: its folder.
      tokenizer: the one in the folder; None if there is none.
    """
    generation = files.manifest.generation
    said: dict[str, Any] = {}
    if generation.stop:
        said["stop_strings"] = list(generation.stop)
    if generation.decoder_start_id is not None:
        said["decoder_start_token_id"] = generation.decoder_start_id
    # Where this file is, transformers asks the config no longer.
    ends = _ends(files, tokenizer) if said else list(generation.eos_ids)
    if ends:
        said = {"eos_token_id": ends, **said}
    if said:
        _write_json(out / GENERATION, said)
    if generation.chat_template is not None:
        write_file(out / "chat_template.jinja", generation.chat_template.encode("utf-8"))


def _write_pooling(pooling: str, width: int, out: Path) -> None:
    """The files by which sentence-transformers knows how a text's vector is made."""
    kinds = ("Transformer", "Pooling", "Normalize")
    paths = ("", _POOLING, "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write_file(out / MODULES, _json(modules))
    (out / _POOLING).mkdir()
    said = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
    }
    _write_json(out / _POOLING / "config.json", said)


def write_tokenizer(
    files: ModelFiles, tokenizer: Tokenizer | None, out: Path, model_type: str = ""
) -> list[str]:
    """Writes a tokenizer that gives the same ids there; else nothing, and why in one line.

    Args:
      files: the model.
      tokenizer: its own.
      out: an empty folder.
      model_type: of transformers; empty for a folder of another program.

    Returns:
      What is to be known of it.
    """
    if files.tokenizer is None or tokenizer is None:
        return ["the model has no tokenizer, so the folder has none"]
    entry = files.tokenizer.save(out)
    kind = entry["kind"]
    if kind == "sentencepiece":
        try:
            entry = _write_as_json(out, entry["file"], tokenizer)
        except TokenizerError as error:
            for path in out.iterdir():
                path.unlink()
            return [f"the tokenizer is left out: {error}"]
    if entry["kind"] == "tokenizers":
        if entry["file"] != TOKENIZER:
            os.replace(out / entry["file"], out / TOKENIZER)
        said = _tokenizer_config(tokenizer, files)
        rebuilt = rebuilding_class(model_type)
        if rebuilt is not None:  # null goes before the defaults of that class
            said = {**dict.fromkeys(NAMED), **said}
        _write_json(out / TOKENIZER_CONFIG, said)
        back = folder_tokenizer_files(out)
        is_same = back is not None and _ids_of(back.load()) == _ids_of(tokenizer)
        if is_same and (not _reads_whole(files) or _is_whole(out / TOKENIZER, tokenizer)):
            if rebuilt is None or splits_alike(read_object(out / TOKENIZER, MAX_TOKENIZER_BYTES)):
                return []
            return [
                f"AutoTokenizer takes {rebuilt} for this model, whatever its folder says, and that "
                "splits texts otherwise: open the tokenizer with PreTrainedTokenizerFast"
            ]
        problem = "it begins or ends texts in a way that a tokenizer.json alone does not say"
    else:
        problem = f'Hugging Face folders hold no tokenizer of the kind "{kind}"'
    for path in out.iterdir():
        path.unlink()
    return [f"the tokenizer is left out: {problem}"]


def _write_as_json(out: Path, file: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """Makes of a sentencepiece model a `tokenizer.json` that begins texts in the same way."""
    from tokenizers import processors

    if file != FILES[0]:
        os.replace(out / file, out / FILES[0])
    library, _, _ = sentencepiece_tokenizer(out / FILES[0])
    (out / FILES[0]).unlink()
    if tokenizer.adds_bos and tokenizer.bos_id is not None:
        name = library.id_to_token(tokenizer.bos_id)
        library.post_processor = processors.TemplateProcessing(
            single=[name, "$A"], pair=[name, "$A", "$B"], special_tokens=[(name, tokenizer.bos_id)]
        )
    write_file(out / TOKENIZER, library.to_str().encode("utf-8"))
    return {"kind": "tokenizers", "file": TOKENIZER}


def _reads_whole(files: ModelFiles) -> bool:
    """Whether a text is read as a whole, with what the tokenizer puts around it."""
    cfg = files.manifest.parameters
    return not cfg.causal or cfg.encoder.num_layers > 0


def _is_whole(path: Path, tokenizer: Tokenizer) -> bool:
    """Whether the file alone puts around texts what the model reads; other programs add nothing."""
    from tokenizers import Tokenizer as Library

    alone = Library.from_file(str(path))
    alone.no_truncation()
    alone.no_padding()
    return all(alone.encode(text).ids == encode_input(tokenizer, text)[0] for text in _PROBES)


def _ids_of(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(text) for text in _PROBES]


def _tokenizer_config(tokenizer: Tokenizer, files: ModelFiles) -> dict[str, Any]:
    cfg = files.manifest.parameters
    token: Callable[[int], str | None] = getattr(tokenizer, "token", lambda _: None)
    fields = {"bos": "bos_id", "eos": "eos_id", "pad": "pad_id", "mask": "mask_id"}
    if not cfg.causal:
        fields |= {"cls": "cls_id", "sep": "sep_id"}
    ids = {name: getattr(tokenizer, field, None) for name, field in fields.items()}
    ids["unk"] = _unk_id(tokenizer, token)
    names = {name: token(number) for name, number in ids.items() if number is not None}
    if not cfg.causal:
        # RoBERTa's <s> is a beginning as well; what has BERT's names is not.
        for end, frame in (("bos", "[CLS]"), ("eos", "[SEP]")):
            if names.get(end) == frame:
                del names[end]
    said: dict[str, Any] = {f"{name}_token": text for name, text in names.items() if text}
    if cfg.token_types > 1:
        said["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **said,
        "model_max_length": cfg.context_length,
        "clean_up_tokenization_spaces": False,
    }


def _unk_id(tokenizer: Tokenizer, token: Callable[[int], str | None]) -> int | None:
    """The unknown token; byte-level BPE never makes it, and RoBERTa has it all the same."""
    found = getattr(tokenizer, "unk_id", None)
    special = getattr(tokenizer, "special_ids", ())
    return next((i for i in special if token(i) in _UNKNOWN), None) if found is None else found


def _json(value: Any) -> bytes:
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise FormatError(f"the model has a number that JSON cannot hold: {error}") from error
    return (text + "\n").encode("utf-8")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    write_file(path, _json(value))
