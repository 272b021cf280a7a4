"""An export's tokenizer, opened by transformers and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.huggingface import FILE as TOKENIZER
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, encode_input
from llmasos_jax.errors import ExportError, MissingExtraError
from llmasos_jax.evals.export.texts import TEXTS as SHORT
from llmasos_jax.evals.export.texts import compare_tokens
from llmasos_jax.interop.hf.files import MAX_TOKENIZER_BYTES, read_object
from llmasos_jax.interop.hf.open import CONFIG
from llmasos_jax.interop.hf.rebuilt import rebuilding_class, splits_alike
from llmasos_jax.interop.hf.tokenizer import folder_tokenizer_files

FIRST, SECOND = "It rained all day.", "The street was wet."
TEXTS = (*SHORT, FIRST)


def import_both() -> tuple[Any, Any]:
    """Torch and transformers.

    Raises:
      MissingExtraError: one of them is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            f"an export to Hugging Face is opened with transformers and torch to prove it ({error})"
            "; pip install 'llmasos-jax[parity]', or say --unproven (unproven=True)"
        ) from error
    return torch, transformers


def compare_tokenizer(folder: Path, tokenizer: Tokenizer, cfg: ModelConfig) -> int:
    """Compares ids and token types of texts, and of a pair where the model reads pairs.

    Args:
      folder: the export.
      tokenizer: the model's own.
      cfg: the model.

    Returns:
      How many texts and pairs were compared; 0 if the folder has no tokenizer, as its notes say.

    Raises:
      ExportError: transformers does not open it, or gives something else.
      MissingExtraError: torch or transformers is not installed.
    """
    _, transformers = import_both()
    if folder_tokenizer_files(folder) is None:
        return 0
    try:
        theirs = _opener(transformers, folder).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever it says, the export is not what it should be
        line = " ".join(str(error).split())[:300]
        raise ExportError(f"transformers does not open the tokenizer written: {line}") from error
    token = getattr(tokenizer, "token", lambda _: None)
    names = ("mask", "pad", "bos", "eos") if cfg.causal else ("mask", "pad")
    for name in names:
        wanted = getattr(tokenizer, f"{name}_id", None)
        _check(f"{name}_token_id", "the tokenizer", getattr(theirs, f"{name}_token_id"), wanted)
    texts = [*TEXTS]
    if (mask_id := getattr(tokenizer, "mask_id", None)) is not None:
        texts.append(f"all {token(mask_id)} day")
    is_whole = not cfg.causal or cfg.encoder.num_layers > 0
    cases = [(text, None) for text in texts] + ([(FIRST, SECOND)] if is_whole else [])
    for text, pair in cases:
        found = theirs(text) if pair is None else theirs(text, pair)
        what = repr(text) if pair is None else f"the pair {text!r}, {pair!r}"
        ids = list(map(int, found["input_ids"]))  # of no tokens transformers makes floats
        if is_whole:
            wanted, types = encode_input(tokenizer, text, pair)
            _check("input_ids", what, ids, wanted)
            if cfg.token_types > 1:
                _check("token_type_ids", what, found.get("token_type_ids"), types)
            continue
        # A decoder's ids have no end here, whatever the file's template says.
        wanted, end = tokenizer.encode(text), getattr(tokenizer, "sep_id", None)
        _check("input_ids", what, ids[:-1] if ids == [*wanted, end] else ids, wanted)
    compare_tokens(tokenizer, theirs.convert_ids_to_tokens)
    return len(cases)


def _opener(transformers: Any, folder: Path) -> Any:
    """The class that a user opens it with, as the export's notes say."""
    model_type = str(read_object(folder / CONFIG).get("model_type"))
    is_alike = rebuilding_class(model_type) is None or splits_alike(
        read_object(folder / TOKENIZER, MAX_TOKENIZER_BYTES)
    )
    return transformers.AutoTokenizer if is_alike else transformers.PreTrainedTokenizerFast


def _check(key: str, what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise ExportError(
            f"what was written is not the model's tokenizer: transformers gives {key} = "
            f"{_shown(found)} of {what}, not {_shown(wanted)}; nothing was kept"
        )


def _shown(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, list) and len(value) > 12 else repr(value)
