"""The leaves of a training state by name, and the check that two states have the same ones."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from llmasos_jax.errors import CheckpointError

STACK = "periods"  # leaves below this name have one entry per repetition on their first axis


@dataclass(frozen=True)
class Leaf:
    """What a checkpoint says of one leaf.

    Attributes:
      shape: sizes of its axes.
      dtype: name of its dtype ("float32", "bfloat16", "key<fry>" for a typed PRNG key).
    """

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(str(size) for size in self.shape)}]"


def flatten(tree: Any) -> dict[str, Any]:
    """Names every leaf of a pytree by its path, joined by slashes.

    The names hold no class names, so a checkpoint outlives a renamed optimizer state.

    Raises:
      CheckpointError: two leaves would have the same name.

    Example:
      >>> flatten({"params": {"embed": {"table": 1}}, "opt_state": (2, 3)})
      {'opt_state/0': 2, 'opt_state/1': 3, 'params/embed/table': 1}
    """
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = "/".join(_entry(part) for part in path)
        if name in named:
            raise CheckpointError(f'two leaves of the state are called "{name}"; rename one')
        named[name] = leaf
    return named


def _entry(part: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(part, attribute):
            return str(getattr(part, attribute)).replace("/", "_")
    return str(part)


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
    """Turns names with slashes into nested dicts.

    Example:
      >>> nest({"a/b": 1, "a/c": 2})
      {'a': {'b': 1, 'c': 2}}
    """
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def describe(leaf: Any) -> Leaf:
    """The shape and dtype of an array, or of a ShapeDtypeStruct."""
    return Leaf(tuple(leaf.shape), str(leaf.dtype))


def is_stacked(name: str) -> bool:
    """Whether the leaf's first axis counts layers."""
    return STACK in name.split("/")


def check_same(found: Mapping[str, Leaf], wanted: Mapping[str, Leaf], where: str) -> None:
    """Raises CheckpointError unless both have the same leaves, listing every one that differs.

    Args:
      found: leaves of the checkpoint.
      wanted: leaves of the state that it is to be restored into.
      where: the checkpoint's folder, for the message.
    """
    missing = sorted(wanted.keys() - found.keys())
    extra = sorted(found.keys() - wanted.keys())
    other = sorted(n for n in wanted.keys() & found.keys() if wanted[n] != found[n])
    if not (missing or extra or other):
        return
    lines = [f"  {n}: checkpoint {found[n]}, this run {wanted[n]}" for n in other]
    lines += [f"  {n}: checkpoint has none, this run {wanted[n]}{_near(n, extra)}" for n in missing]
    lines += [f"  {n}: checkpoint {found[n]}, this run has none{_near(n, missing)}" for n in extra]
    raise CheckpointError(
        f"checkpoint {where} does not fit this run: {len(lines)} of {len(wanted)} leaves differ. "
        "Use the config that it was written with, or another folder. Nothing was loaded.\n"
        + "\n".join(lines)
    )


def _near(name: str, candidates: list[str]) -> str:
    """The nearest name on the other side: most mismatches are a rename."""
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    return f' (nearest name: "{near[0]}")' if near else ""
