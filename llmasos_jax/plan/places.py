"""Experts of a step in closed form: the places of their products, as `nn.moe` lays them out.

Shapes are fixed before it is known which token goes where, so there are places for more than an
even share: where experts are on several devices and no capacity is set, for all tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from llmasos_jax.nn.experts import assign
from llmasos_jax.parallel.mesh import ways
from llmasos_jax.train.step import Trainer


@dataclass(frozen=True)
class Places:
    """Of one layer with experts, one device, one part of a batch.

    Attributes:
      rows: of its products, empty ones included.
      choices: of its own tokens: what `rows` would be if they spread evenly.
      exchanged: tokens that go to and fro between devices, empty places included; 0 where all
        experts are here.
      layers: with experts.
    """

    rows: int
    choices: int
    exchanged: int
    layers: int


def places_of(trainer: Trainer, rows: int) -> Places | None:
    """Places of a run; None where it has no experts.

    Args:
      trainer: of the step.
      rows: sequences of a device, in one part of a batch.
    """
    cfg, context = trainer.cfg, trainer.manual.context
    experts, capacity = cfg.model.experts, cfg.train.expert_capacity
    layers = sum(map(cfg.model.has_experts, range(cfg.model.num_layers)))
    if not layers:
        return None
    length, k = cfg.data.sequence_length, experts.per_token
    tokens, num_devices = rows * length // context, ways(trainer.mesh, "expert")
    local = experts.count // num_devices
    limit = None if capacity is None else rows * math.ceil(capacity * length * k / experts.count)
    if num_devices == 1:
        taken = tokens
        most = None if limit is None else min(tokens * k, local * limit)
    else:
        taken = num_devices * (tokens if limit is None else min(tokens, local * limit))
        most = taken * min(k, local)
        most = most if limit is None else min(most, num_devices * local * limit)
    chosen = jax.ShapeDtypeStruct((taken, k), jnp.int32)
    made = jax.eval_shape(lambda chosen_ak: assign(chosen_ak, local, "tpu", most), chosen)
    return Places(
        rows=made.token_r.shape[0],
        choices=tokens * k,
        exchanged=taken if num_devices > 1 else 0,
        layers=layers,
    )


def kept_places_bytes(trainer: Trainer, rows: int, item: int) -> int:
    """What the backward pass of one layer's experts reads: six of their width, and what goes in.

    Gate, up and their product, as the kernels leave them and with the rows of no expert set to 0.

    Args:
      trainer: of the step.
      rows: as in `places_of`.
      item: bytes of a number.
    """
    model, places = trainer.cfg.model, places_of(trainer, rows)
    if places is None:
        return 0
    wide = (6 if model.is_gated else 4) * model.expert_width
    return places.rows * (wide // ways(trainer.mesh, "tensor") + model.embedding_dim) * item


def empty_places_flops(trainer: Trainer, rows: int) -> float:
    """Operations, for each token of a step, of the places beyond an even share."""
    cfg, places = trainer.cfg, places_of(trainer, rows)
    if places is None:
        return 0.0
    model = cfg.model
    one = model.embedding_dim * model.expert_width * model.experts.per_token
    # Forward, twice backward, and again.
    passes = 4 if cfg.train.remat in ("full", "tags") else 3
    products = passes * (3 if model.is_gated else 2)
    return 2.0 * products * one * places.layers * (places.rows / places.choices - 1)
