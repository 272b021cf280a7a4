"""Which weights a run moves, and the others, which it neither differentiates nor saves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmasos_jax.config.schema import Config
from llmasos_jax.models.adapters import is_adapter
from llmasos_jax.types import Tree

Path = tuple[str, ...]

# What stands on the trunk, and is new where the base has none.
HEADS = ("classifier", "pooler")

# Among the weights that a run leaves as they are, those of the model that is imitated.
TEACHER = "teacher"


def is_trained(cfg: Config) -> Callable[[Path], bool]:
    """Tells of a leaf, by its path, whether the run moves it.

    Example:
      >>> from llmasos_jax.config.build import load_config
      >>> is_trained(load_config("tiny"))(("embed", "table"))
      True
    """
    if cfg.finetune.base is None or cfg.finetune.method == "full":
        return lambda path: True
    if cfg.finetune.method == "head":
        return lambda path: path[0] in HEADS
    return lambda path: is_adapter(path) or path[0] == "classifier"


def share_of_flops(cfg: Config) -> float:
    """Of a step's products, the share that is computed when some weights have no gradient.

    A third of a step is the forward pass, a third the gradients of activations, a third those of
    weights; adapters are too small to count.
    """
    if cfg.finetune.base is None:
        return 1.0
    return {"full": 1.0, "lora": 2 / 3, "head": 1 / 3}[cfg.finetune.method]


def without_teacher(frozen: Tree) -> Tree:
    """Of the weights that a run leaves as they are, those of its own model.

    Example:
      >>> without_teacher({"embed": 1, "teacher": {"embed": 2}})
      {'embed': 1}
    """
    return {name: part for name, part in frozen.items() if name != TEACHER}


def parted(tree: Tree, is_first: Callable[[Path], bool], path: Path = ()) -> tuple[Tree, Tree]:
    """A tree as two: the leaves that `is_first` takes, and the others; no empty branches.

    Example:
      >>> parted({"a": {"x": 1, "y": 2}, "b": 3}, lambda path: path[-1] == "x")
      ({'a': {'x': 1}}, {'a': {'y': 2}, 'b': 3})
    """
    first, second = {}, {}
    for key, value in tree.items():
        here = (*path, key)
        if isinstance(value, dict):
            one, other = parted(value, is_first, here)
            first |= {key: one} if one else {}
            second |= {key: other} if other else {}
        else:
            (first if is_first(here) else second)[key] = value
    return first, second


def together(first: Tree, second: Tree) -> Tree:
    """The tree that two parts came from.

    Example:
      >>> together({"a": {"x": 1}}, {"a": {"y": 2}, "b": 3})
      {'a': {'x': 1, 'y': 2}, 'b': 3}
    """
    joined: dict[str, Any] = dict(first)
    for key, value in second.items():
        joined[key] = together(joined[key], value) if key in joined else value
    return joined
