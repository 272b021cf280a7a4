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
_PLACES = (1 << np.arange(8)).astype(np.uint8)[:, None]
_INFINITE_HALF = np.uint16(0x7C00)  # its bits without the sign
_LEAST_HALF, _BEYOND_HALF = np.float32(2**-14), np.float32(65520)  # of float16: normal, infinite
_MOVE = np.uint32(0x0FFF - (112 << 23) & 0xFFFFFFFF)


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
    """float16, rounded to even as a cast does; a cast takes NumPy twice as long."""
    if rows.dtype == np.float16:
        if (rows.view(np.uint16) & np.uint16(0x7FFF) == _INFINITE_HALF).any():
            raise _too_large(kind)
        return rows
    x = np.ascontiguousarray(rows, np.float32).reshape(-1)
    size = np.abs(x)
    if not size.max(initial=0) < _BEYOND_HALF:  # or one is no number, which stays so
        if (size >= _BEYOND_HALF).any():
            raise _too_large(kind)
        return x.astype(np.float16)
    small = np.flatnonzero(size < _LEAST_HALF)
    if 8 * len(small) > x.size:
        return x.astype(np.float16)
    halves = _moved(x)
    halves[small] = x[small].astype(np.float16)
    return halves


def _moved(x: np.ndarray) -> np.ndarray:
    """float16 from float32 between 2^-14 and 65520: the exponent moves by 112, 13 bits go."""
    bits = x.view(np.uint32)
    out = bits >> np.uint32(13)
    out &= np.uint32(1)
    out += bits
    out += _MOVE
    out >>= np.uint32(13)
    sign = bits >> np.uint32(16)
    sign &= np.uint32(0x8000)
    out |= sign
    return out.astype(np.uint16).view(np.float16)


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
    half_wn = x_wn.view(np.uint32) & np.uint32(1 << 31)
    half_wn |= _BELOW_HALF.view(np.uint32)
    x_wn += half_wn.view(np.float32)
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
    inverse_n = _inverse(d_n)
    x_wn *= inverse_n
    x_wn += np.float32(half + 0.5)
    return _whole(x_wn, inverse_n, 2 * half)


def _from_least(x_wn: np.ndarray, out: np.ndarray, top: int) -> np.ndarray:
    """Whole numbers 0 to top above the least one, uint8."""
    least_n = x_wn.min(0)
    d_n = (x_wn.max(0) - least_n) / np.float32(top)
    out["d"], out["m"] = d_n, least_n
    inverse_n = _inverse(d_n)
    x_wn -= least_n
    x_wn *= inverse_n
    x_wn += _HALF
    return _whole(x_wn, inverse_n, top + 1)


def _whole(x_wn: np.ndarray, inverse_n: np.ndarray, count: int) -> np.ndarray:
    """Whole numbers 0 to count - 1, uint8; `count`, a power of two, becomes the one below."""
    q_wn = x_wn.astype(np.uint8)
    if np.isfinite(inverse_n).all():  # then no number is above `count`
        q_wn -= q_wn >> np.uint8(count.bit_length() - 1)
        return q_wn
    return np.minimum(q_wn, np.uint8(count - 1), out=q_wn)


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
    fifth_wn = q_wn >> np.uint8(4)
    # `packbits` across rows takes as long as all the rest; a sum of eight rows does the same.
    out["high"] = (fifth_wn.reshape(4, 8, -1) * _PLACES).sum(1, dtype=np.uint8).T


def _nibbles(q_wn: np.ndarray) -> np.ndarray:
    """Number i and number i + 16 in one byte, [n, 16]."""
    both = q_wn[16:] * np.uint8(16)
    both += q_wn[:16]
    return both.T


_PACKED: dict[str, Callable[[np.ndarray, np.ndarray], None]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
}
