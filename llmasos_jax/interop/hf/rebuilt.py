"""Tokenizers that transformers builds anew by a class of its own, whatever the folder names."""

from __future__ import annotations

from typing import Any

# Of these model types `AutoTokenizer` of transformers 5 takes its own class, which has its own way
# of splitting texts and defaults for the special tokens that the config does not name.
_CLASSES = {"qwen2": "Qwen2Tokenizer"}
NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def rebuilding_class(model_type: str) -> str | None:
    """The class that `AutoTokenizer` takes for a model type; None if it goes by the folder.

    Example:
      >>> rebuilding_class("qwen2"), rebuilding_class("llama")
      ('Qwen2Tokenizer', None)
    """
    return _CLASSES.get(model_type)


def splits_alike(found: dict[str, Any]) -> bool:
    """Whether that class, given the pieces of a `tokenizer.json`, splits texts as the file does.

    Args:
      found: the file.
    """
    model, splits = found.get("model") or {}, found.get("pre_tokenizer") or {}
    plain = ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "dropout")
    if model.get("type") != "BPE" or any(model.get(key) for key in plain):
        return False
    if any(model.get(key) for key in ("fuse_unk", "byte_fallback", "ignore_merges")):
        return False
    if (found.get("normalizer") or {}).get("type") != "NFC":
        return False
    parts = splits.get("pretokenizers") or []
    if splits.get("type") != "Sequence" or len(parts) != 2:
        return False
    words = {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Isolated", "invert": False}
    letters = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return parts[0] == words and letters.items() <= parts[1].items()
