"""Names that the whole package shares.

Axis key, used in docstrings (`[B, T, D]`), array suffixes (`x_btd`) and einsum strings:

    B batch          T query position   S key/value position  D model width
    F feed-forward   N query heads      K key/value heads     G query heads per key head, N = K*G
    H head width     V vocabulary       L layers              E experts
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A nested dict of arrays (or of anything that stands for an array: a shape, a spec).
Tree = Mapping[str, Any]
