"""One optimizer step on a mesh: loss and gradients in the manual region, the update outside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.packing import TokenDocuments
from llmasos_jax.data.tokenizers.vocabulary import Vocabulary
from llmasos_jax.errors import ConfigError
from llmasos_jax.models.definition import ModelDef, init_params
from llmasos_jax.models.remat import check_remat
from llmasos_jax.nn.dropout import Dropout
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.parallel.manual import Manual
from llmasos_jax.parallel.mesh import batch_axes, ways
from llmasos_jax.parallel.place import own_rows, put_rows, replicated, shardings
from llmasos_jax.train.batches import batch_specs
from llmasos_jax.train.master import narrow, next_params, widen, with_master
from llmasos_jax.train.moments import with_moments
from llmasos_jax.train.mup import check_mup, scaled_init, width_ratio
from llmasos_jax.train.numbers import Numbers, is_zero, numbers_of
from llmasos_jax.train.objective import LossSum, Objective, build_objective
from llmasos_jax.train.optim import build_optimizer, like_params, norm_of_updates
from llmasos_jax.train.placed import Placed, placed_model, placed_teacher, specs_of
from llmasos_jax.train.scaling import choose, start_scale
from llmasos_jax.train.schedules import build_schedule
from llmasos_jax.train.spikes import start_guard
from llmasos_jax.train.state import StepMetrics, TrainState
from llmasos_jax.train.trained import TEACHER, is_trained, parted, together, without_teacher
from llmasos_jax.types import Tree


def make_trainer(
    cfg: Config,
    mesh: Mesh,
    vocabulary: Vocabulary | None = None,
    teacher: ModelConfig | None = None,
) -> Trainer:
    """Builds the step of a run; nothing is compiled or allocated yet.

    Args:
      cfg: the run.
      mesh: its devices.
      vocabulary: the tokenizer's; None is enough for a step that never sees text.
      teacher: the parameters of the model that `finetune.teacher` names.

    Raises:
      ConfigError: the mesh does not cut the batch or a weight into equal parts, or splits tokens
        where that is not computed; or the teacher is none.
    """
    split = ways(mesh, *batch_axes(mesh))
    parts = split * cfg.train.accumulate_steps
    if cfg.train.batch_size % parts:
        raise ConfigError(
            f"train.batch_size={cfg.train.batch_size} is not divisible by {parts}, the devices "
            f"that split the batch ({split}) x train.accumulate_steps "
            f"({cfg.train.accumulate_steps}); make it a multiple of {parts}"
        )
    check_remat(cfg)
    check_mup(cfg)
    own, objective = placed_model(cfg, mesh), build_objective(cfg, vocabulary)
    if objective.has_teacher and teacher is None:
        raise ConfigError(
            f'finetune.teacher="{cfg.finetune.teacher}" is opened beside finetune.base, by '
            "`llmasos finetune` alone; set both, and start the run with that"
        )
    numbers = numbers_of(cfg)
    return Trainer(
        cfg=cfg,
        mesh=mesh,
        manual=own.manual,
        definition=own.definition,
        runtime=own.runtime,
        numbers=numbers,
        optimizer=_optimizer(cfg, numbers, own.definition),
        objective=objective,
        teacher=None if teacher is None else placed_teacher(cfg, mesh, teacher),
    )


def _optimizer(cfg: Config, numbers: Numbers, definition: ModelDef) -> optax.GradientTransformation:
    """The config's optimizer, which remembers what it has to as `precision` says."""
    optimizer = build_optimizer(numbers.optim, cfg.train.steps, width_ratio(cfg))
    kind, moved = cfg.precision.moments, is_trained(cfg)
    if kind != "float32":
        shapes = parted(definition.shapes, moved)[0]
        optimizer = with_moments(optimizer, kind, shapes, cfg.optim.name)
    if cfg.precision.weights != "float32" and cfg.precision.master:
        optimizer = with_master(optimizer, parted(definition.is_narrow, moved)[0])
    return optimizer


