"""The NumPy side of an objective: from a packed row to what the loss reads.

A `prepare` function takes `(row, rng)`: a row of what the objective's `rows` made of the corpus (a
`PackedRow`, if it says nothing) and a `numpy.random.Generator` that depends
on the seed and on the row's place in the run alone. It returns a `Batch` without the batch axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llmasos_jax.data.batch import Batch
from llmasos_jax.data.packing import PackedRow, TokenDocuments

Prepare = Callable[[Any, np.random.Generator], Batch]
MakeRows = Callable[[TokenDocuments, int], Sequence[Any]]


def causal(row: PackedRow, rng: np.random.Generator | None = None) -> Batch:
    """Each token predicts the next one of its own document.

        tokens    a b c | d e | .        the last token of a segment and padding weigh 0
        targets   b c 0 | e 0 | 0
        weights   1 1 0 | 1 0 | 0

    Args:
      row: arrays [..., T + 1].
      rng: not used; there is nothing random in it.

    Returns:
      A Batch of arrays [..., T].

    Example:
      >>> tokens, segments = np.array([7, 8, 9, 4, 0]), np.array([1, 1, 2, 2, 0])
      >>> batch = causal(PackedRow(tokens, segments, np.array([0, 1, 0, 1, 0])))
      >>> batch.targets.tolist(), batch.loss_weights.tolist()
      ([8, 0, 4, 0], [1.0, 0.0, 1.0, 0.0])
    """
    del rng
    here, after = row.segment_ids[..., :-1], row.segment_ids[..., 1:]
    is_scored = (here == after) & (here > 0)
    return Batch(
        tokens=row.tokens[..., :-1],
        targets=np.where(is_scored, row.tokens[..., 1:], 0),
        loss_weights=is_scored.astype(np.float32),
        segment_ids=here,
        positions=row.positions[..., :-1],
    )
