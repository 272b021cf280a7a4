"""Runs scanned layers in stages, each on its own devices, that pass microbatches on.

It is called inside the manual region (`parallel.manual`), where a device holds the layers of its
stage and the embedded rows that it owns. Rows visit all stages and come home. All devices run the
same program in each tick: a stage without work runs its layers on zeros, and nothing reads what
comes of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from llmasos_jax.config.schema import Config
from llmasos_jax.errors import ConfigError
from llmasos_jax.models.layout import Layout
from llmasos_jax.nn.block import BlockInputs
from llmasos_jax.nn.dropout import Dropout
from llmasos_jax.nn.moe import Routing
from llmasos_jax.parallel.mesh import batch_axes, ways
from llmasos_jax.parallel.schedule import Schedule, Turn
from llmasos_jax.types import Tree

AXIS = "pipeline"
_BORDER = "period"

# (weights of one run, x_btd, its first period's number, inputs, dropout) -> (x_btd, routings), the
# routing sums of each layer of a period that has experts, with a leading axis over periods.
RunLayers = Callable[
    [Tree, jax.Array, jax.Array, BlockInputs, Dropout | None], tuple[jax.Array, list[Routing]]
]

Policy = Callable[..., Any] | None


def stage_schedule(cfg: Config, mesh: Mesh, layout: Layout) -> Schedule | None:
    """The schedule of a run's stages; None without a pipeline.

    Args:
      cfg: `mesh.microbatches` None is as many as there are stages.
      mesh: its devices.
      layout: of the model.

    Raises:
      ConfigError: layers or rows are not cut into equal parts, or the model has no stages.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> from llmasos_jax.parallel.mesh import single_device_mesh
      >>> cfg = Config(ModelConfig(vocab_size=8, embedding_dim=8, num_layers=2))
      >>> print(stage_schedule(cfg, single_device_mesh(), Layout(0, 1, 2, 0)))
      None
    """
    stages, repeats = ways(mesh, AXIS), cfg.mesh.pipeline_repeats
    if stages == 1:
        # A preset's stages may be none, on few devices.
        if cfg.mesh.preset is None and (repeats > 1 or cfg.mesh.microbatches is not None):
            raise ConfigError(
                f"mesh.microbatches={cfg.mesh.microbatches} and mesh.pipeline_repeats={repeats} "
                "are of stages, and mesh.pipeline=1 has none; set mesh.pipeline, or leave them "
                "None and 1"
            )
        return None
    _check_layers(cfg, layout, stages, repeats)
    microbatches = stages if cfg.mesh.microbatches is None else cfg.mesh.microbatches
    rows = cfg.train.batch_size // (ways(mesh, *batch_axes(mesh)) * cfg.train.accumulate_steps)
    if microbatches % stages or rows % (microbatches // stages):
        fitting = [stages * n for n in _divisors(rows)]
        raise ConfigError(
            f"mesh.microbatches={microbatches} does not cut the {stages * rows} rows that "
            f"{stages} stages have together into equal parts of one stage's {rows} rows; make it "
            f"{_one_of(fitting)}, or change train.batch_size"
        )
    return Schedule(stages, microbatches, repeats)


def _check_layers(cfg: Config, layout: Layout, stages: int, repeats: int) -> None:
    if layout.encoder is not None:
        raise ConfigError(
            f"mesh.pipeline={stages}: an encoder-decoder has no stages, its decoder's layers all "
            "read the encoder's last; set mesh.pipeline=1 and use mesh.fsdp or mesh.tensor"
        )
    if not layout.count:
        raise ConfigError(
            f"mesh.pipeline={stages}: no run of this model's {layout.num_layers} layers repeats, "
            "and stages are made of layers that repeat; set mesh.pipeline=1, or give "
            "model.attention_windows and model.experts a period"
        )
    if layout.count % (stages * repeats):
        fitting = [n for n in _divisors(layout.count)[1:] if layout.count % (n * repeats) == 0]
        advice = f"make mesh.pipeline {_one_of(fitting)}" if fitting else "set mesh.pipeline=1"
        more = f" x mesh.pipeline_repeats={repeats}" if repeats > 1 else ""
        raise ConfigError(
            f"mesh.pipeline={stages}{more} does not cut the {layout.count} periods of "
            f"{layout.period} layers that this model repeats into equal parts; {advice}, or change "
            "model.num_layers" + (" or mesh.pipeline_repeats" if repeats > 1 else "")
        )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _one_of(numbers: list[int]) -> str:
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last


def run_stages(
    run_layers: RunLayers,
    params: Tree,
    x_btd: jax.Array,
    inputs: BlockInputs,
    dropout: Dropout | None,
    schedule: Schedule,
    policy: Policy,
) -> tuple[jax.Array, list[Routing]]:
    """Runs all periods on this device's rows, and this device's periods on its group's rows.

    Args:
      run_layers: one run of layers on one microbatch.
      params: this stage's weights, each with a leading axis over its periods.
      x_btd: the residual stream of the rows that this device owns, [B, T, D].
      inputs: what blocks read of these rows.
      dropout: noise of these rows; None for none.
      schedule: who runs what when.
      policy: what the backward pass keeps of a period, of `jax.checkpoint`; what stands at a
        period's `border` is kept in any case.

    Returns:
      The residual stream of the same rows after all periods, and routing sums with a leading axis
      over the periods of all stages: each over the rows of the group, and zero for other stages'
      layers, so that the sum over devices is that over all rows.
    """
    number, slots = lax.axis_index(AXIS), schedule.slots
    params = jax.tree.map(lambda w: _in_runs(w, schedule, number), params)
    rows = jax.tree.map(lambda x: _of_group(x, slots), _rows(inputs, dropout))
    stage = _Stage(run_layers, params, inputs, dropout, rows, schedule, number, policy)
    own = x_btd.reshape(slots, x_btd.shape[0] // slots, *x_btd.shape[1:])
    zeros = jnp.zeros_like(own[0])
    ticks = jnp.arange(schedule.ticks, dtype=jnp.int32)
    with jax.named_scope("pipeline"):
        flow = _Flow(zeros, zeros, zeros, jnp.zeros_like(own))
        flow, routings = lax.scan(partial(stage.tick, own), flow, ticks)
    repeats = schedule.turn(ticks, number).repeat
    routings = jax.tree.map(lambda sums: _by_period(sums, repeats, schedule, number), routings)
    return flow.home.reshape(x_btd.shape), routings


def border(x_btd: jax.Array) -> jax.Array:
    """Marks the residual stream before a period: kept, so that no layer runs three times."""
    return checkpoint_name(x_btd, _BORDER)


def _keeps(policy: Policy, primitive: Any, *args: Any, **params: Any) -> Any:
    """What is kept of a tick: were slices of weights kept, each tick would have its own copy."""
    if primitive.name == "name" and params["name"] == _BORDER:
        return True
    if policy is None or primitive.name in ("dynamic_slice", "squeeze"):
        return False
    return policy(primitive, *args, **params)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Flow:
    """Microbatches between two ticks, each a residual stream.

    Attributes:
      x_btd: what the stage before has done, to be gone on with.
      fed: on its way to the first stage, one place in each tick.
      done: on its way from the last stage to its owner, likewise.
      home: those that this device owns and that have passed all stages, [slots, ...].
    """

    x_btd: jax.Array
    fed: jax.Array
    done: jax.Array
    home: jax.Array


@dataclass(frozen=True)
class _Stage:
    run_layers: RunLayers
    params: Tree  # each [repeats, periods of a run, ...]
    inputs: BlockInputs
    dropout: Dropout | None
    rows: _Rows  # each [stages, slots, ...]: by owner
    schedule: Schedule
    number: jax.Array
    policy: Policy

    def tick(self, own: jax.Array, flow: _Flow, t: jax.Array) -> tuple[_Flow, list[Routing]]:
        """Runs one microbatch, if there is one, and passes all on; `own` is [slots, ...]."""
        schedule, stages = self.schedule, self.schedule.stages
        turn = schedule.turn(t, self.number)
        slot = jnp.minimum(t // schedule.round, schedule.slots - 1)
        fed = jnp.where(t % schedule.round == 0, _row(own, slot), flow.fed)
        x_btd = jnp.where((self.number == 0) & (turn.repeat == 0), fed, flow.x_btd)
        # Zeros where there is no work: what is left over there may have grown until it overflows,
        # and NaN times a gradient of zero is NaN.
        layers = jax.checkpoint(self._layers, policy=partial(_keeps, self.policy))
        x_btd, routings = layers(self.params, turn, jnp.where(turn.is_busy, x_btd, 0))
        routings = jax.tree.map(lambda sums: jnp.where(turn.is_busy, sums, 0), routings)
        is_last = (self.number == stages - 1) & (turn.repeat == schedule.repeats - 1)
        done = jnp.where(is_last, x_btd, flow.done)
        # When the last of a group leaves the last stage, each of them has come to its owner.
        since = t - (schedule.round + stages - 2)
        slot = jnp.maximum(since, 0) // schedule.round
        is_home = (since >= 0) & (since % schedule.round == 0)
        kept = jnp.where(is_home, done, _row(flow.home, slot))
        home = lax.dynamic_update_index_in_dim(flow.home, kept, slot, 0)
        ahead = [(i, (i + 1) % stages) for i in range(stages)]
        back = [(i, (i - 1) % stages) for i in range(stages)]
        x_btd = lax.ppermute(x_btd, AXIS, ahead)
        fed, done = (lax.ppermute(x, AXIS, back) for x in (fed, done))
        return _Flow(x_btd, fed, done, home), routings

    def _layers(
        self, params: Tree, turn: Turn, x_btd: jax.Array
    ) -> tuple[jax.Array, list[Routing]]:
        stages = self.schedule.stages
        weights = jax.tree.map(lambda w: _row(w, turn.repeat), params)
        slot, owner = turn.microbatch // stages, turn.microbatch % stages
        rows = jax.tree.map(lambda x: _row(_row(x, owner), slot), self.rows)
        inputs, dropout = _with_rows(self.inputs, self.dropout, rows)
        return self.run_layers(weights, x_btd, turn.repeat * stages + self.number, inputs, dropout)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Rows:
    """What blocks read that depends on the rows; the rest is the same for all."""

    segments: list[tuple[jax.Array | None, ...]]  # of each window: None and 5 are no sorted keys
    rotations: dict[str, Any]
    counted_bt: jax.Array
    numbers_b: jax.Array | None


def _rows(inputs: BlockInputs, dropout: Dropout | None) -> _Rows:
    seen = inputs.visible.values()
    return _Rows(
        [(see.q_segments, see.k_segments, see.k_prefix) for see in seen],
        inputs.rotations,
        inputs.counted_bt,
        None if dropout is None else dropout.rows_b,
    )


def _with_rows(
    inputs: BlockInputs, dropout: Dropout | None, rows: _Rows
) -> tuple[BlockInputs, Dropout | None]:
    visible = {}
    for (window, see), own in zip(inputs.visible.items(), rows.segments, strict=True):
        q_segments, k_segments, k_prefix = own
        visible[window] = dataclasses.replace(
            see, q_segments=q_segments, k_segments=k_segments, k_prefix=k_prefix
        )
    inputs = dataclasses.replace(
        inputs, visible=visible, rotations=rows.rotations, counted_bt=rows.counted_bt
    )
    if dropout is not None and rows.numbers_b is not None:
        dropout = dataclasses.replace(dropout, rows_b=rows.numbers_b)
    return inputs, dropout


def _row(x: jax.Array, index: Any) -> jax.Array:
    return lax.dynamic_index_in_dim(x, index, 0, keepdims=False) if x.shape[0] > 1 else x[0]


def _of_group(x: jax.Array, slots: int) -> jax.Array:
    """[B, ...] of each stage as [stage, slot, row, ...]: small arrays, whole on every device."""
    return lax.all_gather(x.reshape(slots, x.shape[0] // slots, *x.shape[1:]), AXIS)


def _in_runs(w: jax.Array, schedule: Schedule, stage: jax.Array) -> jax.Array:
    """[R, periods of a run, ...]: the runs of this stage, from those that are stored here."""
    repeats = schedule.repeats
    w = w.reshape(repeats, w.shape[0] // repeats, *w.shape[1:])
    if repeats == 1:
        return w
    come, order = [], []
    for moves in schedule.moves():
        sources = jnp.array([source for source, _, _ in moves])
        pairs = [(i, to) for i, (_, to, _) in enumerate(moves)]
        come.append(lax.ppermute(_row(w, sources[stage]), AXIS, pairs))
        order.append([place for _, place in sorted((to, place) for _, to, place in moves)])
    # Which exchange brought run r: the inverse of which run each exchange brought.
    return jnp.stack(come)[jnp.argsort(jnp.array(order)[:, stage])]


def _by_period(
    sums: jax.Array, repeats_t: jax.Array, schedule: Schedule, stage: jax.Array
) -> jax.Array:
    """[periods of all stages, ...] from what a stage's runs gave in each tick, [ticks, ...]."""
    runs = jnp.zeros((schedule.repeats, *sums.shape[1:]), sums.dtype).at[repeats_t].add(sums)
    is_own = jnp.arange(schedule.stages) == stage
    is_own = is_own.reshape(1, schedule.stages, *(1,) * (sums.ndim - 1))
    placed = jnp.where(is_own, runs[:, None], 0)
    return placed.reshape(-1, *sums.shape[2:])
