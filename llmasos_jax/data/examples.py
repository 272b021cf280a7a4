"""Examples of a task as rows: what fine-tuning reads, in the place of a corpus of text.

An objective that learns from records (conversations, labelled texts, preference pairs) makes its
rows itself: `Objective.examples` of `llmasos_jax.train.objective`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ExampleRows(Sequence[Any]):
    """The rows of one side of the split, each what the objective's `prepare` takes.

    Attributes:
      rows: in a fixed order.
      num_tokens: tokens that one epoch reads, padding not counted.
      num_documents: examples in them.
    """

    rows: Sequence[Any]
    num_tokens: int
    num_documents: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]


@dataclass(frozen=True)
class Examples:
    """Everything that a task's files gave.

    Attributes:
      train, heldout: the rows.
      digest: a hash of the examples, the tokenizer and what turned the ones into the others.
      counts: of what was not taken as it was, by what was done: {"dropped, too long": 3}.
    """

    train: ExampleRows
    heldout: ExampleRows
    digest: str
    counts: Mapping[str, int] = field(default_factory=dict)
