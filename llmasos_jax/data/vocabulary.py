"""What an objective has to know of a tokenizer's ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
    """

    size: int
    cls_id: int | None
    sep_id: int | None
    mask_id: int | None
    pad_id: int
    special_ids: tuple[int, ...]
    is_inside_v: np.ndarray
    sentinel_ids: tuple[int, ...] = ()


def stand_in(size: int) -> Vocabulary:
    """A vocabulary for shapes alone: to compile a step where no tokenizer is at hand.

    Example:
      >>> stand_in(100).size
      100
    """
    sentinels = tuple(range(size - 1, max(size - 101, 4), -1))
    inside_v = np.zeros(size, dtype=bool)
    return Vocabulary(size, 1, 2, 3, 0, (0, 1, 2, 3, *sentinels), inside_v, sentinels)
