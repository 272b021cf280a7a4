"""Adapters beside one model's weights, not merged: one is chosen per call, and nothing compiles.

All share one structure: changes of every product that any of them changes, as wide as the widest.
What an adapter has less is zeros, which add exactly nothing. Its scale is in B; of DoRA each
column's factor is computed here, once.

Without an adapter the model runs its own programs, which know of none of this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from llmasos_jax.errors import FormatError, GenerationError, did_you_mean
from llmasos_jax.format.names import flatten
from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.generate.weights import Weights, place_beside
from llmasos_jax.hub.adapters import StoredAdapter, leaf, product_of
from llmasos_jax.interop.lowrank import LowRank
from llmasos_jax.models.adapters import Adapters
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.nn.adapters import column_lengths, each

Adapter = str | None
_A = leaf("", "a")


@dataclass(frozen=True)
class Adapted:
    """A model's weights with one adapter beside them.

    Attributes:
      weights: the model's own arrays, and the adapter's.
      chat_template: that the adapter was trained with; None is the model's.
    """

    weights: Weights
    chat_template: str | None = None


def place_adapters(
    weights: Weights, tensors: Mapping[str, StoredTensor], adapters: Mapping[str, StoredAdapter]
) -> dict[str, Adapted]:
    """Reads adapters onto the devices of a model, whose own weights are not copied.

    Args:
      weights: the model's.
      tensors: the same as they are stored: DoRA asks how long their columns are.
      adapters: by name.

    Raises:
      FormatError: an adapter is for weights of another shape, or changes what is no product.
    """
    plain = weights.definition
    products = _products(plain)
    for stored in adapters.values():
        _check(plain, stored, products)
    changes = [change for stored in adapters.values() for change in stored.changes.values()]
    names = sorted({product_of(name) for stored in adapters.values() for name in stored.changes})
    shared = Adapters(
        tuple(names),
        rank=max((change.rank for change in changes), default=0),
        dora=any(change.magnitude is not None for change in changes),
        is_fixed=True,
    )
    definition = ModelDef(plain.cfg, plain.layout, shared)
    return {
        name: Adapted(
            place_beside(weights, definition, _arrays(definition, stored, tensors)),
            stored.chat_template,
        )
        for name, stored in adapters.items()
    }


def check_name(adapter: Any, names: Sequence[str], model: str) -> Adapter:
    """The name of an adapter that the model has, or None.

    Raises:
      GenerationError: it has none of this name.
    """
    if adapter is None or (isinstance(adapter, str) and adapter in names):
        return adapter
    if not names:
        raise GenerationError(
            f"adapter={adapter!r}, and {model} was loaded without any; give "
            "load_model(..., adapters={name: folder})"
        )
    hint = did_you_mean(adapter, names) if isinstance(adapter, str) else ""
    raise GenerationError(
        f"adapter={adapter!r} is not one of {model}, which has {', '.join(names)}{hint}; None is "
        "the model without one"
    )


def rows_of(adapter: Any, num_prompts: int) -> list[tuple[Any, list[int]]]:
    """Which prompts each adapter is for, of one for all or a list with one for each.

    Raises:
      GenerationError: there are not as many as prompts.

    Example:
      >>> rows_of("a", 2), rows_of(["a", None, "a"], 3)
      ([('a', [0, 1])], [('a', [0, 2]), (None, [1])])
    """
    if not isinstance(adapter, (list, tuple)):
        return [(adapter, list(range(num_prompts)))]
    if len(adapter) != num_prompts:
        raise GenerationError(
            f"there are {num_prompts} prompts and {len(adapter)} adapters; give one for each, or "
            "one for all"
        )
    rows: dict[Any, list[int]] = {}
    for row, name in enumerate(adapter):
        rows.setdefault(name, []).append(row)
    return list(rows.items())


def _products(definition: ModelDef) -> set[str]:
    """The names of all weights that can have a change beside them."""
    shapes = ModelDef(definition.cfg, definition.layout, Adapters(("*",), 1)).shapes
    return {name.removesuffix(_A) for name in flatten(shapes) if name.endswith(_A)}


def _check(plain: ModelDef, stored: StoredAdapter, products: set[str]) -> None:
    """Raises FormatError unless an adapter's arrays fit the model's weights."""
    shapes, num_in, leads = map(flatten, (plain.shapes, plain.contractions, plain.leads))
    for name, shape in _shapes_of(stored):
        if name not in shapes:
            raise FormatError(
                f'"{stored.source}" changes {name}, which this model has not; it was made for '
                "another one"
            )
        if tuple(shapes[name].shape) != shape:
            raise FormatError(
                f'"{stored.source}" changes {name} as one of the shape {list(shape)}, and this '
                f"model has {list(shapes[name].shape)}; it was made for another one"
            )
    for name, change in stored.changes.items():
        if name not in products:
            raise FormatError(
                f'"{stored.source}" changes {name}, which is no product inside of a block; merge '
                "it into the model's weights instead of loading it beside them"
            )
        rows = change.b.shape[: leads[name] + 1]
        wanted = (*change.a.shape[: leads[name]], change.rank)
        num_axes = leads[name] + num_in[name] + 1
        if (change.num_lead, len(change.a.shape), rows) != (leads[name], num_axes, wanted):
            raise FormatError(
                f'"{stored.source}": A and B of {name} have the shapes {change.a.shape} and '
                f"{change.b.shape}, whose product is not one; the folder is damaged"
            )


def _shapes_of(stored: StoredAdapter) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The names of the tensors that it is for, and the shapes that they should have."""
    for name, change in stored.changes.items():
        yield name, change.shape
    for name, tensor in stored.replaced.items():
        yield name, tensor.shape


def _arrays(
    definition: ModelDef, stored: StoredAdapter, tensors: Mapping[str, StoredTensor]
) -> Iterator[tuple[str, np.ndarray]]:
    """What stands beside the model's weights, one array after the other, by names of leaves."""
    shapes, num_in = flatten(definition.shapes), flatten(definition.contractions)
    changed = {name.removesuffix(_A) for name in shapes if name.endswith(_A)}
    for name in sorted(changed):
        parts = ("a", "b", "ratio") if leaf(name, "ratio") in shapes else ("a", "b")
        found = {}
        if change := stored.changes.get(name):
            found = _finished(change, tensors[name], num_in[name])
        for part in parts:
            wanted = shapes[leaf(name, part)].shape
            whole = np.full(wanted, float(part == "ratio"), np.float32)
            if (array := found.get(part)) is not None:
                whole[tuple(map(slice, array.shape))] = array  # the rest of its rank is zeros
            yield leaf(name, part), whole
    for name, tensor in stored.replaced.items():
        yield name, tensor.read()


def _finished(change: LowRank, tensor: StoredTensor, num_in: int) -> dict[str, np.ndarray]:
    """A, B times the scale, and what each column is multiplied by if the change has magnitudes."""
    a, b = (part.read().astype(np.float32) for part in (change.a, change.b))
    found = {"a": a, "b": b * np.float32(change.scale)}
    if change.magnitude is not None:
        w = jnp.asarray(tensor.read().astype(np.float32))
        lengths = each(partial(column_lengths, scale=change.scale, num_in=num_in), change.num_lead)(
            w, jnp.asarray(a), jnp.asarray(b)
        )
        found["ratio"] = change.magnitude.read().astype(np.float32) / np.asarray(lengths)
    return found
