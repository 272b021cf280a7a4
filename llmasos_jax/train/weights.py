"""Which leaf of a parameter tree is which kind of weight, told by its name.

Names, not dimensions: weights are stored unflattened (q is [D, N, H]) and scanned layers carry a
leading layer axis, so a norm's scale may have two dimensions and a matrix may have four.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from llmasos_jax.errors import ConfigError

Path = tuple[str, ...]

# Weights of products: how many dimensions go in and how many come out, as one layer stores them.
_IN_OUT: dict[str, tuple[int, int]] = {
    "q": (1, 2),
    "k": (1, 2),
    "v": (1, 2),
    "o": (2, 1),
    "q_down": (1, 1),
    "kv_down": (1, 1),
    "k_rope": (1, 1),
    "gate": (1, 1),
    "up": (1, 1),
    "down": (1, 1),
    "router": (1, 1),
    "shared_gate": (1, 1),
    "w": (1, 1),
    "table": (1, 1),
}
# Below "moe", these are one matrix for each expert.
_EXPERTS = ("gate", "up", "down")
_VECTORS = ("scale", "bias", "positions", "types", "buckets", "magnitude")
_LORA = "_lora"  # behind the name of a weight with a low-rank change
_BLOCKS = ("prefix", "periods", "suffix", "layers")


class Matrix(NamedTuple):
    """The dimensions of a stored weight that a product contracts, and those that it gives."""

    in_dims: tuple[int, ...]
    out_dims: tuple[int, ...]


def matrix(path: Path) -> Matrix | None:
    """Which dimensions of a leaf make a matrix; None for scales, biases and rows that are added.

    Args:
      path: keys from the root of the parameter tree.

    Raises:
      ConfigError: a weight of an unknown name.

    Example:
      >>> matrix(("periods", "0", "attn", "o"))
      Matrix(in_dims=(1, 2), out_dims=(3,))
      >>> matrix(("final_norm", "scale")) is None
      True
    """
    name = path[-1]
    if name in _VECTORS or name.endswith("_bias"):
        return None
    num_in, num_out = _in_out(path)
    start = num_lead(path)
    middle = start + num_in
    return Matrix(tuple(range(start, middle)), tuple(range(middle, middle + num_out)))


def _in_out(path: Path) -> tuple[int, int]:
    name, changed = path[-1], _changed(path)
    if changed != path:  # x A B, each a matrix of its own
        num_in, num_out = _in_out(changed)
        return (num_in, 1) if name == "a" else (1, num_out)
    if name not in _IN_OUT:
        raise ConfigError(
            f'the optimizer does not know the weight "{".".join(path)}": add "{name}" to the table '
            "in llmasos_jax/train/weights.py, with the dimensions that its product contracts"
        )
    return _IN_OUT[name]


def is_stacked(path: Path) -> bool:
    """Whether dimension 0 counts layers: each of them is a weight of its own."""
    return _in_stack(path)[0] == "periods"


def num_lead(path: Path) -> int:
    """How many leading dimensions number weights of their own: of layers, of experts.

    Example:
      >>> num_lead(("periods", "0", "moe", "up")), num_lead(("periods", "0", "moe", "shared", "up"))
      (2, 1)
      >>> num_lead(("periods", "0", "moe", "up_lora", "magnitude"))
      2
    """
    path = _changed(path)
    return int(is_stacked(path)) + int(path[-2:-1] == ("moe",) and path[-1] in _EXPERTS)


def _changed(path: Path) -> Path:
    """The path of the weight that a leaf is a change of, or else of the leaf itself."""
    *above, last = path[:-1] or ("",)
    return (*above, last.removesuffix(_LORA)) if last.endswith(_LORA) else path


def is_in_block(path: Path) -> bool:
    """Whether the weight belongs to a layer, not to the embedding, the final norm or the head."""
    return _in_stack(path)[0] in _BLOCKS


def _in_stack(path: Path) -> Path:
    """The path below the stack that the weight belongs to."""
    return path[1:] if path[0] == "encoder" else path


def map_named(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function gets the path of the leaf first."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: fn(tuple(str(key.key) for key in path), *leaves), tree, *rest
    )


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves by their paths.

    Example:
      >>> by_path({"periods": {"0": {"attn": {"q": 1}}}})
      {'periods/0/attn/q': 1}
    """
    found: dict[str, Any] = {}
    map_named(lambda path, leaf: found.update({"/".join(path): leaf}), tree)
    return found


def decay_mask(params: Any) -> Any:
    """A tree of booleans: which weights weight decay pulls towards zero.

    Weights of products: yes, the embedding table included when it is the output layer too.
    A table that is only looked up: no. A row that seldom occurs gets hardly any gradient, so decay
    alone would shrink it, and the norm behind it would then enlarge its gradients
    (OLMo Team, 2025, arXiv 2501.00656, section 3, takes it away for that reason).
    Scales, biases, learned positions, token types, biases of relative positions: no.
    """
    is_tied = "w" not in params.get("head", {})

    def decays(path: Path, _: Any) -> bool:
        return matrix(path) is not None and (is_tied or path[-1] != "table")

    return map_named(decays, params)
