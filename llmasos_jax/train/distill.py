"""Distillation: a model learns what a larger one makes of each token, beside the token itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_jax.config.schema import Config
from llmasos_jax.train.chunked import Parts, chunked_loss
from llmasos_jax.train.losses import CrossEntropy, cross_entropy
from llmasos_jax.train.placed import Teacher
from llmasos_jax.train.routing import router_losses
from llmasos_jax.train.sums import LossSum
from llmasos_jax.train.tokens import CPU_CHUNK


def distill_loss(cfg: Config, num_tokens: int) -> Callable[..., LossSum]:
    """(1 - w) CE + w T^2 KL(teacher || student), a mean over scored tokens.

    Both distributions of the divergence are softmax(scores / T). T^2 keeps its gradient's size
    beside that of the cross-entropy whatever T is (Hinton et al., 2015, arXiv 1503.02531, section
    2). For texts it is the word-level distillation of Kim & Rush (2016, arXiv 1606.07947, eq. 5),
    with all scores of the teacher, computed in the step: it has no gradient and no dropout.

    Scores of the two models are compared over the tokenizer's ids; the models' tables may be filled
    up to different sizes. The cross-entropy is over the whole table, as that of "sft" is. Scores of
    both are there for `train.loss_chunk` tokens of a row at a time (128 where that is None), on
    every kind of device.

    Args:
      cfg: `finetune.teacher_weight` w and `teacher_temperature` T; `objective` has the weights of
        the z-loss and the routers' losses of the student, which are added as they are.
      num_tokens: ids of the tokenizer.

    Returns:
      `(model, batch, runtime, dropout, teacher) -> LossSum`; `teacher` is a `Teacher`. `nll_sum` is
      of the batch's targets alone. Reported are "accuracy" and "kl", the divergence at T in nats.

    References:
      Hinton et al., 2015, arXiv 1503.02531; Sanh et al., 2019, arXiv 1910.01108.
    """
    weight, temperature = cfg.finetune.teacher_weight, cfg.finetune.teacher_temperature
    z_loss = cfg.objective.z_loss

    def total(sums: _Sums) -> jax.Array:
        data = sums.data.nll_sum
        # With no weight the scores' gradients are those of "sft", with no zero added to them.
        if weight:
            data = (1.0 - weight) * data + weight * temperature**2 * sums.kl_sum
        return data + z_loss * sums.data.z_sum

    def loss(model: Any, batch: Any, runtime: Any, dropout: Any, teacher: Teacher) -> LossSum:
        read = {"positions_bt": batch.positions, "segment_ids_bt": batch.segment_ids}
        hidden = model.hidden(batch.tokens, **read, runtime=runtime, dropout=dropout)
        with jax.named_scope("teacher"):
            taught = teacher.model.hidden(batch.tokens, **read, runtime=teacher.runtime)
            teacher_score, teacher_head = teacher.model.output_layer(teacher.runtime)
        score, head = model.output_layer(runtime)

        def sums_of(head: Any, chunk: tuple[jax.Array, ...], teacher_head: Any) -> _Sums:
            x_bcd, targets, loss_weights, taught_bcd = chunk
            logits_bcv = score(head, x_bcd)
            with jax.named_scope("teacher"):
                wanted_bcv = teacher_score(teacher_head, taught_bcd)[..., :num_tokens]
            kl_bc = divergence(logits_bcv[..., :num_tokens], wanted_bcv, temperature)
            data = cross_entropy(logits_bcv, targets, loss_weights)
            return _Sums(data, jnp.sum(kl_bc * loss_weights))

        size, again = cfg.train.loss_chunk or CPU_CHUNK, runtime.dtype == jnp.float16
        tokens = (hidden.x_btd, batch.targets, batch.loss_weights, taught.x_btd)
        parts = Parts(sums_of, total, size, again)
        value, sums = chunked_loss(parts, head, tokens, teacher_head)
        data = sums.data
        routers, reports = router_losses(hidden.routing, data.weight_sum, cfg.objective, runtime)
        return LossSum(
            loss_sum=value + routers,
            nll_sum=data.nll_sum,
            weight_sum=data.weight_sum,
            extra={"accuracy": data.correct_sum, "kl": sums.kl_sum, **reports},
        )

    return loss


def divergence(logits: jax.Array, wanted: jax.Array, temperature: float = 1.0) -> jax.Array:
    """KL(softmax(wanted / T) || softmax(logits / T)) of each token, nats.

    Args:
      logits: float32 [..., V].
      wanted: float32 [..., V]; not differentiated.
      temperature: T.

    Returns:
      float32 [...].

    Example:
      >>> even, sure = jnp.zeros((1, 2)), jnp.array([[20.0, 0.0]])
      >>> print(f"{divergence(even, sure)[0]:.4f} {divergence(sure, sure)[0]:.4f}")
      0.6931 0.0000
    """
    wanted_log_v = jax.nn.log_softmax(lax.stop_gradient(wanted.astype(jnp.float32)) / temperature)
    log_v = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    return jnp.sum(jnp.exp(wanted_log_v) * (wanted_log_v - log_v), axis=-1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Sums:
    """Of a few tokens: the cross-entropy's sums, and the divergence in nats."""

    data: CrossEntropy
    kl_sum: jax.Array
