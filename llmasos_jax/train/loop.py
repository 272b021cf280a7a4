"""The training loop, to be read aloud: `step.py` has what is computed, `hooks.py` who is told."""

from __future__ import annotations

import functools
import math
import operator
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax

from llmasos_jax.checkpoint.orbax import Checkpointer
from llmasos_jax.config.build import to_dict
from llmasos_jax.data.pipeline import Data
from llmasos_jax.errors import DataError, PreemptedError, TrainingFailedError
from llmasos_jax.parallel import distributed
from llmasos_jax.train.hooks import Hook, RunInfo
from llmasos_jax.train.maintenance import watched
from llmasos_jax.train.metrics import Speed, heldout_values, losses_by_part, mfu, step_values
from llmasos_jax.train.preemption import StopRequest
from llmasos_jax.train.pretrained import Pretrained, moved_weights, whole_weights
from llmasos_jax.train.scaling import SMALLEST
from llmasos_jax.train.start import weights_of
from llmasos_jax.train.state import StepMetrics, TrainState
from llmasos_jax.types import Tree

if TYPE_CHECKING:
    from llmasos_jax.train.step import Trainer

# Takes the weights as they are trained, gives a text.
Sampler = Callable[[Any], str]


@dataclass(frozen=True)
class Fitted:
    """How a run ended: steps done, newest values of training and held-out text, newest sample."""

    step: int
    values: dict[str, float]
    heldout: dict[str, float]
    sample: str | None


def restore_or_start(
    trainer: Trainer,
    data: Data,
    checkpoints: Checkpointer,
    base: Pretrained | None = None,
    frozen: Tree | None = None,
) -> TrainState:
    """The state to go on from.

    1. The newest checkpoint of this run, with the data position that was saved beside it.
    2. The weights of the model that is fine-tuned; what it has not is random.
    3. The newest weights of the run that `train.start_from` names.
    4. Random weights, from `train.seed`.

    Raises:
      CheckpointError: the checkpoint is of another model or optimizer; every leaf is listed.
      DataError: it was made on another text.
    """
    if checkpoints.latest_step() is not None:
        restored = checkpoints.restore(trainer.abstract_state)
        data.restore(restored.data_state)
        return restored.state
    key = jax.random.key(trainer.cfg.train.seed)
    if base is not None:
        return trainer.start(key, moved_weights(trainer, key, base, frozen or {}))
    if trainer.cfg.train.start_from is not None:
        return trainer.start(key, weights_of(trainer.cfg, trainer.abstract_state.params))
    return trainer.init(key)


def fit(
    trainer: Trainer,
    data: Data,
    checkpoints: Checkpointer,
    state: TrainState,
    hooks: Hook,
    info: RunInfo,
    sampler: Sampler | None = None,
    frozen: Tree | None = None,
) -> Fitted:
    """Trains from `state` to `train.steps`, saving on the way.

    Args:
      trainer: the step, compiled for a mesh.
      data: batches, standing where `state` does.
      checkpoints: where to save.
      state: from `restore_or_start`; its memory is taken over.
      hooks: told of each event.
      info: what the hooks are told first.
      sampler: writes a text from weights, for `config.sample`.
      frozen: the weights that the run leaves as they are.

    Returns:
      The last values.

    Raises:
      TrainingFailedError: loss or gradient is no longer finite; nothing bad was saved.
      PreemptedError: SIGTERM or Ctrl-C; the step in flight was finished and saved.
    """
    run = _Run(trainer, data, checkpoints, hooks, info, sampler, frozen or {})
    hooks.on_start(info)
    hooks.on_state(info.start_step, state)
    try:
        run.steps(state)
    except BaseException as error:
        distributed.find_loss(error)
        hooks.on_end(run.good_step, error)
        raise
    hooks.on_end(run.good_step, None)
    return Fitted(run.good_step, run.values, run.heldout, run.text)


def _is_due(every_steps: int | None, step: int, is_last: bool = False) -> bool:
    return every_steps is not None and (is_last or step % every_steps == 0)


