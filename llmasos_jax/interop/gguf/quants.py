"""Numbers out of GGUF's blocks: float32, bit for bit what ggml computes.

A block holds some tens or hundreds of neighbouring numbers of a row as small whole numbers, with
one scale or several (K types: 256 numbers, scales that are themselves small numbers). The layouts
are those of ggml's `block_q4_0` and its kin; the order of the float32 operations is ggml's too,
which is what makes the results equal to the bit.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from llmasos_jax.errors import FormatError
from llmasos_jax.format.strict import shown
from llmasos_jax.interop.gguf.container import TensorInfo

# Types that are kept as they are; all others become float32.
PLAIN = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Numbers that are worked on at a time: what they need stays in a core's second cache.
_CHUNK = 2**17


def is_readable(kind: str) -> bool:
    """Whether tensors of this type can be read."""
    return kind in PLAIN or kind in _BLOCKS


def readable_types() -> tuple[str, ...]:
    """The types that can be read."""
    return (*PLAIN, *_BLOCKS)


def stored_dtype(kind: str) -> str:
    """The dtype that `read_tensor` gives for a type of tensors that can be read."""
    return str(PLAIN.get(kind, np.dtype(np.float32)))


def read_tensor(path: Path, info: TensorInfo) -> np.ndarray:
    """Reads one tensor of a file, and of its bytes never more than a few hundred kB at a time.

    Returns:
      An array of its own, of `info.shape` and `stored_dtype(info.type.name)`.

    Raises:
      FormatError: its type cannot be read, or the file has changed since it was opened.
    """
    name = info.type.name
    if not is_readable(name):
        raise FormatError(
            f'{path.name}: the tensor "{shown(info.name)}" is stored as {name}, which is not read; '
            f"these are: {', '.join(readable_types())}"
        )
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(info.begin)
            if name in PLAIN:
                plain = np.empty(info.shape, PLAIN[name])
                _fill(file, plain.reshape(-1).view(np.uint8), path, info)
                return plain
            return _read_blocks(file, path, info)
    except OSError as error:
        raise FormatError(f"cannot read {path.name}: {error.strerror or error}") from error


def _read_blocks(file: io.RawIOBase, path: Path, info: TensorInfo) -> np.ndarray:
    dtype, unpack = _BLOCKS[info.type.name]
    out = np.empty(info.shape, np.float32)
    flat = out.reshape(-1, info.type.numbers)
    step = _CHUNK // info.type.numbers
    blocks = np.empty(min(step, len(flat)), dtype)
    for begin in range(0, len(flat), step):
        part = blocks[: len(flat) - begin]
        _fill(file, part.view(np.uint8), path, info)
        unpack(part, flat[begin : begin + step])
    return out


def _fill(file: io.RawIOBase, buffer: np.ndarray, path: Path, info: TensorInfo) -> None:
    view = buffer.data
    while view:
        count = file.readinto(view)
        if not count:
            raise FormatError(
                f'{path.name} ends within the tensor "{shown(info.name)}"; it has changed since it '
                "was opened: open it again"
            )
        view = view[count:]


def dequantize(kind: str, raw: np.ndarray) -> np.ndarray:
    """The numbers of whole blocks.

    Args:
      kind: the type's name, such as "Q4_K".
      raw: uint8, the bytes of the blocks.

    Returns:
      float32, one row for each block (for F32, F16 and BF16: one number per row).

    Raises:
      FormatError: the type cannot be read.

    Example:
      >>> block = np.frombuffer(bytes.fromhex("003c") + bytes(range(32)), np.uint8)
      >>> dequantize("Q8_0", block)[0, :4]
      array([0., 1., 2., 3.], dtype=float32)
    """
    if kind in PLAIN:
        return raw.view(PLAIN[kind]).astype(np.float32)[:, None]
    if kind not in _BLOCKS:
        raise FormatError(f"{kind} is not read; these are: {', '.join(readable_types())}")
    dtype, unpack = _BLOCKS[kind]
    blocks = raw.view(dtype)
    numbers = 256 if kind.endswith("_K") else 32
    out = np.empty((len(blocks), numbers), np.float32)
    unpack(blocks, out)
    return out


def block_layout(kind: str) -> np.dtype:
    """How one block of a type lies in memory: its scales, its whole numbers.

    Example:
      >>> block_layout("Q4_0").itemsize
      18
    """
    return _BLOCKS[kind][0]


def _wide(halves: np.ndarray) -> np.ndarray:
    """float16 scales as float32, one column."""
    return halves.astype(np.float32)[:, None]


def _nibbles(bytes_: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return bytes_ & 15, bytes_ >> 4


def _fifth_bits(b: np.ndarray) -> np.ndarray:
    """One bit for each of 32 numbers, as 0 or 16, uint8 [blocks, 32]."""
    return np.unpackbits(b["high"], axis=1, bitorder="little") << 4


def _q8_0(b: np.ndarray, out: np.ndarray) -> None:
    np.multiply(b["q"], _wide(b["d"]), out=out)


def _q4_0(b: np.ndarray, out: np.ndarray) -> None:
    d = _wide(b["d"])
    for half, q in enumerate(_nibbles(b["q"])):
        np.multiply(q.view(np.int8) - np.int8(8), d, out=out[:, 16 * half : 16 * half + 16])


def _q4_1(b: np.ndarray, out: np.ndarray) -> None:
    d = _wide(b["d"])
    for half, q in enumerate(_nibbles(b["q"])):
        np.multiply(q, d, out=out[:, 16 * half : 16 * half + 16])
    out += _wide(b["m"])


def _q5_0(b: np.ndarray, out: np.ndarray) -> None:
    q = np.concatenate(_nibbles(b["q"]), axis=1) | _fifth_bits(b)
    np.multiply(q.view(np.int8) - np.int8(16), _wide(b["d"]), out=out)


def _q5_1(b: np.ndarray, out: np.ndarray) -> None:
    q = np.concatenate(_nibbles(b["q"]), axis=1) | _fifth_bits(b)
    np.multiply(q, _wide(b["d"]), out=out)
    out += _wide(b["m"])


_PAIRS = np.array([0, 2, 4, 6], np.uint8)[:, None]
_HALVES = np.array([0, 4], np.uint8)[:, None]
_BITS = np.arange(8, dtype=np.uint8)[:, None]


def _k_scales(b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and minimum of each 32 numbers of Q4_K and Q5_K, float32 [blocks, 8, 1].

    Six bits each, in twelve bytes: the first four of both kinds are the low bits of bytes 0 to 3
    and 4 to 7; the others have four bits in a nibble of bytes 8 to 11 and two above the first ones.
    """
    s = b["scales"]
    scale, least, rest = s[:, 0:4], s[:, 4:8], s[:, 8:12]
    scales = np.concatenate([scale & 63, (rest & 15) | (scale >> 6 << 4)], axis=1)
    mins = np.concatenate([least & 63, (rest >> 4) | (least >> 6 << 4)], axis=1)
    return (_wide(b["d"]) * scales)[:, :, None], (_wide(b["dmin"]) * mins)[:, :, None]


