"""Learning rates over the steps of a run.

Steps are numbered u = 1..steps; an optimizer that has done n updates is about to do step u = n + 1.
All rise in a straight line from 0 (before step 1) to the peak at step `warmup_steps`:

    u     1 .. warmup     .. steps
    rate  /  up to peak   then the named shape, ending at peak * final_fraction in the last step

A warm-up as long as the run is kept as written: the rate then rises to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_jax.config.named import resolve
from llmasos_jax.config.schema import OptimConfig
from llmasos_jax.errors import ConfigError

Schedule = Callable[[Any], jax.Array]


def build_schedule(cfg: OptimConfig, steps: int) -> Schedule:
    """Returns the learning rate as a function of the number of updates already done.

    Args:
      cfg: `schedule` is "cosine", "linear", "wsd", "constant", or `"package.module:name"` of a
        function `(cfg, steps) -> schedule`, which then does its own warm-up.
      steps: steps of the whole run.

    Returns:
      A function from an int32 count (0 before the first step) to a float32 learning rate.

    Raises:
      ConfigError: no such schedule, or it gives no function.

    Example:
      >>> import dataclasses
      >>> cfg = OptimConfig(learning_rate=1.0, schedule="linear", warmup_steps=2)
      >>> rate = build_schedule(dataclasses.replace(cfg, final_fraction=0.0), steps=6)
      >>> [float(rate(n)) for n in range(6)]
      [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    schedule = resolve(cfg.schedule, TABLE, "optim.schedule")(cfg, steps)
    if not isinstance(schedule, Callable):
        raise ConfigError(
            f'optim.schedule="{cfg.schedule}" gives a {type(schedule).__name__}; it has to give a '
            "function from the number of updates done to the learning rate"
        )
    return schedule


def cosine(cfg: OptimConfig, steps: int) -> Schedule:
    """Half a cosine down to the final share (Loshchilov and Hutter, 2017, arXiv 1608.03983)."""
    return _after_warmup(cfg, steps, cfg.warmup_steps, lambda p: 0.5 * (1.0 + jnp.cos(jnp.pi * p)))


def linear(cfg: OptimConfig, steps: int) -> Schedule:
    """A straight line down to the final share."""
    return _after_warmup(cfg, steps, cfg.warmup_steps, lambda p: 1.0 - p)


def wsd(cfg: OptimConfig, steps: int) -> Schedule:
    """Warm-up, stable, decay: the peak until the last `decay_fraction` of the steps.

    The decay is a straight line (one of those compared by Hägele et al., 2024, arXiv 2405.18392).
    """
    decay_start = _larger(steps - round(cfg.decay_fraction * steps), cfg.warmup_steps)
    return _after_warmup(cfg, steps, decay_start, lambda p: 1.0 - p)


def constant(cfg: OptimConfig, steps: int) -> Schedule:
    """The peak for ever; `final_fraction` has no say."""
    return _after_warmup(cfg, steps, steps, jnp.ones_like)


TABLE: Mapping[str, Callable[[OptimConfig, int], Schedule]] = {
    "cosine": cosine,
    "linear": linear,
    "wsd": wsd,
    "constant": constant,
}


def _after_warmup(
    cfg: OptimConfig, steps: int, decay_start: Any, shape: Callable[[jax.Array], jax.Array]
) -> Schedule:
    """Warm-up, then `shape` of the share 0..1 of the way from `decay_start` to the last step."""
    warmup, decay_steps = _larger(1, cfg.warmup_steps), _larger(1, steps - decay_start)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(count, jnp.float32) + 1.0
        rise = jnp.minimum(step / warmup, 1.0)
        progress = jnp.clip((step - decay_start) / decay_steps, 0.0, 1.0)
        share = cfg.final_fraction + (1.0 - cfg.final_fraction) * shape(progress)
        return cfg.learning_rate * rise * share

    return schedule


def _larger(a: int, b: Any) -> Any:
    """The larger one. A sweep's warm-up is an array; of numbers no program is compiled for it."""
    return max(a, b) if isinstance(b, int) else jnp.maximum(a, b)
