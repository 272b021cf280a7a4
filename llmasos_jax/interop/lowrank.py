"""Low-rank changes of stored weights, in NumPy: what is merged is read tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmasos_jax.format.tensorfile import StoredTensor

PEFT_CONFIG = "adapter_config.json"  # the file by which a PEFT folder is known


@dataclass(frozen=True)
class LowRank:
    """scale A B beside a weight (Hu et al., 2021, arXiv 2106.09685); of experts, one of each.

    Attributes:
      a: [in.., R], [E, in.., R] of experts.
      b: [R, out..], [E, R, out..].
      scale: what A B is multiplied by.
      magnitude: [out..], [E, out..], the lengths of the columns of the sum (Liu et al., 2024, arXiv
        2402.09353, eq. 5); None leaves them as they are.
      num_lead: dimensions that number matrices: 1 of experts.
    """

    a: StoredTensor
    b: StoredTensor
    scale: float
    magnitude: StoredTensor | None = None
    num_lead: int = 0

    @property
    def rank(self) -> int:
        """R."""
        return self.a.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it stands beside."""
        return (*self.a.shape[:-1], *self.b.shape[self.num_lead + 1 :])

    def merged(self, w: np.ndarray) -> np.ndarray:
        """A weight of this shape with the change, float32.

        Example:
          >>> from llmasos_jax.format.tensorfile import stored
          >>> a, b = stored(np.ones((2, 1), np.float32)), stored(np.ones((1, 3), np.float32))
          >>> LowRank(a, b, scale=0.5).merged(np.zeros((2, 3), np.float32)).tolist()
          [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
        """
        a, b = (tensor.read().astype(np.float32) for tensor in (self.a, self.b))
        lead = a.shape[: self.num_lead]
        change = a.reshape(*lead, -1, self.rank) @ b.reshape(*lead, self.rank, -1)
        change = change.reshape(w.shape)
        change *= np.float32(self.scale)
        change += w.astype(np.float32, copy=False)
        if self.magnitude is not None:
            into = tuple(range(self.num_lead, a.ndim - 1))
            # A column of zeros has no direction: 0 / 0 in PEFT, too, and no run starts with one.
            lengths = np.sqrt(np.sum(np.square(change), axis=into))
            ratio = self.magnitude.read().astype(np.float32) / lengths
            change *= np.expand_dims(ratio, into)
        return change


def of_all(experts: Sequence[LowRank]) -> LowRank:
    """The change of all experts, of one of each; ranks and scales are the same."""

    def stacked(tensors: Sequence[StoredTensor]) -> StoredTensor:
        shape = (len(tensors), *tensors[0].shape)
        return StoredTensor(shape, "float32", lambda: np.stack([t.read() for t in tensors]))

    lengths = [one.magnitude for one in experts if one.magnitude is not None]
    a, b = stacked([one.a for one in experts]), stacked([one.b for one in experts])
    return LowRank(a, b, experts[0].scale, stacked(lengths) if lengths else None, num_lead=1)
