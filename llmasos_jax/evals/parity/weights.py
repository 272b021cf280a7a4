"""How a weight of one model is related to the weight of the same name in the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from llmasos_jax.format.names import expected
from llmasos_jax.format.read import ModelFiles

_EQUAL = 1e-6  # of the largest number: rounding of float32, nothing else


@dataclass(frozen=True)
class LeafDifference:
    """A weight that is not the same in both models.

    Attributes:
      name: in files.
      how: what the second one is, seen from the first.
      relative: largest difference, as a share of the largest number; infinite where shapes differ.
      hint: what that would mean; empty where it says itself.
    """

    name: str
    how: str
    relative: float
    hint: str = ""


def compare_weights(
    a: ModelFiles, b: ModelFiles, tick: Callable[[str], None] = lambda _: None
) -> Iterator[LeafDifference]:
    """Yields every weight in which two models differ, in the order of the files of `a`.

    Two tensors are in memory at a time, and those of the same layer where a name may be wrong.
    """
    names = {**a.tensors, **{n: None for n in b.tensors if n not in a.tensors}}
    axes = {**_axes(b), **_axes(a)}
    for name in names:
        tick(name)
        if name not in b.tensors or name not in a.tensors:
            where = "second" if name not in b.tensors else "first"
            yield LeafDifference(name, f"is not in the {where} model", float("inf"), _absent(name))
            continue
        x, y = _read(a.tensors[name]), _read(b.tensors[name])
        found = relation(x, y, axes.get(name, ()))
        if found is None:
            continue
        how, hint = found
        if how == UNRELATED:
            other = _same_as(y, name, a.tensors)
            how, hint = (f"is {other} of the first", "tensors exchanged") if other else found
        yield LeafDifference(name, how, _relative(x, y), hint)


UNRELATED = "other numbers"


def relation(
    x: np.ndarray, y: np.ndarray, axes: tuple[str | None, ...] = ()
) -> tuple[str, str] | None:
    """What `y` is, seen from `x`, and what that would mean; None if they are equal.

    Args:
      x: float32 array of a weight.
      y: that of the other model.
      axes: logical names of its axes, for a permutation's name.

    Example:
      >>> relation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.0]))
      ('all numbers are 1 higher', 'norm offset: scale or 1 + scale')
    """
    if x.shape != y.shape:
        return _other_shape(x, y)
    if _is_close(x, y):
        return None
    if not np.isfinite(y).all():
        return "has what is no number", "a damaged file, or an overflow of a narrow type"
    for test in (_rounded, _scaled, _shifted, _turned):
        found = test(x, y)
        if found is not None:
            return found
    return _permuted(x, y, axes) or _partly(x, y)


def _other_shape(x: np.ndarray, y: np.ndarray) -> tuple[str, str]:
    how = f"is {list(y.shape)}, the first {list(x.shape)}"
    if x.size == y.size and x.ndim == y.ndim == 2 and _is_close(x.T, y):
        return f"{how}: transposed", "transposed"
    return how, "another width, or rows that pad the vocabulary"


def _rounded(x: np.ndarray, y: np.ndarray) -> tuple[str, str] | None:
    for name, dtype in (("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)):
        with np.errstate(over="ignore"):
            if np.array_equal(x.astype(dtype).astype(np.float32), y.astype(np.float32)):
                return f"is rounded to {name}", "another stored type"
            if np.array_equal(y.astype(dtype).astype(np.float32), x.astype(np.float32)):
                return f"is not rounded to {name}, the first is", "another stored type"
    return None


def _scaled(x: np.ndarray, y: np.ndarray) -> tuple[str, str] | None:
    x64, y64 = x.astype(np.float64), y.astype(np.float64)
    square = float((x64 * x64).sum())
    factor = float((x64 * y64).sum()) / square if square else 0.0
    if not factor or not _is_close(x64 * factor, y64):
        return None
    if abs(factor + 1) < 1e-5:
        return "has the other sign", "sign"
    return f"is {factor:.6g} times the first", "scaling: a factor that is in the weight or outside"


def _shifted(x: np.ndarray, y: np.ndarray) -> tuple[str, str] | None:
    offset = float(np.mean(y.astype(np.float64) - x))
    if not _is_close(x + offset, y):
        return None
    word = "higher" if offset > 0 else "lower"
    is_one = abs(abs(offset) - 1) < 1e-3
    hint = "norm offset: scale or 1 + scale" if is_one else ""
    return f"all numbers are {abs(offset):.6g} {word}", hint


def _turned(x: np.ndarray, y: np.ndarray) -> tuple[str, str] | None:
    """Whether the matrix (first axis against the others, or the last) is transposed."""
    for split in range(1, x.ndim):
        rows = int(np.prod(x.shape[:split]))
        a, b = x.reshape(rows, -1), y.reshape(rows, -1)
        if a.shape[0] == 1 or a.shape[1] == 1:
            continue
        if (a.shape == b.T.shape and _is_close(a.T, b)) or _is_close(a.T.reshape(b.shape), b):
            return "is transposed", "a matrix stored [out, in] was read as [in, out]"
    return None


def _permuted(x: np.ndarray, y: np.ndarray, axes: tuple[str | None, ...]) -> tuple[str, str] | None:
    for axis in range(x.ndim):
        order = _order(_rows(x, axis), _rows(y, axis))
        if order is not None:
            return _permutation(order, axis, x, axes)
    if x.ndim == 3:
        # Heads and their width together, wherever the model's width stands.
        wide = 0 if axes[:1] in (("embed",), ()) else 2
        a, b = (np.moveaxis(z, wide, -1).reshape(-1, z.shape[wide]) for z in (x, y))
        order = _order(a, b)
        if order is not None:
            return (
                f"has the numbers of its heads in another order ({_few(order)})",
                "head order or rope layout: heads and their rows were cut in another way",
            )
    return None


def _permutation(
    order: np.ndarray, axis: int, x: np.ndarray, axes: tuple[str | None, ...]
) -> tuple[str, str]:
    name = axes[axis] if len(axes) == x.ndim else None
    few = _few(order)
    if name in ("heads", "kv_heads"):
        return f"has its heads in another order ({few})", "head order"
    is_head_width = x.ndim == 3 and name is None
    if is_head_width or (x.ndim == 2 and "heads" in str(axes[:1])):
        half = np.arange(len(order)).reshape(2, -1).T.reshape(-1) if len(order) % 2 == 0 else None
        turned = None if half is None else np.argsort(half)
        for known, text in ((half, "halves -> neighbours"), (turned, "neighbours -> halves")):
            if known is not None and np.array_equal(order, known):
                return f"has the rows of each head permuted ({text})", ROPE_LAYOUT
        return f"has the numbers of each head in another order ({few})", ROPE_LAYOUT
    what = {"embed": "the model's width", "ffn": "the MLP's width", "vocab": "the vocabulary"}
    return f"is permuted along {what.get(str(name), f'axis {axis}')} ({few})", "order of rows"


ROPE_LAYOUT = (
    "rope layout: rotated pairs are neighbours (rope_interleaved) in one model and the two halves "
    "of a head in the other; flip rope_interleaved, or permute the rows of q and k"
)


def _partly(x: np.ndarray, y: np.ndarray) -> tuple[str, str]:
    differ = np.abs(x - y) > _EQUAL * max(float(np.abs(x).max()), 1e-30)
    share = float(differ.mean())
    if share < 0.5:
        first = tuple(int(i) for i in np.argwhere(differ)[0])
        return f"differs in {int(differ.sum()):,} of {x.size:,} numbers, first {list(first)}", ""
    x64, y64 = x.astype(np.float64).ravel(), y.astype(np.float64).ravel()
    norms = float(np.linalg.norm(x64) * np.linalg.norm(y64))
    if norms and float(x64 @ y64) / norms > 0.98:
        noise = float(np.linalg.norm(y64 - x64) / np.linalg.norm(x64))
        return f"is near: noise of {noise:.2g} of its size", "quantisation, or further training"
    return UNRELATED, ""


def _order(x: np.ndarray, y: np.ndarray) -> np.ndarray | None:
    """The order with `y == x[order]`, rows of two matrices, if there is one and it is not as is."""
    if len(x) < 2:
        return None
    probe = np.random.default_rng(0).standard_normal(x.shape[1])
    a, b = x.astype(np.float64) @ probe, y.astype(np.float64) @ probe
    by_a, by_b = np.argsort(a, kind="stable"), np.argsort(b, kind="stable")
    if not np.allclose(a[by_a], b[by_b], rtol=1e-5, atol=1e-5 * max(float(np.abs(a).max()), 1e-30)):
        return None
    order = np.empty(len(a), np.int64)
    order[by_b] = by_a
    return order if _is_close(x[order], y) else None


def _rows(x: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


def _few(order: np.ndarray) -> str:
    return " ".join(map(str, order[:8])) + (" ..." if len(order) > 8 else "")


def _same_as(y: np.ndarray, name: str, tensors: Mapping[str, Any]) -> str | None:
    """Another tensor of the first model that is `y`: of the same layer, or the same in another."""
    stem, _, leaf = name.rpartition(".")
    group = ".".join(name.split(".")[:2]) + "."
    for other, tensor in tensors.items():
        is_near = other.startswith(group) or other.endswith(f".{leaf}")
        if other != name and is_near and tensor.shape == y.shape and _is_close(_read(tensor), y):
            return other
    return None


def _is_close(x: np.ndarray, y: np.ndarray) -> bool:
    return x.shape == y.shape and _relative(x, y) <= _EQUAL


def _relative(x: np.ndarray, y: np.ndarray) -> float:
    if x.shape != y.shape:
        return float("inf")
    largest = float(np.abs(x).max()) if x.size else 0.0
    apart = float(np.abs(x - y).max()) if x.size else 0.0
    if not np.isfinite(apart):
        return float("inf")
    return apart / largest if largest else (float("inf") if apart else 0.0)


def _read(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.read()).astype(np.float32)


def _axes(files: ModelFiles) -> dict[str, tuple[str | None, ...]]:
    return {name: spec.axes for name, spec in expected(files.manifest.parameters).items()}


def _absent(name: str) -> str:
    if name.startswith(("head.transform.", "head.norm.")):
        return "output layer: an MLM head in one model, one product in the other"
    if name == "head.w":
        return "tied head: one model has an output layer of its own, the other its embeddings"
    return "bias" if name.endswith("bias") else ""
