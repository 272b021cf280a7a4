"""What a model reads of a text: ids, special ones around them, token types."""

from __future__ import annotations

from collections.abc import Sequence

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, encode_input


def is_encoder(cfg: ModelConfig) -> bool:
    """Whether a text is read as a whole: an encoder, or the encoder of an encoder-decoder."""
    return not cfg.causal or cfg.encoder.num_layers > 0


def read_ids(
    cfg: ModelConfig, tokenizer: Tokenizer, text: str, pair: str | None = None
) -> tuple[list[int], list[int]]:
    """What a model reads of a text, and the token types: a decoder's ids have no end."""
    if is_encoder(cfg):
        return encode_input(tokenizer, text, pair)
    ids = tokenizer.encode(text)
    return ids, [0] * len(ids)


def frame_ids(tokenizer: Tokenizer) -> set[int]:
    """Ids that stand around texts, and are no part of them; an unknown word is one."""
    names = ("bos_id", "eos_id", "cls_id", "sep_id", "pad_id")
    found = (getattr(tokenizer, name, None) for name in names)
    return {number for number in found if number is not None}


def cut_ids(
    tokenizer: Tokenizer, ids: list[int], types: list[int], most: int
) -> tuple[list[int], list[int]]:
    """At most `most` ids: the end of the text is cut off, what stands after it stays.

    Example:
      >>> from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
      >>> cut_ids(ByteTokenizer(), [256, 97, 98, 99, 257], [0, 0, 0, 0, 0], 4)
      ([256, 97, 98, 257], [0, 0, 0, 0])
    """
    if len(ids) <= most:
        return ids, types
    frame, num_last = frame_ids(tokenizer), 0
    while num_last < min(len(ids), most - 1) and ids[-1 - num_last] in frame:
        num_last += 1
    keep, last = most - num_last, len(ids) - num_last
    return ids[:keep] + ids[last:], types[:keep] + types[last:]


def first_pieces(
    cfg: ModelConfig, tokenizer: Tokenizer, words: Sequence[str]
) -> tuple[list[int], list[int], list[int | None]]:
    """What a model reads of words with spaces between them, and where each of them begins.

    A word's ids are those by which the text grows with it. Its first one is the first that is more
    than white space.

    Args:
      cfg: the model.
      tokenizer: its tokenizer.
      words: at least one.

    Returns:
      The ids and types of `read_ids`, and for each word the place of its first piece; None for a
      word that the tokenizer leaves out, or joins with its neighbours.

    Example:
      >>> from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
      >>> first_pieces(ModelConfig(259, 64, 1), ByteTokenizer(), ["ab", "c"])
      ([256, 97, 98, 32, 99], [0, 0, 0, 0, 0], [1, 4])
    """
    frame = frame_ids(tokenizer)
    ids, types = read_ids(cfg, tokenizer, " ".join(words))
    begin = next((place for place, i in enumerate(ids) if i not in frame), len(ids))
    places: list[int | None] = []
    for count in range(1, len(words) + 1):
        end = _common(ids, read_ids(cfg, tokenizer, " ".join(words[:count]))[0], frame)
        filled = (p for p in range(begin, end) if tokenizer.decode([ids[p]]).strip())
        places.append(next(filled, None))
        begin = max(begin, end)
    return ids, types, places


def _common(ids: list[int], prefix: list[int], frame: set[int]) -> int:
    """How many of the first ids are those of a shorter text, without what stands after it."""
    end = len(prefix)
    while end and prefix[end - 1] in frame:
        end -= 1
    return next((p for p in range(end) if ids[p] != prefix[p]), end)
