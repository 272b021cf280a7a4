"""Leaves out steps whose gradient is far larger than those before it.

A spike is a step whose gradient norm, before clipping, is more than `optim.spike_factor` times its
running mean. It is passed over as an overflow of float16 is: weights and optimizer stay, and so
does the number of updates, which the learning rate follows; the step counts, its batch is not read
again. All of it is within the compiled step and its state is in the checkpoint, so that a run that
is resumed leaves out the same steps.

The mean is over the last `WINDOW` steps, roughly; a spike goes into it as the largest norm that
would have passed, so that a gradient which stays large is let through after a while. Nothing is
left out in the first `BEFORE` steps.

References:
  Chowdhery et al., 2022, arXiv 2204.02311, section 5.1 (batches at which the loss spiked are left
  out); Kumar et al., 2025, arXiv 2504.02507 (spikes told by the running statistics of the norm).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

WINDOW = 100
BEFORE = 20


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SpikeGuard:
    """What is known of the gradient's norm.

    Attributes:
      mean: float32, of the norm.
      steps: int32, steps that are in the mean, at most `WINDOW`.
      skipped: int32, steps of the run that were left out.
    """

    mean: jax.Array
    steps: jax.Array
    skipped: jax.Array

    def is_spike(self, norm: jax.Array, factor: float) -> jax.Array:
        """Whether a step with this gradient norm is to be left out.

        Example:
          >>> guard = SpikeGuard(jnp.float32(2), jnp.int32(BEFORE), jnp.int32(0))
          >>> bool(guard.is_spike(9.0, 5.0)), bool(guard.is_spike(11.0, 5.0))
          (False, True)
        """
        # Of a mean of 0 every norm is a multiple, and it would stay 0.
        return (self.steps >= BEFORE) & (self.mean > 0) & (norm > factor * self.mean)

    def after(self, norm: jax.Array, factor: float) -> SpikeGuard:
        """The state after a step. A norm that is not finite says nothing of the next one's."""
        is_spike, is_known = self.is_spike(norm, factor), jnp.isfinite(norm)
        norm = jnp.where(is_spike, factor * self.mean, norm)
        steps = jnp.minimum(self.steps + 1, WINDOW)
        return SpikeGuard(
            mean=jnp.where(is_known, self.mean + (norm - self.mean) / steps, self.mean),
            steps=jnp.where(is_known, steps, self.steps),
            skipped=self.skipped + (is_spike & is_known),
        )

    def metrics(self, is_spike: jax.Array) -> dict[str, jax.Array]:
        """What a step reports of the state after it."""
        return {
            "spike": is_spike.astype(jnp.float32),
            "spikes": self.skipped.astype(jnp.float32),
            "usual_grad_norm": self.mean,
        }


def start_guard(factor: float | None) -> SpikeGuard | None:
    """The guard that a run starts with; None where `optim.spike_factor` is."""
    if factor is None:
        return None
    return SpikeGuard(jnp.float32(0), jnp.int32(0), jnp.int32(0))
