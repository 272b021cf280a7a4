"""The losses of labelled texts: their class, the class of each word, a score, what is alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from llmasos_jax.config.schema import Config
from llmasos_jax.errors import ConfigError
from llmasos_jax.nn.context import once
from llmasos_jax.nn.heads import pool
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.train.losses import cross_entropy
from llmasos_jax.train.routing import router_losses
from llmasos_jax.train.sums import LossSum
from llmasos_jax.train.tallies import ClassCounts, moments

Loss = Callable[..., LossSum]


def classify_loss(cfg: Config) -> Loss:
    """Cross-entropy of a text's label, from its pooled state; the mean is over texts.

    The batch has targets and loss_weights [B, 1].
    """

    def loss(model: Any, batch: Any, runtime: Any, dropout: Any) -> LossSum:
        hidden = _hidden(model, batch, runtime, dropout)
        logits_bc = model.classify(_pooled(model, hidden.x_btd, batch, runtime), runtime)
        weights_bm = once(batch.loss_weights, runtime)
        return _labels(cfg, logits_bc[:, None], batch.targets, weights_bm, hidden.routing, runtime)

    return loss


def classify_tokens_loss(cfg: Config) -> Loss:
    """Cross-entropy of a word's label, from the state of its first token; the mean is over words.

    The batch has targets and loss_weights [B, T], the weights 0 but at first tokens.
    """

    def loss(model: Any, batch: Any, runtime: Any, dropout: Any) -> LossSum:
        hidden = _hidden(model, batch, runtime, dropout)
        logits_btc = model.classify(hidden.x_btd, runtime)
        targets, weights = batch.targets, batch.loss_weights
        return _labels(cfg, logits_btc, targets, weights, hidden.routing, runtime)

    return loss


def regress_loss(cfg: Config) -> Loss:
    """The squared error of the one label's score; the mean is over texts.

    The batch has loss_weights [B, 1] and, in `extra`, "score" and "centre" float32 [B].
    """

    def loss(model: Any, batch: Any, runtime: Any, dropout: Any) -> LossSum:
        hidden = _hidden(model, batch, runtime, dropout)
        found_bc = model.classify(_pooled(model, hidden.x_btd, batch, runtime), runtime)
        weights_b = once(batch.loss_weights[:, 0], runtime)
        with jax.named_scope("loss"):
            found_b, wanted_b = found_bc[:, 0], batch.extra["score"]
            total = jnp.sum(weights_b * jnp.square(found_b - wanted_b))
            # Scores of one mean, or little would be left of their variance in float32.
            centre_b = batch.extra["centre"]
            near = lax.stop_gradient((found_b - centre_b, wanted_b - centre_b))
            tallies = {"pearson": moments(*near, weights_b)}
        return _sums(
            cfg, total, jnp.sum(weights_b), {"mse": total}, tallies, hidden.routing, runtime
        )

    return loss


def similarity_loss(cfg: Config) -> Loss:
    """Which of all positives and negatives of the batch belongs to an anchor; mean over anchors.

    ::

        loss_i = -log (e(a_i, p_i) / sum_j (e(a_i, p_j) + e(a_i, n_j)))
        e(x, y) = exp(cos(x, y) / t)

    for anchors a, positives p and negatives n as `Model.embed` gives them. The sum is over the
    global batch, whatever devices hold it (Henderson et al., 2017, arXiv 1705.00652, section 4.4;
    cosines and the temperature t, `finetune.temperature`, as in van den Oord et al., 2018, arXiv
    1807.03748, and Reimers and Gurevych, 2019, arXiv 1908.10084).

    The batch has loss_weights [B, 1]; a text's segment is 1, 2 or 3 (anchor, positive, negative).
    """

    def loss(model: Any, batch: Any, runtime: Any, dropout: Any) -> LossSum:
        hidden = _hidden(model, batch, runtime, dropout)
        x_btd = _whole_tokens(hidden.x_btd, runtime).astype(jnp.float32)
        segments_bt = runtime.whole_tokens(batch.segment_ids)
        embed = lambda number: _unit(pool(x_btd, segments_bt == number, cfg.model.pooling))
        gather = lambda x: x if runtime.manual is None else runtime.manual.whole_rows(x)
        b = batch.tokens.shape[0]
        first = 0 if runtime.manual is None else runtime.manual.first_row(b)
        with jax.named_scope("loss"):
            others_cd = jnp.concatenate([gather(embed(number)) for number in (2, 3)])
            is_there = [gather(jnp.any(segments_bt == number, axis=1)) for number in (2, 3)]
            cosines_bc = jnp.einsum(
                "bd,cd->bc", embed(1), others_cd, precision=lax.Precision.HIGHEST
            )
            scores_bc = jnp.where(
                jnp.concatenate(is_there)[None], cosines_bc / cfg.finetune.temperature, -1e9
            )
            targets_b = first + jnp.arange(b, dtype=jnp.int32)
            weights_bm = once(batch.loss_weights, runtime)
            sums = cross_entropy(scores_bc[:, None], targets_b[:, None], weights_bm)
        extra = {"accuracy": sums.correct_sum}
        return _sums(cfg, sums.nll_sum, sums.weight_sum, extra, {}, hidden.routing, runtime)

    return loss


LOSSES: Mapping[str, Callable[[Config], Loss]] = {
    "classify": classify_loss,
    "classify_tokens": classify_tokens_loss,
    "regress": regress_loss,
    "similarity": similarity_loss,
}


def _hidden(model: Any, batch: Any, runtime: Any, dropout: Any) -> Any:
    return model.hidden(
        batch.tokens,
        positions_bt=batch.positions,
        segment_ids_bt=batch.segment_ids,
        token_types_bt=batch.extra.get("token_types"),
        runtime=runtime,
        dropout=dropout,
    )


def _pooled(model: Any, x_btd: jax.Array, batch: Any, runtime: Runtime) -> jax.Array:
    mask_bt = runtime.whole_tokens(batch.segment_ids)
    return model.pooled(_whole_tokens(x_btd, runtime), runtime, mask_bt)


def _whole_tokens(x_btd: jax.Array, runtime: Runtime) -> jax.Array:
    # XLA for CPU aborts on a bfloat16 reduce-scatter, the transpose of this gather.
    return runtime.whole_tokens(x_btd.astype(jnp.float32)).astype(x_btd.dtype)


def _unit(x_bd: jax.Array) -> jax.Array:
    """Divided by its length; 0 stays 0, with a gradient of 0."""
    square_b1 = jnp.sum(jnp.square(x_bd), axis=-1, keepdims=True)
    is_some_b1 = square_b1 > 0
    length_b1 = jnp.sqrt(jnp.where(is_some_b1, square_b1, 1.0))
    return jnp.where(is_some_b1, x_bd / jnp.maximum(length_b1, 1e-12), 0.0)


def _labels(
    cfg: Config,
    logits_bmc: jax.Array,
    targets_bm: jax.Array,
    weights_bm: jax.Array,
    routing: Any,
    runtime: Any,
) -> LossSum:
    sums = cross_entropy(logits_bmc, targets_bm, weights_bm, runtime.label_smoothing)
    one_hot = lambda index_bm: jax.nn.one_hot(index_bm, logits_bmc.shape[-1], dtype=jnp.float32)
    said_bmc = one_hot(jnp.argmax(logits_bmc, axis=-1))
    true_bmc = one_hot(targets_bm)
    total_c = lambda x_bmc: jnp.einsum("bm,bmc->c", weights_bm, lax.stop_gradient(x_bmc))
    counts = ClassCounts(total_c(said_bmc * true_bmc), total_c(said_bmc), total_c(true_bmc))
    extra, tallies = {"accuracy": sums.correct_sum}, {"classes": counts}
    found = _sums(cfg, sums.nll_sum, sums.weight_sum, extra, tallies, routing, runtime)
    if sums.smoothing_sum is None:
        return found
    return dataclasses.replace(found, loss_sum=found.loss_sum + sums.smoothing_sum)


def _sums(
    cfg: Config,
    loss: jax.Array,
    weight: jax.Array,
    extra: dict[str, jax.Array],
    tallies: dict[str, Any],
    routing: Any,
    runtime: Any,
) -> LossSum:
    routers, reports = router_losses(routing, weight, cfg.objective, runtime)
    return LossSum(loss + routers, loss, weight, extra | reports, tallies=tallies)


def check_labelled(cfg: Config) -> None:
    """Refuses a model, or a way to train it, that the objective cannot have.

    Raises:
      ConfigError: it says which field, and what to change.
    """
    model, said = cfg.model, f'objective.name="{cfg.objective.name}"'
    if cfg.objective.name == "similarity":
        _check_batch(cfg, said)
    else:
        _check_classifier(cfg, said)
    if model.encoder.num_layers:
        raise ConfigError(
            f"{said} reads texts with one stack, and model.encoder.num_layers="
            f"{model.encoder.num_layers} makes two; take an encoder or a decoder"
        )
    if model.causal and model.pooling == "cls" and cfg.objective.name != "classify_tokens":
        raise ConfigError(
            f"{said} reads what stands for a whole text, and with model.causal=True the first "
            'token (model.pooling="cls") sees itself alone; set model.pooling="mean"'
        )


def _check_classifier(cfg: Config, said: str) -> None:
    name, classifier = cfg.objective.name, cfg.model.classifier
    labels, level = classifier.labels, "token" if name == "classify_tokens" else "sequence"
    if not labels:
        what = 'the score, ("score",)' if name == "regress" else 'the labels, ("ham", "spam")'
        raise ConfigError(
            f"{said} trains a classifier, and model.classifier.labels=() is none; name {what}"
        )
    if classifier.level != level:
        raise ConfigError(
            f'{said} needs model.classifier.level="{level}", not "{classifier.level}"; set it'
        )
    if name == "regress" and len(labels) > 1:
        raise ConfigError(
            f"{said} gives one score, and model.classifier.labels has {len(labels)} names; leave "
            'one, or set objective.name="classify"'
        )
    if name == "classify" and classifier.is_score:
        raise ConfigError(
            f"{said} chooses a label, and model.classifier.labels={labels!r} has one alone; name "
            'two or more, or set objective.name="regress" for a score'
        )


def _check_batch(cfg: Config, said: str) -> None:
    said = f"{said} takes the other texts of the batch as negatives, and"
    if cfg.train.accumulate_steps > 1:
        raise ConfigError(
            f"{said} train.accumulate_steps={cfg.train.accumulate_steps} cuts it into parts that "
            "do not see each other; set it to 1, and save memory by train.remat"
        )
    if cfg.train.batch_size < 2:
        raise ConfigError(f"{said} train.batch_size=1 has none; raise it (32 or more is usual)")
