"""Losses over a vocabulary, in float32 and in nats."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CrossEntropy:
    """Sums over the tokens of a batch, each token counted by its weight.

    Attributes:
      nll_sum: negative log-likelihood of the targets, nats.
      z_sum: squared logarithm of the softmax's normaliser, nats squared.
      correct_sum: tokens whose largest logit is the target's (the first one, among equal ones).
      weight_sum: tokens.
      smoothing_sum: what label smoothing adds to the loss, nats; None without any.
    """

    nll_sum: jax.Array
    z_sum: jax.Array
    correct_sum: jax.Array
    weight_sum: jax.Array
    smoothing_sum: jax.Array | None = None

    def loss_sum(self, z_loss: float) -> jax.Array:
        """What is differentiated: with the weighted z-loss, and smoothed."""
        loss = self.nll_sum + z_loss * self.z_sum
        return loss if self.smoothing_sum is None else loss + self.smoothing_sum


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    smoothing: float | jax.Array | None = None,
) -> CrossEntropy:
    """Sums `weight * (log sum_v exp(logit_v) - logit_target)` over a batch.

    The largest logit is taken off before the exponential, so logits of any finite size are exact.
    The target's logit is gathered and "is it the largest" is asked by comparison: on a CPU loss and
    gradient then take half the time that they take with an argmax.

    Args:
      logits: float32 [B, T, V].
      targets: int32 [B, T], each in 0..V-1 (where the weight is 0 too).
      weights: float32 [B, T]; 0 leaves a token out.
      smoothing: share of the target's probability that is spread evenly over all V (Szegedy et al.,
        2015, arXiv 1512.00567, section 7); None for none at all.

    Returns:
      Float32 scalars.

    Example:
      >>> logits = jnp.zeros((1, 2, 4)).at[0, 1, 3].set(1e4)
      >>> sums = cross_entropy(logits, jnp.array([[0, 3]]), jnp.ones((1, 2)))
      >>> print(f"{sums.nll_sum:.4f} {sums.correct_sum:.0f} of {sums.weight_sum:.0f}")
      1.3863 2 of 2
    """
    with jax.named_scope("loss"):
        logits_btv = logits.astype(jnp.float32)
        largest_bt = jax.lax.stop_gradient(jnp.max(logits_btv, axis=-1))
        normaliser_bt = jnp.sum(jnp.exp(logits_btv - largest_bt[..., None]), axis=-1)
        log_normaliser_bt = largest_bt + jnp.log(normaliser_bt)
        target_bt = jnp.take_along_axis(logits_btv, targets[..., None], axis=-1)[..., 0]
        # `largest - target` is exact for near values, where `log_normaliser` has already rounded.
        nll_bt = jnp.log(normaliser_bt) + (largest_bt - target_bt)
        correct_bt = _is_first_largest(logits_btv, targets, target_bt, largest_bt)
        smoothing_sum = None
        if smoothing is not None:
            # (1 - s) nll + s mean_v(nll_v) is nll + s (logit_target - mean_v(logit_v)).
            above_bt = target_bt - jnp.mean(logits_btv, axis=-1)
            smoothing_sum = smoothing * jnp.sum(above_bt * weights)
        return CrossEntropy(
            nll_sum=jnp.sum(nll_bt * weights),
            z_sum=jnp.sum(jnp.square(log_normaliser_bt) * weights),
            correct_sum=jnp.sum(correct_bt * weights),
            weight_sum=jnp.sum(weights),
            smoothing_sum=smoothing_sum,
        )


def _is_first_largest(
    logits_btv: jax.Array, targets_bt: jax.Array, target_bt: jax.Array, largest_bt: jax.Array
) -> jax.Array:
    """Whether argmax would give the target; ties go to the lowest index."""
    earlier_btv = jax.lax.broadcasted_iota(jnp.int32, logits_btv.shape, 2) < targets_bt[..., None]
    tied_before_bt = jnp.any((logits_btv == largest_bt[..., None]) & earlier_btv, axis=-1)
    return (target_bt == largest_bt) & ~tied_before_bt