@dataclass(frozen=True)
class Trainer:
    """The pure functions of a run, jitted for one mesh.

    In `TrainState.params` are the weights that the run moves. A fine-tuning run may leave others as
    they are: those are `frozen`, an argument of each function, which no checkpoint holds; with a
    teacher they have its weights, too, as `TEACHER`.
    """

    cfg: Config
    mesh: Mesh
    manual: Manual
    definition: ModelDef
    runtime: Runtime
    numbers: Numbers
    optimizer: optax.GradientTransformation
    objective: Objective
    teacher: Placed | None = None

    def with_numbers(self, values: Mapping[str, Any]) -> Trainer:
        """The same step with arguments of its program in place of some of the config's numbers.

        Args:
          values: numbers, or scalars of a trace, by paths of `train.numbers.NUMBERS`.
        """
        numbers = self.numbers.replace(values)
        optimizer = _optimizer(self.cfg, numbers, self.definition)
        return dataclasses.replace(self, numbers=numbers, optimizer=optimizer)

    def init(self, key: jax.Array) -> TrainState:
        """A fresh state, each array made where it will live. `key` is a typed PRNG key."""
        return jax.jit(self.initial_state, out_shardings=self.state_shardings)(key)

    def start(self, key: jax.Array, params: Tree) -> TrainState:
        """A fresh state around weights that are there; their memory is taken over if it fits."""
        found = jax.tree.map(lambda leaf: leaf.dtype, params)
        wanted = jax.tree.map(lambda leaf: leaf.dtype, self._state_shapes.params)
        donated = 1 if found == wanted else ()
        start = jax.jit(self._start, donate_argnums=donated, out_shardings=self.state_shardings)
        return start(jax.random.split(key)[1], params)

    @cached_property
    def abstract_state(self) -> TrainState:
        """The state's shapes, dtypes and shardings, without its memory."""
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            self._state_shapes,
            self.state_shardings,
        )

    @cached_property
    def state_shardings(self) -> TrainState:
        """Where each array of the state lives; optimizer state lives with its weight."""
        whole = replicated(self.mesh)
        params = shardings(self._moved(self.definition.axes), self.mesh, self.manual.rules)
        shapes = self._moved(self.definition.shapes)
        opt_state = like_params(
            self._state_shapes.opt_state, shapes, params, whole, of_rows=_of_rows
        )
        few = self._state_shapes.scale, self._state_shapes.guard
        scale, guard = jax.tree.map(lambda _: whole, few)
        # A tree of shardings in the place of a tree of arrays.
        return TrainState(whole, params, opt_state, whole, scale, guard)  # pyright: ignore[reportArgumentType]

    def _moved(self, tree: Tree) -> Tree:
        return parted(tree, is_trained(self.cfg))[0]

    @cached_property
    def batch_sharding(self) -> NamedSharding:
        """Where rows of a batch live, whole: over the batch axes."""
        return NamedSharding(self.mesh, self.manual.rules.spec("batch"))

    @cached_property
    def abstract_batch(self) -> Batch:
        """A global batch's shapes, dtypes and shardings: with `abstract_state`, enough to lower."""
        length = self.cfg.data.sequence_length
        # Any text will do: shapes do not depend on it.
        text = TokenDocuments.from_lists([[0] * length, [0] * length])
        row = self.objective.rows(text, length)[0]
        batch = self.objective.prepare(row, np.random.default_rng(0))

        def abstract(leaf: np.ndarray) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((self.cfg.train.batch_size, *leaf.shape), leaf.dtype)

        batch = jax.tree.map(abstract, batch)
        return jax.tree.map(
            lambda leaf, spec: leaf.update(sharding=NamedSharding(self.mesh, spec)),
            batch,
            self.batch_specs(batch),
        )

    @cached_property
    def own_rows(self) -> tuple[int, ...]:
        """The rows of a batch that this process reads: those that its devices hold."""
        return own_rows(self.batch_sharding, self.cfg.train.batch_size)

    def put(self, batch: Batch) -> Batch:
        """Puts this process's rows of a NumPy batch on its devices."""

        def place(rows: np.ndarray, spec: PartitionSpec) -> jax.Array:
            return put_rows(rows, NamedSharding(self.mesh, spec), self.cfg.train.batch_size)

        return jax.tree.map(place, batch, self.batch_specs(batch))

    @cached_property
    def step(self) -> Any:
        """`(state, batch, frozen={}) -> (state, StepMetrics)`, jitted; takes the state's memory."""
        return jax.jit(
            self.next_state,
            donate_argnums=0,
            out_shardings=(self.state_shardings, replicated(self.mesh)),
        )

    @cached_property
    def evaluate(self) -> Any:
        """`(params, batch, frozen={}) -> LossSum` over the global batch, jitted, no dropout."""
        return jax.jit(self.held_out_sums, out_shardings=replicated(self.mesh))

    def loss_and_grad(
        self,
        params: Tree,
        batch: Batch,
        key: jax.Array,
        scale: jax.Array | None = None,
        frozen: Tree | None = None,
    ) -> tuple[LossSum, Tree]:
        """Sums of the loss over the global batch, and the gradient of `weight_sum` times the loss.

        Args:
          params: weights where `state_shardings` says.
          batch: global arrays, of which devices have parts as `put` gives them.
          key: of this step's dropout.
          scale: float32, what the mean loss is multiplied by before it is differentiated, and the
            gradient divided by; not finite where that is too much for float16. None for 1.
          frozen: the weights that have no gradient.

        Returns:
          Sums (not means), and a float32 gradient that lives where the weights do.
        """
        moved, frozen = self._moved(self._specs), frozen or {}
        run = self.manually(self._device_loss_and_grad, batch, (PartitionSpec(), moved))
        given = {"key_data": jax.random.key_data(key), "scales": self._term_scales(batch)}
        if not is_zero(self.numbers.dropout_rate):
            given["dropout_rate"] = jnp.float32(self.numbers.dropout_rate)
        if not is_zero(self.numbers.label_smoothing):
            given["label_smoothing"] = jnp.float32(self.numbers.label_smoothing)
        if scale is None:
            return run(params, batch, given, frozen)
        factor = scale / jnp.maximum(jnp.sum(batch.loss_weights), 1.0)
        sums, grads = run(params, batch, given | {"factor": factor}, frozen)
        return sums, jax.tree.map(lambda g: g / factor, grads)

    def initial_state(self, key: jax.Array) -> TrainState:
        """What `init` compiles."""
        init_key, run_key = jax.random.split(key)
        whole = init_params(self.definition, init_key, std=self.numbers.init_std)
        whole = scaled_init(whole, width_ratio(self.cfg))
        return self._start(run_key, self._moved(whole))

    def _start(self, run_key: jax.Array, params: Tree) -> TrainState:
        precision, whole = self.cfg.precision, widen(params)
        if precision.weights != "float32":
            params = narrow(whole, self._moved(self.definition.is_narrow))
        opt_state, scale = self.optimizer.init(whole), start_scale(precision)
        guard = start_guard(self.cfg.optim.spike_factor)
        return TrainState(jnp.int32(0), params, opt_state, run_key, scale, guard)

    @cached_property
    def _state_shapes(self) -> TrainState:
        return jax.eval_shape(self.initial_state, jax.random.key(0))

    def next_state(
        self, state: TrainState, batch: Batch, frozen: Tree | None = None
    ) -> tuple[TrainState, StepMetrics]:
        """What `step` compiles."""
        key, scale, guard = jax.random.fold_in(state.key, state.step), state.scale, state.guard
        sums, grads = self.loss_and_grad(
            state.params, batch, key, None if scale is None else scale.value, frozen
        )
        tokens = jnp.maximum(sums.weight_sum, 1.0)
        grads = jax.tree.map(lambda g: g / tokens, grads)
        with jax.named_scope("optimizer"):
            whole = widen(state.params)
            updates, opt_state = self.optimizer.update(grads, state.opt_state, whole)
            params = next_params(state.params, updates, opt_state, state.step)
            update_norm = norm_of_updates(updates, params, self.runtime.platform)
        # The norm is of all devices' gradients, so they agree on what is left out.
        means, grad_norm, num_updates = sums.means(), optax.tree.norm(grads), state.step
        old, factor = (state.params, state.opt_state), self.cfg.optim.spike_factor
        if scale is not None:
            is_finite = jnp.isfinite(grad_norm)
            params, opt_state = choose(is_finite, (params, opt_state), old)
            num_updates -= scale.skipped
            scale = scale.after(is_finite, self.cfg.precision.loss_scale_steps)
            means |= scale.metrics(is_finite)
        if guard is not None and factor is not None:
            # A norm that is not finite is no spike: float16 or the loop deals with it.
            is_spike = jnp.isfinite(grad_norm) & guard.is_spike(grad_norm, factor)
            params, opt_state = choose(is_spike, old, (params, opt_state))
            num_updates -= guard.skipped
            guard = guard.after(grad_norm, factor)
            means |= guard.metrics(is_spike)
        metrics = StepMetrics(
            loss=means.pop("loss"),
            nll=means.pop("nll"),
            weight=sums.weight_sum,
            learning_rate=jnp.float32(
                build_schedule(self.numbers.optim, self.cfg.train.steps)(num_updates)
            ),
            grad_norm=grad_norm,
            param_norm=optax.tree.norm(whole),
            update_norm=update_norm,
            extra=means,
        )
        return TrainState(state.step + 1, params, opt_state, state.key, scale, guard), metrics

    def held_out_sums(self, params: Tree, batch: Batch, frozen: Tree | None = None) -> LossSum:
        """What `evaluate` compiles."""

        def run(params: Tree, batch: Batch, _: Tree, frozen: Tree) -> LossSum:
            return self.manual.sum(self._sums(params, frozen, batch, self.runtime, None))

        return self.manually(run, batch, PartitionSpec())(params, batch, {}, frozen or {})

    def _sums(
        self, params: Tree, frozen: Tree, batch: Batch, runtime: Runtime, dropout: Dropout | None
    ) -> LossSum:
        model = self.definition.bind(together(params, without_teacher(frozen)))
        if self.teacher is None:
            return self.objective.loss(model, batch, runtime, dropout)
        teacher = self.teacher.bound(frozen[TEACHER])
        return self.objective.loss(model, batch, runtime, dropout, teacher=teacher)

    @property
    def _specs(self) -> Tree:
        return specs_of(self.definition, self.manual)

    def batch_specs(self, batch: Batch) -> Batch:
        """The PartitionSpec of each array of a batch."""
        return batch_specs(batch, self.objective.token_fields, self.manual)

    def manually(self, fn: Any, batch: Batch, out_specs: Any) -> Any:
        """`fn(moved, batch, replicated, frozen)` in the manual region."""
        moved, frozen = parted(self._specs, is_trained(self.cfg))
        if self.teacher is not None:
            teachers = specs_of(self.teacher.definition, self.teacher.manual)
            frozen = {**frozen, TEACHER: teachers}
        in_specs = (moved, self.batch_specs(batch), PartitionSpec(), frozen)
        return self.manual.shard_map(fn, in_specs, out_specs)

    def _device_loss_and_grad(
        self, params: Tree, batch: Batch, given: dict[str, Any], frozen: Tree
    ) -> tuple[LossSum, Tree]:
        """What one device does with its part of the batch, inside the manual region.

        `given` is the same on all: arguments of `_loss`.
        """
        num_parts = self.cfg.train.accumulate_steps
        rows = batch.tokens.shape[0]
        numbers = self.manual.first_row(rows) + jnp.arange(rows, dtype=jnp.int32)
        # Every n-th row: the same rows make a part on every mesh, since what a device has begins at
        # a multiple of n. (The balance of experts is over a part.)
        cut = lambda x: x.reshape(rows // num_parts, num_parts, *x.shape[1:]).swapaxes(0, 1)
        parts = jax.tree.map(cut, (batch, numbers))
        loss = partial(self._loss, **given, frozen=frozen)

        def grad_fn(*args: Any) -> tuple[Tree, LossSum]:
            grads, sums = jax.grad(loss, has_aux=True)(*args)
            return widen(grads), sums

        def add(total: Any, part: Any) -> tuple[Any, None]:
            grads, sums = grad_fn(params, *part)
            return jax.tree.map(jnp.add, total, (sums, grads)), None

        if num_parts == 1:
            grads, sums = grad_fn(params, batch, numbers)
        else:
            shapes = jax.eval_shape(grad_fn, params, *jax.tree.map(lambda x: x[0], parts))
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes[1], shapes[0]))
            (sums, grads), _ = lax.scan(add, zeros, parts)
        axes = self._moved(self.definition.axes)
        grads = jax.tree.map(self.manual.sum_gradient, grads, axes)
        return self.manual.sum(sums), grads

    def _term_scales(self, batch: Batch) -> dict[str, jax.Array]:
        """What each further term of the loss is multiplied by, before parts and devices add up.

        The gradient is divided by the tokens of the global batch in the end: tokens / weight makes
        of that the mean over the term's own weight.
        """
        if self.objective.term_weights is None:
            return {}
        # Outside of the manual region: of a global batch, where each weight stands once.
        tokens = jnp.maximum(jnp.sum(batch.loss_weights), 1.0)
        terms = self.objective.term_weights(batch)
        return {name: tokens / jnp.maximum(weight, 1.0) for name, weight in terms.items()}

    def _loss(
        self,
        params: Tree,
        batch: Batch,
        rows_b: jax.Array,
        *,
        key_data: jax.Array,
        scales: dict[str, jax.Array],
        frozen: Tree,
        factor: jax.Array | None = None,
        dropout_rate: jax.Array | None = None,
        label_smoothing: jax.Array | None = None,
    ) -> tuple[jax.Array, LossSum]:
        dropout = None
        if dropout_rate is not None:
            key = jax.random.wrap_key_data(key_data)
            first = jnp.int32(self.manual.first_token(batch.tokens.shape[1]))
            dropout = Dropout(key, dropout_rate, rows_b, first, self.manual.context)
        runtime = dataclasses.replace(
            self.runtime,
            expert_capacity=self.cfg.train.expert_capacity,
            label_smoothing=label_smoothing,
        )
        sums = self._sums(params, frozen, batch, runtime, dropout)
        if sums.terms.keys() != scales.keys():
            raise ConfigError(
                f'objective.name="{self.cfg.objective.name}": its loss has the terms '
                f"{sorted(sums.terms)}, its term_weights {sorted(scales)}; give both the same names"
            )
        terms = [scales[name] * term.loss_sum for name, term in sums.terms.items()]
        total = sum(terms, start=sums.loss_sum)
        return total if factor is None else total * factor, sums


def _of_rows(where: NamedSharding) -> NamedSharding:
    """Where one number for each row of a weight's last axis lives: with the row."""
    spec = tuple(where.spec)
    return NamedSharding(where.mesh, PartitionSpec(*spec[:-1]))
