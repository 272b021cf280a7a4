"""What a writer of another program's format says of its work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
      saved_class: what opens it there: a class of transformers, an architecture of llama.cpp.
      num_tensors: tensors written.
      num_bytes: of them.
      notes: what the folder does not have and why, one line each.
    """

    saved_class: str
    num_tensors: int
    num_bytes: int
    notes: tuple[str, ...]
