"""A score that is a number, and says how it was found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Score(float):
    """A float with what else there is to say.

    Attributes:
      signature: by which the score can be found again; None where the definition says it all.
      details: other figures, by name.

    Example:
      >>> score = Score(27.5, "nrefs:1|tok:13a", {"bp": 0.98})
      >>> score > 27, score.signature, score.details["bp"]
      (True, 'nrefs:1|tok:13a', 0.98)
    """

    signature: str | None
    details: Mapping[str, Any]

    def __new__(
        cls, value: float, signature: str | None = None, details: Mapping[str, Any] | None = None
    ) -> Score:
        """Makes a score of a number."""
        score = super().__new__(cls, value)
        score.signature, score.details = signature, dict(details or {})
        return score

    def __reduce__(self) -> tuple[Any, ...]:
        return Score, (float(self), self.signature, self.details)