class _Run:
    """The parts of a run, and what it has come to."""

    def __init__(
        self,
        trainer: Trainer,
        data: Data,
        checkpoints: Checkpointer,
        hooks: Hook,
        info: RunInfo,
        sampler: Sampler | None,
        frozen: Tree,
    ) -> None:
        self.trainer, self.data, self.checkpoints = trainer, data, checkpoints
        self.hooks, self.sampler, self.cfg = hooks, sampler, trainer.cfg
        self.frozen = frozen
        self.meter = _Meter(info.speed)
        self.good_step = info.start_step
        self.values: dict[str, float] = {}
        self.heldout: dict[str, float] = {}
        self.text: str | None = None

    def steps(self, state: TrainState) -> None:
        """The loop."""
        first, last = self.good_step + 1, self.cfg.train.steps
        in_flight: tuple[int, StepMetrics] | None = None
        platform = self.trainer.runtime.platform
        with StopRequest(distributed.current()) as stop, watched(platform):
            # A run that was stopped on a step due for evaluation has still to do it.
            if 1 < first <= last and _is_due(self.cfg.train.eval_every_steps, first - 1):
                self.evaluate(first - 1, state, stop)
            for step in range(first, last + 1):
                stop.begin(step)
                rows = next(self.data.train)
                self.hooks.on_batch(step, rows, self.trainer.own_rows)
                batch = self.trainer.put(rows)
                state, metrics = self.trainer.step(state, batch, self.frozen)
                # The device has work: now there is time for the step before.
                if in_flight is not None:
                    self.report(*in_flight)
                in_flight = (step, metrics)
                if stop.name or step == last or self.is_due(step):
                    self.report(*in_flight)
                    in_flight = None
                    self.look(step, state, stop)
                    self.meter.resume()
            if first > last:
                self.look(first - 1, state, stop)
            self.checkpoints.wait()

    def look(self, step: int, state: TrainState, stop: StopRequest) -> None:
        """Does what is due after a step: evaluate, save, sample, stop.

        What is saved comes first, so that a sample that fails costs nothing.
        """
        cfg, is_last = self.cfg, step >= self.cfg.train.steps
        if not stop.name and _is_due(cfg.train.eval_every_steps, step, is_last):
            self.evaluate(step, state, stop)
        is_saved = is_last or self.checkpoints.is_due(step)
        if is_saved:
            self.save(step, state)
        if not stop.name and (is_last or _is_due(cfg.sample.every_steps, step)):
            self.sample(step, state)
        if stop.name:
            if not is_saved:
                self.save(step, state)
            self.checkpoints.wait()
            raise PreemptedError(
                f"{stop.name}: saved at step {step} of {cfg.train.steps}; the same command goes on"
            )

    def is_due(self, step: int) -> bool:
        """Whether something looks at the state after this step."""
        return (
            _is_due(self.cfg.train.eval_every_steps, step)
            or _is_due(self.cfg.sample.every_steps, step)
            or self.checkpoints.is_due(step)
        )

    def report(self, step: int, metrics: StepMetrics) -> None:
        """Waits for a step's values and passes them on, if they are finite."""
        values = step_values(jax.device_get(metrics), self.cfg.objective.name)
        self._check_finite(step, values)
        # A step that was left out leaves good weights as well.
        self.good_step = step
        is_logged = step % self.cfg.train.log_every_steps == 0
        rates = self.meter.rates(self.data.train.waited_s, is_logged)
        tokens = float(step * self.meter.speed.tokens_per_step)
        self.values = {**values, "tokens": tokens, **rates}
        self.hooks.on_step(step, self.values)

    def evaluate(self, step: int, state: TrainState, stop: StopRequest) -> None:
        """Scores held-out text; given up when a stop is asked for."""
        count = len(self.data.heldout)
        if not count:
            return
        sums: dict[str | None, Any] = {}  # by part of a mixture
        for index in range(min(count, self.cfg.train.eval_batches or count)):
            batch = self.trainer.put(self.data.heldout[index])
            found = self.trainer.evaluate(state.params, batch, self.frozen)
            name = self.data.heldout.part(index)
            sums[name] = sums[name] + found if name in sums else found
            if stop.name:
                return
        parts = jax.device_get(sums)
        total = functools.reduce(operator.add, parts.values())
        if total.weight_sum == 0:
            raise DataError(
                "the held-out text has no token to score; give longer documents, or a larger "
                "data.heldout_fraction"
            )
        self.heldout = heldout_values(total, self.cfg.objective.name) | losses_by_part(parts)
        self.hooks.on_eval(step, self.heldout)

    def sample(self, step: int, state: TrainState) -> None:
        """Lets the model write, if there is a prompt and something to write with."""
        if self.sampler is not None and self.cfg.sample.prompt is not None:
            self.text = self.sampler(whole_weights(self.trainer, state.params, self.frozen))
            self.hooks.on_sample(step, self.text)

    def save(self, step: int, state: TrainState) -> None:
        """Saves state, data position and config together."""
        self.hooks.on_checkpoint(step)
        self.checkpoints.save(step, state, self.data.state(), to_dict(self.cfg))

    def _check_finite(self, step: int, values: dict[str, float]) -> None:
        if values.get("overflow"):
            # float16: the step was left out, so what it reports is of no consequence.
            return self._check_scale(step, values)
        bad = [name for name in ("loss", "grad_norm") if not math.isfinite(values[name])]
        if not bad:
            return
        self.checkpoints.wait()
        saved = self.checkpoints.latest_step()
        what = " and ".join(f"{name} is {values[name]}" for name in bad)
        where = f"steps {self.good_step} (last good) to {step} (first bad)"
        kept = (
            f"the last good checkpoint is step {saved} in {self.checkpoints.folder}"
            if saved is not None
            else "no checkpoint was saved yet"
        )
        optim = self.cfg.optim
        raise TrainingFailedError(
            f"{what} at step {step}: it broke between {where}; {kept}, nothing was overwritten. "
            f"Lower optim.learning_rate (now {optim.learning_rate}), set optim.clip_norm (now "
            f"{optim.clip_norm}) or lengthen optim.warmup_steps (now {optim.warmup_steps}), in a "
            "new workdir; the same command here meets the same batch again"
        )

    def _check_scale(self, step: int, values: dict[str, float]) -> None:
        """Gives up when a smaller scale can no longer be what is missing."""
        if values["loss_scale"] >= SMALLEST:
            return
        self.checkpoints.wait()
        raise TrainingFailedError(
            f"float16 overflows at step {step} though the loss is not scaled up any more "
            f"({values['skipped_steps']:.0f} steps left out, the last good one is "
            f"{self.good_step}): activations or weights are beyond 65504. Set "
            'precision.dtype="bfloat16", or lower optim.learning_rate (now '
            f"{self.cfg.optim.learning_rate}), in a new workdir"
        )


