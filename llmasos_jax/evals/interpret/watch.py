"""The seam: what stands at named places inside of a model is read, and replaced, while it runs.

The model's code asks its `Runtime`, an argument, to tag the arrays that a backward pass may keep
(`Runtime.tag`): the residual stream before each block, what the heads gathered, what attention and
MLP add. A runtime that looks at what it is asked to tag therefore sees every one of these places in
every family, one stack or two, dense or with experts, on one device or on many: nothing in the
model's code knows of it. Blocks of a loaded model lie one after another (`file_def`), so a tag is
met once for each layer, in order, and counting "block" tells the layer. Arrays are those of the
program that is traced: what is read comes out of it, and gradients go through what is replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from llmasos_jax.config.devices import KernelsConfig
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.models.transformer import Encoded, Transformer
from llmasos_jax.nn.runtime import Runtime

MODEL, ENCODER = "model", "encoder"  # the stack under the output layer; what an encoder reads
BLOCK, HEADS, ATTENTION, MLP = "block", "attention", "attention_out", "mlp_out"


class Place(NamedTuple):
    """Where an array stands: which stack, which tag, which layer (from 0)."""

    stack: str
    name: str
    layer: int


Edit = Callable[[Place, jax.Array], jax.Array]


class Binds(Protocol):
    """What makes a model of weights: a `ModelDef`, or one whose models listen."""

    def bind(self, params: Any) -> Transformer:
        """The model with these weights."""
        ...


@dataclass(eq=False)
class Watch:
    """What one pass through a stack met. Made anew for each trace."""

    stack: str
    edit: Edit | None
    values: dict[Place, jax.Array] = field(default_factory=dict)
    layer: int = -1

    def see(self, x: jax.Array, name: str) -> jax.Array:
        """Keeps what stands at a place, after the edit."""
        self.layer += name == BLOCK
        place = Place(self.stack, name, self.layer)
        if place in self.values:  # the second attention of a decoder with an encoder
            place = place._replace(name=f"cross_{name}")
        x = x if self.edit is None else self.edit(place, x)
        self.values[place] = x
        return x


@dataclass(frozen=True)
class WatchedRuntime(Runtime):
    """A runtime that looks at what it is asked to tag."""

    watch: Watch | None = None

    def tag(self, x: jax.Array, name: str) -> jax.Array:
        """`x`, or what is to stand in its place."""
        x = super().tag(x, name)
        return x if self.watch is None else self.watch.see(x, name)


def watched(runtime: Runtime, stack: str, edit: Edit | None) -> tuple[WatchedRuntime, Watch]:
    """The same runtime with eyes. Attention is the plain one: other kernels tag less."""
    watch = Watch(stack, edit)
    own = {f.name: getattr(runtime, f.name) for f in dataclasses.fields(runtime)}
    own["kernels"] = KernelsConfig(attention="reference")
    return WatchedRuntime(**own, watch=watch), watch


@dataclass(frozen=True)
class Seen:
    """One forward pass.

    Attributes:
      x_btd: the last hidden state, after the final norm where there is one.
      values: what stood at each place.
    """

    x_btd: jax.Array
    values: dict[Place, jax.Array]


def run_watched(
    definition: Binds,
    runtime: Runtime,
    params: Any,
    arrays: tuple[Any, Any],
    edit: Edit | None = None,
) -> Seen:
    """Runs a model over rows; call it inside of a jitted function.

    Args:
      definition: of the model.
      runtime: as the model's weights want it.
      params: the weights.
      arrays: what `Row.arrays` has, of any number of rows.
      edit: given a place and what stands there, gives what is to stand there.
    """
    model = definition.bind(params)
    (tokens_bt, mask_bt, types_bt), decoder = arrays
    encoded, values = None, {}
    if decoder is not None:
        own, watch = watched(runtime, ENCODER, edit)
        encoded = model.encode(
            tokens_bt, positions_bs=_positions(mask_bt), segment_ids_bs=mask_bt, runtime=own
        )
        values |= watch.values
        (tokens_bt, mask_bt, types_bt) = decoder
    own, watch = watched(runtime, MODEL, edit)
    hidden = model.hidden(
        tokens_bt,
        positions_bt=_positions(mask_bt),
        segment_ids_bt=mask_bt,
        token_types_bt=types_bt,
        encoded=encoded if isinstance(encoded, Encoded) else None,
        runtime=own,
    )
    return Seen(hidden.x_btd, values | watch.values)


def score_at(
    definition: ModelDef,
    runtime: Runtime,
    params: Any,
    x_btd: jax.Array,
    position: jax.Array,
    tokens: tuple[jax.Array, jax.Array, jax.Array],
) -> jax.Array:
    """The logit of a token at a position, float32 [B].

    `tokens` are the token's id, another's, and 1 where that one's logit is to be taken from it.
    """
    x_b1d = jax.lax.dynamic_slice_in_dim(x_btd, position, 1, axis=1)
    logits_bv = definition.bind(params).logits(x_b1d, runtime)[:, 0]
    token, other, weight = tokens
    return jnp.take(logits_bv, token, axis=1) - weight * jnp.take(logits_bv, other, axis=1)


def repeated(arrays: tuple[Any, Any], num: int) -> tuple[Any, Any]:
    """The one row of `arrays`, `num` times."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape[1:])), arrays)


def _positions(mask_bt: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.cumsum(mask_bt, axis=1) - 1, 0)
