"""Direct preference optimisation: the better of two answers becomes likelier than the other one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_jax.config.schema import Config
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.train.masked import row_weights
from llmasos_jax.train.routing import router_losses
from llmasos_jax.train.sums import LossSum
from llmasos_jax.train.tokens import CPU_CHUNK


def dpo_loss(cfg: Config) -> Callable[..., LossSum]:
    """-log sigmoid(beta ((c - c') - (r - r'))), a mean over pairs (arXiv 2305.18290, eq. 7).

    c and r are the log-probabilities (nats, summed over the answer's tokens) of the chosen and the
    rejected answer, c' and r' those of the reference, which the batch has. It is the negative log
    likelihood of the preference itself, in the model of Bradley and Terry.

    Args:
      cfg: `finetune.beta`, and the weights of the routers' losses in `objective`.

    Returns:
      `(model, batch, runtime, dropout) -> LossSum`, whose `weight_sum` counts pairs. The batch is
      of `data.records.preferences`. Reported are "accuracy" (chosen preferred), "margin" (beta
      times the difference), and "chosen_reward" and "rejected_reward", its two parts.

    References:
      Rafailov et al., 2023, arXiv 2305.18290.
    """
    beta = cfg.finetune.beta

    def loss(model: Any, batch: Any, runtime: Any, dropout: Any) -> LossSum:
        hidden = _hidden(model, batch, runtime, dropout)
        log_probs_b2 = _log_probs(cfg, model, hidden.x_btd, batch, runtime)
        weight_b = row_weights(batch.segment_ids)
        rewards_b2 = beta * (log_probs_b2 - batch.extra["reference"])
        margin_b = rewards_b2[:, 0] - rewards_b2[:, 1]
        total = jnp.sum(-jax.nn.log_sigmoid(margin_b) * weight_b)
        num_pairs = jnp.sum(weight_b)
        routers, reports = router_losses(hidden.routing, num_pairs, cfg.objective, runtime)
        sums = {
            "accuracy": jnp.sum((margin_b > 0) * weight_b),
            "margin": jnp.sum(margin_b * weight_b),
            "chosen_reward": jnp.sum(rewards_b2[:, 0] * weight_b),
            "rejected_reward": jnp.sum(rewards_b2[:, 1] * weight_b),
        }
        return LossSum(
            loss_sum=total + routers,
            nll_sum=lax.stop_gradient(total),
            weight_sum=num_pairs,
            extra=lax.stop_gradient(sums) | reports,
        )

    return loss


def pair_log_probs(cfg: Config, model: Any, batch: Any, runtime: Runtime) -> jax.Array:
    """How likely a model finds both answers of each row, without dropout.

    Args:
      cfg: `train.loss_chunk` is read.
      model: a bound Transformer.
      batch: of `data.records.preferences`; its "reference" is not read.
      runtime: how the model runs.

    Returns:
      float32 [B, 2], nats, summed over the tokens of the chosen and of the rejected answer; 0 for
      rows of padding.
    """
    hidden = _hidden(model, batch, runtime, None)
    return _log_probs(cfg, model, hidden.x_btd, batch, runtime)


def _hidden(model: Any, batch: Any, runtime: Any, dropout: Any) -> Any:
    return model.hidden(
        batch.tokens,
        positions_bt=batch.positions,
        segment_ids_bt=batch.segment_ids,
        runtime=runtime,
        dropout=dropout,
    )


def _log_probs(
    cfg: Config, model: Any, x_btd: jax.Array, batch: Any, runtime: Runtime
) -> jax.Array:
    """Sums of log-probabilities over both segments, [B, 2], a few tokens at a time."""
    is_of_bt2 = batch.segment_ids[:, :, None] == jnp.array([1, 2], jnp.int32)[None, None]
    weights_bt2 = batch.loss_weights[:, :, None] * is_of_bt2
    score, head = model.output_layer(runtime)

    def sums(head: Any, part: tuple[jax.Array, ...]) -> jax.Array:
        x_bcd, targets_bc, weights_bc2 = part
        log_probs_bcv = jax.nn.log_softmax(score(head, x_bcd).astype(jnp.float32))
        found_bc1 = jnp.take_along_axis(log_probs_bcv, targets_bc[:, :, None], axis=-1)
        return jnp.sum(found_bc1 * weights_bc2, axis=1)

    parts = (x_btd, batch.targets, weights_bt2)
    size = cfg.train.loss_chunk or (CPU_CHUNK if runtime.platform == "cpu" else None)
    length = x_btd.shape[1]
    if size is None or size >= length:
        return sums(head, parts)
    return _by_chunks(sums, head, parts, size)


def _by_chunks(
    sums: Callable[..., jax.Array], head: Any, parts: tuple[jax.Array, ...], size: int
) -> jax.Array:
    """`sums` over chunks of tokens, whose scores are made once more in the backward pass."""
    # float32 copies of the head's weights: of narrower ones the gradients of all chunks would be
    # added up in their own type.
    dtypes = jax.tree.map(lambda w: w.dtype, head)
    wide = jax.tree.map(lambda w: w.astype(jnp.float32), head)
    whole = parts[0].shape[1] // size * size

    @jax.checkpoint
    def chunk_sums(wide: Any, part: tuple[jax.Array, ...]) -> jax.Array:
        return sums(jax.tree.map(lambda w, dtype: w.astype(dtype), wide, dtypes), part)

    def cut(x: jax.Array) -> jax.Array:
        return x[:, :whole].reshape(x.shape[0], -1, size, *x.shape[2:]).swapaxes(0, 1)

    def step(total: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        return total + chunk_sums(wide, part), None

    start = jnp.zeros((parts[0].shape[0], 2), jnp.float32)
    total, _ = lax.scan(step, start, jax.tree.map(cut, parts))
    if whole < parts[0].shape[1]:
        total = total + chunk_sums(wide, tuple(x[:, whole:] for x in parts))
    return total
