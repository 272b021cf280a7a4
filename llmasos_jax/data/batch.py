"""What one training step reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """A batch of sequences, NumPy on the host and `jax.Array` on the devices.

    One row of the pipeline has the same fields without the axis B.

    Attributes:
      tokens: int32 [B, T], what the model reads.
      targets: int32 [B, T], what it has to predict; 0 where `loss_weights` is 0.
      loss_weights: float32 [B, T], how much each target counts; 0 leaves it out.
      segment_ids: int32 [B, T], which document of its row a token belongs to, from 1; 0 is padding.
      positions: int32 [B, T], place in the segment, from 0.
      extra: an objective's own arrays, each with a leading axis B.
    """

    tokens: Any
    targets: Any
    loss_weights: Any
    segment_ids: Any
    positions: Any
    extra: dict[str, Any] = field(default_factory=dict)