class _Meter:
    """Speed between two logged steps, with pauses for evaluation, sampling and saving left out."""

    def __init__(self, speed: Speed) -> None:
        self.speed = speed
        self._steps = 0
        # None until the first step is done: it compiles.
        self._start_s: float | None = None
        self._waited_s = 0.0
        self._pause_start_s = 0.0

    def rates(self, waited_s: float, restart: bool) -> dict[str, float]:
        """The rates since the last restart, a step having just been done."""
        now_s = self._pause_start_s = time.perf_counter()
        if self._start_s is None:
            self._start_s, self._waited_s = now_s, waited_s
            return {}
        self._steps += 1
        seconds = now_s - self._start_s
        tokens_per_s = self._steps * self.speed.tokens_per_step / seconds
        values = {
            "tokens_per_s": tokens_per_s,
            "step_time_s": seconds / self._steps,
            "mfu": mfu(
                self.speed.flops_per_token,
                tokens_per_s,
                self.speed.peak_flops,
                self.speed.num_devices,
            ),
            "data_wait": (waited_s - self._waited_s) / seconds,
        }
        if restart:
            self._start_s, self._waited_s, self._steps = now_s, waited_s, 0
        return values

    def resume(self) -> None:
        """Leaves out the time since the last step was reported."""
        if self._start_s is not None:
            self._start_s += time.perf_counter() - self._pause_start_s
