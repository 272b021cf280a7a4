"""The weights of a base in eight or four bits, through qwix."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from llmasos_jax.errors import MissingExtraError
from llmasos_jax.nn.adapters import group_size


def encode(
    w: np.ndarray, num_in: int, dtype: Any, *, num_lead: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of a weight, for `nn.adapters.dequantized`.

    Args:
      w: [lead.., in.., out..].
      num_in: how many dimensions a product contracts.
      dtype: int8 or int4.
      num_lead: dimensions in front that number matrices: of layers, of experts.

    Returns:
      Codes of `w`'s shape, and float32 scales [lead.., groups, out..].

    Raises:
      MissingExtraError: qwix is not installed.
    """
    if num_lead:
        pairs = [encode(one, num_in, dtype, num_lead=num_lead - 1) for one in w]
        codes, scales = zip(*pairs, strict=True)
        return np.stack(codes), np.stack(scales)
    try:
        import qwix
    except ImportError as error:
        raise MissingExtraError(
            "weights in eight or four bits need qwix; pip install 'llmasos-jax[finetune]'"
        ) from error
    inputs = math.prod(w.shape[:num_in])
    bits = 4 if jnp.dtype(dtype) == jnp.int4 else 8
    tiles = {0: group_size(inputs, bits)}
    matrix = jnp.asarray(w, jnp.float32).reshape(inputs, -1)
    found = qwix.quantize(matrix, dtype, channelwise_axes=(1,), tiled_axes=tiles)
    scales = np.asarray(found.scale).reshape(-1, *w.shape[num_in:])
    return np.asarray(found.qvalue).reshape(w.shape), scales
