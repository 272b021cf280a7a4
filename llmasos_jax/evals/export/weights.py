"""Whether the weights that an export holds are the model's, and how far it rounded them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from llmasos_jax.errors import ExportError, FormatError
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.tensorfile import StoredTensor

# What a type of 16 bits makes of a number is known to the bit.
_NEAREST = {
    **{"float16": np.dtype(np.float16), "F16": np.dtype(np.float16)},
    **{"bfloat16": np.dtype(ml_dtypes.bfloat16), "BF16": np.dtype(ml_dtypes.bfloat16)},
}
# The largest root mean square error of a tensor, as a share of its own, that rounding can make:
# half a step of the type, for four bits as normal numbers in blocks of 32 have it, and a third more
# for numbers that are less even. Another tensor is at 1.4.
ROUNDING = {
    **{"float32": 0.0, "F32": 0.0},
    **{"Q8_0": 0.01, "Q6_K": 0.03, "Q5_0": 0.06, "Q5_1": 0.06, "Q5_K": 0.06},
    **{"Q4_0": 0.14, "Q4_1": 0.14, "Q4_K": 0.14},
}
# The same of one token's row, however few numbers make its blocks: of hundred thousand rows a whole
# tensor does not show one. Another row is at 1.4.
_MOST_OF_ROW = 0.5
_ROWS = {"embed.table": 1, "head.w": 0}  # the axis that a row runs along
_SMALLEST = 1e-37  # below it ggml's bfloat16 is 0


class MismatchError(ExportError):
    """What was written is not the model; whoever catches it adds where the two part."""


@dataclass(frozen=True)
class Rounded:
    """What rounding did to the weights.

    Attributes:
      tensors: how many are not bit for bit the model's.
      worst: of those the largest root mean square error, as a share of the tensor's own.
      where: its name; None if all are equal.
    """

    tensors: int
    worst: float
    where: str | None


def compare_stored(
    files: ModelFiles, held: Mapping[str, np.ndarray], dtype: str | None, opens: str
) -> Rounded:
    """Compares each tensor that was written with the model's.

    Args:
      files: the model.
      held: what was written, read back.
      dtype: that was asked for; None asks for the model's own, bit for bit.
      opens: the program, for messages.

    Raises:
      FormatError: the model itself has a number that is none.
      MismatchError: a tensor is missing or one too many, has another shape, or differs by more than
        rounding to that dtype can explain.
    """
    if held.keys() != files.tensors.keys():
        missing = sorted(files.tensors.keys() - held.keys())
        more = sorted(held.keys() - files.tensors.keys())
        kind, names = ("does not hold", missing) if missing else ("holds, and the model not,", more)
        raise MismatchError(f"what was written for {opens} {kind} {', '.join(names[:3])}")
    tensors, worst, where = 0, 0.0, None
    for name, tensor in files.tensors.items():
        ours, theirs = np.asarray(tensor.read()), np.asarray(held[name])
        if not np.isfinite(ours.astype(np.float32)).all():
            raise FormatError(
                f"the model's own {name} has numbers that are none (NaN or infinite), of which "
                "nothing can be proven; mend it, or say --unproven (unproven=True)"
            )
        if ours.shape != theirs.shape:
            raise MismatchError(
                f"what was written for {opens} holds {name} as {list(theirs.shape)}, not "
                f"{list(ours.shape)}"
            )
        one, two = ours.astype(np.float32), theirs.astype(np.float32)
        error = _error(one, two)
        if error and (problem := _unexplained(name, one, two, error, dtype)):
            raise MismatchError(f"what was written for {opens} is not the model: {name} {problem}")
        tensors += error > 0
        if error > worst:
            worst, where = error, name
    return Rounded(tensors, worst, where)


def _unexplained(
    name: str, one: np.ndarray, two: np.ndarray, error: float, dtype: str | None
) -> str | None:
    """What of a difference is no rounding to the dtype, in words; None if that explains it."""
    if dtype in _NEAREST:
        with np.errstate(over="ignore"):  # the writer refuses what is too large
            wanted = one.astype(_NEAREST[dtype]).astype(np.float32)
        wrong = int(np.sum(~(np.abs(two - wanted) <= _SMALLEST) & (two != one)))
        return f"has {wrong} numbers that are not the nearest of {dtype}" if wrong else None
    most = ROUNDING[dtype] if dtype is not None else 0.0
    if error > most:
        return (
            f"is {error:.1e} of itself away, and rounding to {dtype or 'nothing'} explains "
            f"{most:.1e}"
        )
    if name not in _ROWS:
        return None
    axis, floor = _ROWS[name], 1e-3 * float(np.sqrt(np.mean(np.square(one), dtype=np.float64)))
    apart, sizes = (np.sqrt(np.mean(np.square(x), axis, np.float64)) for x in (one - two, one))
    far = np.flatnonzero(apart > _MOST_OF_ROW * np.maximum(sizes, floor))
    return f"has other numbers for the ids {far[:5].tolist()}" if far.size else None


def _error(x: np.ndarray, y: np.ndarray) -> float:
    """Root mean square difference over root mean square; infinite where a number is none."""
    if np.array_equal(x, y):
        return 0.0
    apart = float(np.sqrt(np.mean(np.square(x - y, dtype=np.float64))))
    size = float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
    found = apart / size if size else float("inf")
    return found if np.isfinite(found) else float("inf")


class Read(Mapping[str, np.ndarray]):
    """Tensors that are read each time they are asked for, so that one at a time is in memory."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self._tensors[name].read())

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
