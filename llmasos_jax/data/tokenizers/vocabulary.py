"""What an objective has to know of a tokenizer's ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import TokenizerError


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a tokenizer.

    Attributes:
      size: ids are 0 to size - 1.
      cls_id: begins what an encoder reads (`bos_id` of the tokenizer); None if there is none.
      sep_id: ends a text and stands between two (`eos_id` of the tokenizer); None if there is none.
      mask_id: stands for a masked token; None if there is none.
      pad_id: fills rows; 0 where the tokenizer has none.
      special_ids: ids that are no text (those above, unknown, ...): never masked, never drawn.
      is_inside_v: bool [size], whether an id goes on with the word before it ("##ing", or a piece
        without the mark of a word's beginning).
      sentinel_ids: what stands for a corrupted span, in order (T5's <extra_id_0>, ...); () if none.
      num_tokens: ids that the tokenizer has, from 0 on; those above fill up the model's table. None
        where it has all.
    """

    size: int
    cls_id: int | None
    sep_id: int | None
    mask_id: int | None
    pad_id: int
    special_ids: tuple[int, ...]
    is_inside_v: np.ndarray
    sentinel_ids: tuple[int, ...] = ()
    num_tokens: int | None = None

    def is_special_v(self) -> np.ndarray:
        """Returns bool [size]: which ids are special tokens.

        Example:
          >>> np.flatnonzero(stand_in(5).is_special_v()).tolist()
          [0, 1, 2, 3]
        """
        is_special_v = np.zeros(self.size, dtype=bool)
        is_special_v[[i for i in self.special_ids if i < self.size]] = True
        return is_special_v


def stand_in(size: int) -> Vocabulary:
    """A vocabulary for shapes alone: to compile a step where no tokenizer is at hand.

    It has as many sentinels as fit, so that none is missing for a length; they are text as well.

    Example:
      >>> stand_in(100).size
      100
    """
    inside_v = np.zeros(size, dtype=bool)
    return Vocabulary(size, 1, 2, 3, 0, (0, 1, 2, 3), inside_v, tuple(range(size - 1, 4, -1)))


def vocabulary_of(tokenizer: Tokenizer, size: int) -> Vocabulary:
    """What objectives have to know of a tokenizer.

    Beside `bos_id` and `eos_id` it may have `cls_id` and `sep_id` (which then go before them),
    `mask_id`, `pad_id`, `unk_id`, `special_ids`, `sentinel_ids` and `is_inside_v` (bool, one for
    each id: whether it goes on with the word before it; without it every id is a word, and masking
    whole words is masking tokens). All tokenizers of the package have them.

    Args:
      tokenizer: any.
      size: ids of the model; those that the tokenizer does not have count as special.

    Raises:
      TokenizerError: the tokenizer has more ids than `size`, or says an id that is none.

    Example:
      >>> from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
      >>> found = vocabulary_of(ByteTokenizer(), 260)
      >>> found.cls_id, found.sep_id, found.pad_id, found.special_ids
      (256, 257, 258, (256, 257, 258, 259))
      >>> [bool(found.is_inside_v[byte]) for byte in b" a"]
      [False, True]
    """
    num_ids = tokenizer.vocab_size
    if num_ids > size:
        raise TokenizerError(
            f"the tokenizer has {num_ids} ids, the model only {size}; set model.vocab_size="
            f"{num_ids} or more"
        )
    cls_id = _first_id(tokenizer, "cls_id", "bos_id")
    sep_id = _first_id(tokenizer, "sep_id", "eos_id")
    mask_id, pad_id = _first_id(tokenizer, "mask_id"), _first_id(tokenizer, "pad_id")
    sentinel_ids = tuple(int(i) for i in getattr(tokenizer, "sentinel_ids", ()))
    named = (tokenizer.bos_id, tokenizer.eos_id, cls_id, sep_id, mask_id, pad_id)
    special_ids = {
        *(int(i) for i in (*named, _first_id(tokenizer, "unk_id")) if i is not None),
        *(int(i) for i in getattr(tokenizer, "special_ids", ())),
        *sentinel_ids,
        *range(num_ids, size),
    }
    if wrong := [i for i in special_ids if not 0 <= i < size]:
        raise TokenizerError(
            f"the tokenizer says that {min(wrong)} is a special id, and its ids are 0 to "
            f"{num_ids - 1}; correct its special_ids"
        )
    inside_v = _inside_v(tokenizer, size)
    inside_v[list(special_ids)] = False
    return Vocabulary(
        size,
        cls_id,
        sep_id,
        mask_id,
        0 if pad_id is None else pad_id,
        tuple(sorted(special_ids)),
        inside_v,
        sentinel_ids,
        num_tokens=num_ids,
    )


def _inside_v(tokenizer: Tokenizer, size: int) -> np.ndarray:
    """Bool [size]: the tokenizer's `is_inside_v`, False for the ids that it does not have."""
    inside_v, num_ids = np.zeros(size, dtype=bool), tokenizer.vocab_size
    own_v = np.asarray(getattr(tokenizer, "is_inside_v", inside_v[:num_ids]), dtype=bool)
    if own_v.shape != (num_ids,):
        raise TokenizerError(
            f"is_inside_v of the tokenizer has the shape {own_v.shape}; expected ({num_ids},), "
            "one for each of its ids"
        )
    inside_v[:num_ids] = own_v
    return inside_v


def _first_id(tokenizer: Tokenizer, *names: str) -> int | None:
    """The first of these ids that the tokenizer has."""
    found = (getattr(tokenizer, name, None) for name in names)
    return next((int(i) for i in found if i is not None), None)
