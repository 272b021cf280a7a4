"""Trains the runs of a group in one program: the loop of `train/loop.py`, for all of them.

Each run gets the training folder that it would have had alone. While the group trains, its state is
kept in the group's folder; in the end each run's own goes to its own, as a checkpoint that
`llmasos convert`, `generate` and `train` read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_jax.checkpoint import steps
from llmasos_jax.checkpoint.orbax import Checkpointer
from llmasos_jax.config.build import fields_of, to_dict
from llmasos_jax.config.schema import Config
from llmasos_jax.data.pipeline import Data, open_data
from llmasos_jax.data.tokenizers.vocabulary import Vocabulary, vocabulary_of
from llmasos_jax.errors import DataError, PreemptedError, TrainingFailedError
from llmasos_jax.models.count import count_parameters
from llmasos_jax.parallel.mesh import describe
from llmasos_jax.sweep.clock import Clock
from llmasos_jax.sweep.grouping import Group
from llmasos_jax.sweep.places import Places, read_json, write_json
from llmasos_jax.sweep.points import Point
from llmasos_jax.sweep.replicas import Each, Replicas, Together, lay_out, padded
from llmasos_jax.train.hooks import (
    Hooks,
    MetricsFile,
    RunInfo,
    TensorBoard,
    metrics_path,
    named_hooks,
    read_metrics,
)
from llmasos_jax.train.loop import Fitted
from llmasos_jax.train.metrics import heldout_values, step_values
from llmasos_jax.train.numbers import NUMBERS
from llmasos_jax.train.objective import build_objective
from llmasos_jax.train.preemption import StopRequest
from llmasos_jax.train.result import read_result
from llmasos_jax.train.run import counted, result_of, speed_of, tokenizer_for
from llmasos_jax.train.state import StepMetrics
from llmasos_jax.train.step import make_trainer
from llmasos_jax.train.workdir import claimed, newest_step

# (step, loss of each run; NaN where it has diverged)
Tell = Callable[[int, Sequence[float]], None]


def train_together(group: Group, places: Places, cache: Path, tell: Tell) -> None:
    """Trains a group's runs, or goes on where it stopped.

    Args:
      group: of one compilation key.
      places: the sweep's folder.
      cache: folder for token ids and trained tokenizers.
      tell: called after each step.

    Raises:
      ConfigError: the mesh does not fit the devices, or a folder holds another run.
      PreemptedError: Ctrl-C or SIGTERM; saved, the same call goes on.
    """
    clock, cfg = Clock(), group.config
    one, mesh = lay_out(cfg, len(group.points))
    trainer = make_trainer(cfg, one)
    folders = {point.name: places.point(point.name) for point in group.points}
    is_new = {p.name: newest_step(folders[p.name], p.config) is None for p in group.points}
    first = group.points[0].name
    has_records = trainer.objective.examples is not None
    tokenizer = tokenizer_for(
        cfg, folders[first], cache, is_new=is_new[first], has_records=has_records
    )
    vocabulary = vocabulary_of(tokenizer, cfg.model.vocab_size)
    trainer = dataclasses.replace(trainer, objective=build_objective(cfg, vocabulary))
    seeds = list(dict.fromkeys(point.config.data.seed for point in group.points))
    with contextlib.ExitStack() as stack:
        data = []
        for seed in seeds:
            seeded = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, seed=seed))
            # What rows are cut shorter hangs on the data's seed (pairs of sentences).
            objective = build_objective(seeded, vocabulary)
            opened = open_data(
                seeded,
                tokenizer,
                cache,
                own_rows=range(cfg.train.batch_size),
                prepare=objective.prepare,
                rows=objective.rows,
                by_sentence=objective.by_sentence,
                examples=objective.examples,
            )
            data.append(stack.enter_context(contextlib.closing(opened)))
        for point in group.points:
            stack.enter_context(
                claimed(folders[point.name], point.config, tokenizer, is_new=is_new[point.name])
            )
        each = each_of([point.config for point in group.points], seeds, padded(len(is_new), mesh))
        folder, every = places.group(group.name) / steps.FOLDER, cfg.checkpoint.every_steps
        keeper = stack.enter_context(contextlib.closing(Checkpointer(folder, every, keep=1)))
        run = _Run(group, places, Together(trainer, mesh, each), data, keeper, tell, clock)
        run.steps(run.restored_or_new())
        run.keep(vocabulary)


def each_of(configs: Sequence[Config], seeds: Sequence[int], count: int) -> Each:
    """What runs of one program differ in.

    Args:
      configs: of the runs.
      seeds: of the data, in the order in which their batches are given.
      count: of places; in those that no run needs the last one stands again.
    """
    configs = [*configs, *[configs[-1]] * (count - len(configs))]
    values = [dict(fields_of(config)) for config in configs]
    differ = [path for path in NUMBERS if len({found[path] for found in values}) > 1]
    return Each(
        key=jax.vmap(jax.random.key)(jnp.array([c.train.seed for c in configs], jnp.uint32)),
        batch=jnp.array([seeds.index(c.data.seed) for c in configs], jnp.int32),
        numbers={
            path: jnp.array([found[path] for found in values], jnp.float32) for path in differ
        },
    )


@dataclass(frozen=True)
class _Replica:
    """One run of the group: its place in the arrays, who is told of it, its last values."""

    index: int
    point: Point
    hooks: Hooks
    values: dict[str, float]
    heldout: dict[str, float]


class _Run:
    """The parts of a group's run, and what it has come to."""

    def __init__(
        self,
        group: Group,
        places: Places,
        together: Together,
        data: list[Data],
        keeper: Checkpointer,
        tell: Tell,
        clock: Clock,
    ) -> None:
        self.group, self.places, self.together = group, places, together
        self.data, self.keeper, self.tell, self.clock = data, keeper, tell, clock
        self.cfg = group.config
        self.replicas = [
            _Replica(i, point, _hooks(point.config), {}, {}) for i, point in enumerate(group.points)
        ]
        self.broken = np.zeros(len(self.replicas), np.int64)
        self.speed = speed_of(together.trainer)
        self.start = 0

    def restored_or_new(self) -> Replicas:
        """The states to go on from, and the data where they stand."""
        if self.keeper.latest_step() is None:
            count = len(self.together.each.batch)
            configs = [point.config for point in self.group.points]
            configs += [configs[-1]] * (count - len(configs))
            return self.together.init([config.train.init_std for config in configs])
        restored = self.keeper.restore(self._kept())
        for data, state in zip(self.data, restored.data_state["data"], strict=True):
            data.restore(state)
        self.start = restored.step
        self.broken = self._read_broken(restored.state)
        count = len(self.together.each.batch)
        if len(restored.state.broken) == count:
            return restored.state
        places = np.minimum(np.arange(count), len(self.replicas) - 1)
        moved = jax.tree.map(lambda x: x[places], restored.state)
        return jax.device_put(moved, self.together.shardings)

    def _kept(self) -> Replicas:
        """The shapes of the checkpoint: on other devices other places were filled up."""
        abstract = self.together.abstract
        newest = steps.find_step(self.keeper.folder, None)
        count = steps.read_json(newest, steps.CONFIG).get("places", abstract.broken.shape[0])
        if count == abstract.broken.shape[0]:
            return abstract
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype), abstract
        )

    def steps(self, states: Replicas) -> None:
        """The loop; leaves the states in `self.states`."""
        last = self.cfg.train.steps
        devices = describe(self.together.mesh)
        parameters = count_parameters(self.cfg.model)
        for replica in self._running():
            folder = self.places.point(replica.point.name)
            replica.hooks.on_start(
                RunInfo(replica.point.config, folder, self.start, parameters, self.speed, devices)
            )
        in_flight: tuple[int, StepMetrics, Any] | None = None
        done, error = self.start, None
        try:
            with StopRequest() as stop:
                # Runs that were stopped on a step due for evaluation have still to do it.
                if self.start and self.is_evaluated(self.start):
                    self.evaluate(self.start, states)
                for step in range(self.start + 1, last + 1):
                    batches = self.together.put([next(data.train) for data in self.data])
                    states, metrics = self.together.step(states, batches)
                    # The device has work: now there is time for the step before.
                    if in_flight is not None:
                        self.report(*in_flight)
                    # The states are the next step's memory; what is asked of them now is a copy.
                    in_flight = (step, metrics, states.broken + 0)
                    done = step
                    if stop.name or step == last or self.is_due(step):
                        self.report(*in_flight)
                        in_flight = None
                        self.look(step, states, stop)
                        self.clock.resume()
                    if not any(True for _ in self._running()):
                        break
            self.keeper.wait()
        except BaseException as raised:
            error = raised
            raise
        finally:
            for replica in self._running():
                replica.hooks.on_end(done, error)
        self.states, self.done = states, done

    def is_due(self, step: int) -> bool:
        """Whether something looks at the states after this step."""
        return self.is_evaluated(step) or self.keeper.is_due(step)

    def is_evaluated(self, step: int) -> bool:
        """Whether held-out text is scored after this step."""
        every = self.cfg.train.eval_every_steps
        return every is not None and (step == self.cfg.train.steps or step % every == 0)

    def look(self, step: int, states: Replicas, stop: StopRequest) -> None:
        """Does what is due after a step: evaluate, save, stop."""
        if self.is_evaluated(step) and not stop.name:
            self.evaluate(step, states)
        if step == self.cfg.train.steps or stop.name or self.keeper.is_due(step):
            position = {"data": [data.state() for data in self.data]}
            names = {
                "points": [point.name for point in self.group.points],
                "places": len(self.together.each.batch),
            }
            for replica in self._running():
                replica.hooks.on_checkpoint(step)
            self.keeper.save(step, states, position, names)
        if stop.name:
            self.keeper.wait()
            raise PreemptedError(
                f"{stop.name}: saved at step {step} of {self.cfg.train.steps}; the same command "
                "goes on"
            )

    def report(self, step: int, metrics: StepMetrics, broken: jax.Array) -> None:
        """Waits for a step's values and passes them on; says who has diverged."""
        found: Any = jax.device_get(metrics)
        self.clock.step()
        broken_at = np.asarray(jax.device_get(broken))
        losses = []
        for replica in self.replicas:
            index = replica.index
            if self.broken[index]:
                losses.append(math.nan)
                continue
            own = jax.tree.map(lambda x, index=index: x[index], found)
            values = step_values(own, self.cfg.objective.name)
            if broken_at[index]:
                self._end(replica, step, values)
                losses.append(math.nan)
                continue
            tokens = float(step * self.speed.tokens_per_step)
            replica.values.clear()
            replica.values.update(values | {"tokens": tokens})
            replica.hooks.on_step(step, replica.values)
            losses.append(values["loss"])
        self.tell(step, losses)

    def evaluate(self, step: int, states: Replicas) -> None:
        """Scores held-out text for all runs; each counts the batches of its own data seed."""
        most = self.cfg.train.eval_batches
        counts = [min(len(data.heldout), most or len(data.heldout)) for data in self.data]
        if not any(counts):
            return
        own_data = np.asarray(self.together.each.batch)
        sums: dict[int, Any] = {}
        for number in range(max(counts)):
            # One whose data seed has fewer batches reads its last one again, which is not counted.
            batches = [data.heldout[min(number, len(data.heldout) - 1)] for data in self.data]
            part: Any = jax.device_get(self.together.evaluate(states, self.together.put(batches)))
            for replica in self._running():
                index = replica.index
                if number < counts[own_data[index]]:
                    own = jax.tree.map(lambda x, index=index: x[index], part)
                    sums[index] = sums[index] + own if index in sums else own
        for replica in self._running():
            total = sums[replica.index]
            if total.weight_sum == 0:
                raise DataError(
                    "the held-out text has no token to score; give longer documents, or a larger "
                    "data.heldout_fraction"
                )
            replica.heldout.clear()
            replica.heldout.update(heldout_values(total, self.cfg.objective.name))
            replica.hooks.on_eval(step, replica.heldout)

    def keep(self, vocabulary: Vocabulary) -> None:
        """Writes each run's last state and result into its own folder."""
        seconds = self.clock.total_s() / len(self.replicas)
        own_data = np.asarray(self.together.each.batch)
        counts: dict[int, Any] = {}  # of each data seed
        for replica in self._running():
            config, folder = replica.point.config, self.places.point(replica.point.name)
            finished = read_result(folder)
            if finished is not None and finished.step >= self.done:
                continue
            number = int(own_data[replica.index])
            data = self.data[number]
            state = jax.tree.map(
                lambda x, index=replica.index: jax.device_put(x[index], jax.local_devices()[0]),
                self.states.state,
            )
            keeper = Checkpointer(folder / steps.FOLDER, keep=config.checkpoint.keep)
            with contextlib.closing(keeper):
                keeper.save(self.done, state, data.state(), to_dict(config))
            lines = [line for line in read_metrics(metrics_path(folder)) if "loss" in line]
            fitted = Fitted(self.done, lines[-1] if lines else {}, replica.heldout, None)
            if number not in counts:
                counts[number] = counted(config, vocabulary, data, fitted)
            tokens = self.done * self.speed.tokens_per_step
            result_of(config, folder, fitted, counts[number], tokens, seconds).write()
        write_json(
            self.places.group(self.group.name) / "time.json",
            {
                "runs": len(self.replicas),
                "first_step_s": self.clock.first_s,
                "steps": self.clock.num_steps,
                "steps_s": self.clock.steps_s,
                "total_s": self.clock.total_s(),
            },
        )

    def _running(self) -> list[_Replica]:
        return [replica for replica in self.replicas if not self.broken[replica.index]]

    def _end(self, replica: _Replica, step: int, values: dict[str, float]) -> None:
        """Says that a run has diverged; its state stays as it was before this step."""
        self.broken[replica.index] = step
        name = replica.point.name
        bad = [f"{k} is {values[k]}" for k in ("loss", "grad_norm") if not math.isfinite(values[k])]
        why = f"{' and '.join(bad) or 'float16 overflows'} at step {step}"
        write_json(self.places.diverged(name), {"step": step, "why": why})
        replica.hooks.on_end(step - 1, TrainingFailedError(f"{name}: {why}"))

    def _read_broken(self, states: Replicas) -> np.ndarray:
        """At which steps runs had diverged when a checkpoint was made."""
        found = np.asarray(jax.device_get(states.broken))[: len(self.replicas)].astype(np.int64)
        for replica in self.replicas:
            said = read_json(self.places.diverged(replica.point.name))
            if said is not None and not found[replica.index]:
                # It diverged after the checkpoint; it will again.
                self.places.diverged(replica.point.name).unlink()
        return found


def _hooks(config: Config) -> Hooks:
    return Hooks([MetricsFile(), TensorBoard(), *named_hooks(config.train.hooks)])