def _q2_k(b: np.ndarray, out: np.ndarray) -> None:
    rows = out.reshape(-1, 16, 16)
    q = (b["q"].reshape(-1, 2, 1, 32) >> _PAIRS) & 3
    scales = (_wide(b["d"]) * (b["scales"] & 15))[:, :, None]
    mins = (_wide(b["dmin"]) * (b["scales"] >> 4))[:, :, None]
    np.multiply(q.reshape(rows.shape), scales, out=rows)
    rows -= mins


def _q3_k(b: np.ndarray, out: np.ndarray) -> None:
    rows = out.reshape(-1, 16, 16)
    low = (b["q"].reshape(-1, 2, 1, 32) >> _PAIRS) & 3
    high = (b["high"][:, None, :] >> _BITS) & 1
    q = (low.reshape(rows.shape) | (high.reshape(rows.shape) << 2)).view(np.int8) - np.int8(4)
    # Scale i: four bits in nibble i of bytes 0 to 7, two more in pair i of bytes 8 to 11.
    four = (b["scales"][:, None, :8] >> _HALVES) & 15
    two = (b["scales"][:, None, 8:] >> _PAIRS) & 3
    six = four.reshape(-1, 16) | (two.reshape(-1, 16) << 4)
    scales = (_wide(b["d"]) * (six.view(np.int8) - np.int8(32)))[:, :, None]
    np.multiply(q, scales, out=rows)


def _q4_k(b: np.ndarray, out: np.ndarray) -> None:
    rows = out.reshape(-1, 8, 32)
    scales, mins = _k_scales(b)
    q = (b["q"].reshape(-1, 4, 1, 32) >> _HALVES) & 15
    np.multiply(q.reshape(rows.shape), scales, out=rows)
    rows -= mins


def _q5_k(b: np.ndarray, out: np.ndarray) -> None:
    rows = out.reshape(-1, 8, 32)
    scales, mins = _k_scales(b)
    low = (b["q"].reshape(-1, 4, 1, 32) >> _HALVES) & 15
    high = (b["high"][:, None, :] >> _BITS) & 1
    np.multiply(low.reshape(rows.shape) | (high << 4), scales, out=rows)
    rows -= mins


def _q6_k(b: np.ndarray, out: np.ndarray) -> None:
    rows = out.reshape(-1, 16, 16)
    low = (b["q"].reshape(-1, 2, 1, 64) >> _HALVES) & 15
    high = (b["high"].reshape(-1, 2, 1, 32) >> _PAIRS) & 3
    q = (low.reshape(rows.shape) | (high.reshape(rows.shape) << 4)).view(np.int8) - np.int8(32)
    np.multiply(q, (_wide(b["d"]) * b["scales"])[:, :, None], out=rows)


def _layout(*fields: tuple[str, str, int]) -> np.dtype:
    return np.dtype([(n, kind) if size == 1 else (n, kind, (size,)) for n, kind, size in fields])


_D, _M, _DMIN = ("d", "<f2", 1), ("m", "<f2", 1), ("dmin", "<f2", 1)
_BLOCKS: dict[str, tuple[np.dtype, Callable[[np.ndarray, np.ndarray], None]]] = {
    "Q8_0": (_layout(_D, ("q", "i1", 32)), _q8_0),
    "Q4_0": (_layout(_D, ("q", "u1", 16)), _q4_0),
    "Q4_1": (_layout(_D, _M, ("q", "u1", 16)), _q4_1),
    "Q5_0": (_layout(_D, ("high", "u1", 4), ("q", "u1", 16)), _q5_0),
    "Q5_1": (_layout(_D, _M, ("high", "u1", 4), ("q", "u1", 16)), _q5_1),
    "Q2_K": (_layout(("scales", "u1", 16), ("q", "u1", 64), _D, _DMIN), _q2_k),
    "Q3_K": (_layout(("high", "u1", 32), ("q", "u1", 64), ("scales", "u1", 12), _D), _q3_k),
    "Q4_K": (_layout(_D, _DMIN, ("scales", "u1", 12), ("q", "u1", 128)), _q4_k),
    "Q5_K": (_layout(_D, _DMIN, ("scales", "u1", 12), ("high", "u1", 32), ("q", "u1", 128)), _q5_k),
    "Q6_K": (_layout(("q", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), _D), _q6_k),
}
