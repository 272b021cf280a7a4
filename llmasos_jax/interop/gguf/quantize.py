"""Numbers into GGUF's blocks: bit for bit what the package `gguf` makes of them.

The inverse of `quants.py` for the types whose blocks hold 32 numbers and for the plain ones; the K
types are in `quantize_k.py`. Blocks are worked on side by side, one column each, so that every
step is one pass over memory that a core's cache holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np

from llmasos_jax.errors import FormatError
from llmasos_jax.interop.gguf.quantize_k import quantize_k
from llmasos_jax.interop.gguf.quants import block_layout
from llmasos_jax.interop.gguf.types import BLOCK_TYPES, BlockType

TYPES: dict[str, BlockType] = {kind.name: kind for kind in BLOCK_TYPES.values()}
WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
_CHUNK = 2**16  # numbers that are worked on at a time
_HALF = np.float32(0.5)
_BELOW_HALF = np.nextafter(np.float32(0.5), np.float32(0))


def written_parts(kind: str, array: np.ndarray) -> Iterator[np.ndarray]:
    """A tensor as a file has it, some hundred kB at a time.

    Args:
      kind: the type's name, such as "Q8_0".
      array: [..., columns] of float32, float16 or bfloat16; a view in any order.

    Yields:
      uint8, one after the other the bytes of the tensor.

    Raises:
      FormatError: the type is not written, a row is not whole blocks, or a number is too large.

    Example:
      >>> sum(part.nbytes for part in written_parts("Q8_0", np.ones((3, 64), np.float32)))
      204
    """
    if kind not in WRITTEN:
        raise FormatError(f"{kind} is not written; these are: {', '.join(WRITTEN)}")
    columns, numbers = array.shape[-1], TYPES[kind].numbers
    if columns % numbers:
        raise FormatError(
            f"a row of {columns} numbers is no whole number of {kind}'s blocks of {numbers}"
        )
    rows = _rows(array)
    step = max(1, _CHUNK // columns)
    for begin in range(0, len(rows), step):
        yield quantize(kind, rows[begin : begin + step])


def _rows(array: np.ndarray) -> np.ndarray:
    """[rows, columns], a view where the leading axes can be one."""
    return array.reshape(-1, array.shape[-1])


def quantize(kind: str, rows: np.ndarray) -> np.ndarray:
    """The blocks of whole rows.

    Args:
      kind: the type's name.
      rows: [rows, columns]; columns are whole blocks.

    Returns:
      uint8, flat.

    Raises:
      FormatError: a number is too large for the type, or is none.

    Example:
      >>> quantize("Q8_0", np.full((1, 32), 2.0, np.float32))[:4]
      array([  8,  36, 127, 127], dtype=uint8)
    """
    if kind == "F32":
        return _bytes(rows.astype(np.float32, copy=False))
    if kind == "F16":
        return _bytes(_halves(rows, kind))
    if kind == "BF16":
        return _bytes(rows.astype(ml_dtypes.bfloat16, copy=False))
    single = np.ascontiguousarray(rows, dtype=np.float32)
    if kind.endswith("_K"):
        out = quantize_k(kind, single)
    else:
        out = np.empty(single.size // 32, block_layout(kind))
        # One column a block: all that follows is along rows of memory.
        x_wn = np.ascontiguousarray(single.reshape(-1, 32).T)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            _PACKED[kind](x_wn, out)
    for scale in ("d", "m", "dmin"):
        if scale in (out.dtype.names or ()) and not np.isfinite(out[scale]).all():
            raise _too_large(kind)
    return out.view(np.uint8)


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _halves(rows: np.ndarray, kind: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        halves = rows.astype(np.float16)
    if np.isinf(halves).any():
        raise _too_large(kind)
    return halves


def _too_large(kind: str) -> FormatError:
    return FormatError(
        f"a tensor has a number that {kind} cannot hold (its scales are float16, at most 65504, or "
        "the number is none); export it as BF16 or F32"
    )


def _inverse(d_n: np.ndarray) -> np.ndarray:
    return np.where(d_n == 0, np.float32(0), np.float32(1) / d_n)


def _q8_0(x_wn: np.ndarray, out: np.ndarray) -> None:
    d_n = np.abs(x_wn).max(0) / np.float32(127)
    out["d"] = d_n
    x_wn *= _inverse(d_n)
    # Away from zero at a half: what lies just below one must not be pushed over it.
    x_wn += np.copysign(_BELOW_HALF, x_wn)
    out["q"] = x_wn.astype(np.int8).T


def _signed(x_wn: np.ndarray) -> np.ndarray:
    """Of each block the number that is largest without its sign; of two alike the first."""
    most, least = x_wn.max(0), x_wn.min(0)
    found = np.where(most > -least, most, least)
    both = np.flatnonzero(most == -least)
    if len(both):
        columns = x_wn[:, both]
        found[both] = columns[np.abs(columns).argmax(0), np.arange(len(both))]
    return found


def _around_zero(x_wn: np.ndarray, out: np.ndarray, half: int) -> np.ndarray:
    """Whole numbers 0 to 2 half - 1 around `half`, uint8."""
    d_n = _signed(x_wn) / np.float32(-half)
    out["d"] = d_n
    x_wn *= _inverse(d_n)
    x_wn += np.float32(half + 0.5)
    q_wn = x_wn.astype(np.uint8)
    return np.minimum(q_wn, np.uint8(2 * half - 1), out=q_wn)


def _from_least(x_wn: np.ndarray, out: np.ndarray, top: int) -> np.ndarray:
    """Whole numbers 0 to top above the least one, uint8."""
    least_n = x_wn.min(0)
    d_n = (x_wn.max(0) - least_n) / np.float32(top)
    out["d"], out["m"] = d_n, least_n
    x_wn -= least_n
    x_wn *= _inverse(d_n)
    x_wn += _HALF
    q_wn = x_wn.astype(np.uint8)
    return np.minimum(q_wn, np.uint8(top), out=q_wn)


def _q4_0(x_wn: np.ndarray, out: np.ndarray) -> None:
    out["q"] = _nibbles(_around_zero(x_wn, out, 8))


def _q4_1(x_wn: np.ndarray, out: np.ndarray) -> None:
    out["q"] = _nibbles(_from_least(x_wn, out, 15))


def _q5_0(x_wn: np.ndarray, out: np.ndarray) -> None:
    _five(_around_zero(x_wn, out, 16), out)


def _q5_1(x_wn: np.ndarray, out: np.ndarray) -> None:
    _five(_from_least(x_wn, out, 31), out)


def _five(q_wn: np.ndarray, out: np.ndarray) -> None:
    out["q"] = _nibbles(q_wn & np.uint8(15))
    out["high"] = np.packbits(q_wn >> np.uint8(4), axis=0, bitorder="little").T


def _nibbles(q_wn: np.ndarray) -> np.ndarray:
    """Number i and number i + 16 in one byte, [n, 16]."""
    return (q_wn[:16] | (q_wn[16:] << np.uint8(4))).T


_PACKED: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
}
