"""What a text may go on with, guessed from the text itself: prompt look-up.

Where a text repeats what stood before (code, quotations, summaries), its last tokens stood there
too, and what followed then is a good guess for now. Guesses cost no model; `acceptance.py` says how
many were right.

References:
  Saxena, 2023, https://github.com/apoorvumang/prompt-lookup-decoding
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from llmasos_jax.errors import GenerationError


class Proposer(Protocol):
    """Guesses how one text goes on. It has a state of its own."""

    def extend(self, ids: Sequence[int]) -> None:
        """More tokens of the text: the prompt, then what was accepted."""
        ...

    def propose(self, num: int) -> list[int]:
        """At most `num` ids that may come next, in their order; often none."""
        ...


class PromptLookup:
    """Looks for the last tokens in the text so far: the longest run, its latest place.

    Args:
      longest: tokens that are compared at most, at least 1.
      shortest: tokens that have to be the same at least, 1 to `longest`.

    Raises:
      GenerationError: they are not.

    Example:
      >>> lookup = PromptLookup()
      >>> lookup.extend([5, 6, 7, 8, 1, 5, 6])
      >>> lookup.propose(3)
      [7, 8, 1]
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise GenerationError(
                f"a look-up of {shortest} to {longest} tokens is not possible; give whole numbers, "
                "1 <= shortest <= longest"
            )
        self._longest, self._shortest = longest, shortest
        self._ids = np.zeros(64, np.int32)
        self._num = 0

    def extend(self, ids: Sequence[int]) -> None:
        """More tokens of the text."""
        num = self._num + len(ids)
        if num > self._ids.size:
            self._ids = np.resize(self._ids, 2 * num)
        self._ids[self._num : num] = ids
        self._num = num

    def propose(self, num: int) -> list[int]:
        """At most `num` ids: what followed the longest run that is also the text's end.

        Where that run reaches into the end itself, what it repeats is repeated on.
        """
        ids, last = self._ids[: self._num], self._num - 1
        found, length = np.zeros(0, int), 0
        # Places of a token that is not the last, with as many equal tokens up to it as `length`.
        places = np.arange(max(last, 0))
        while places.size and length < self._longest:
            places = places[places >= length]
            places = places[ids[places - length] == ids[last - length]]
            if places.size:
                found, length = places, length + 1
        if length < self._shortest:
            return []
        start = int(found[-1]) + 1
        period = self._num - start
        return [int(ids[start + i % period]) for i in range(num)]
