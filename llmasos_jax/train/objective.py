"""What a model learns: how a batch is prepared (NumPy) and what loss it has (JAX)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from llmasos_jax.config.named import resolve
from llmasos_jax.config.schema import Config
from llmasos_jax.data import objectives
from llmasos_jax.data.packing import PackedRows
from llmasos_jax.data.vocabulary import Vocabulary, stand_in
from llmasos_jax.errors import ConfigError
from llmasos_jax.train.losses import cross_entropy
from llmasos_jax.train.routing import router_losses


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossSum:
    """Sums over tokens; a mean is taken once, after all parts and devices are added.

    Attributes:
      loss_sum: what is differentiated: nats, plus the weighted z-loss and the routers' losses.
      nll_sum: negative log-likelihood alone, nats; perplexity comes from this one.
      weight_sum: tokens that count.
      extra: more sums by name, reported divided by `weight_sum` (`{"accuracy": correct tokens}`).
    """

    loss_sum: jax.Array
    nll_sum: jax.Array
    weight_sum: jax.Array
    extra: dict[str, jax.Array] = field(default_factory=dict)

    def __add__(self, other: LossSum) -> LossSum:
        return jax.tree.map(lambda a, b: a + b, self, other)


@dataclass(frozen=True)
class Objective:
    """A training objective.

    Attributes:
      prepare: the NumPy side, from a row to a `Batch` (see `llmasos_jax.data.objectives`).
      rows: from a corpus and `data.sequence_length` to its rows; the default is `PackedRows`, which
        cuts it into rows of one length.
      by_sentence: whether the corpus keeps where sentences end, and has no special tokens.
      loss: `(model, batch, runtime, dropout) -> LossSum`, where `model` is a bound Transformer,
        `batch` a `Batch` of arrays [B, T], `runtime` a `Runtime`, and `dropout` what
        `Transformer.hidden` takes (None: no dropout).

    Example:
      Kept outside the package and named `"my_module:objective"` in `config.objective.name`:

      >>> def loss(model, batch, runtime, dropout):
      ...     ...
      >>> objective = Objective(prepare=objectives.causal, loss=loss)
    """

    prepare: objectives.Prepare
    loss: Callable[..., LossSum]
    rows: objectives.MakeRows = PackedRows
    by_sentence: bool = False


def causal(cfg: Config, vocabulary: Vocabulary) -> Objective:
    """Predicts each token from those before it, with z-loss (PaLM, arXiv 2204.02311, section 5)."""
    del vocabulary

    def loss(model: Any, batch: Any, runtime: Any, dropout: Any) -> LossSum:
        hidden = model.hidden(
            batch.tokens,
            positions_bt=batch.positions,
            segment_ids_bt=batch.segment_ids,
            runtime=runtime,
            dropout=dropout,
        )
        sums = cross_entropy(model.logits(hidden.x_btd, runtime), batch.targets, batch.loss_weights)
        routers, reports = router_losses(hidden.routing, sums.weight_sum, cfg.objective, runtime)
        return LossSum(
            loss_sum=sums.nll_sum + cfg.objective.z_loss * sums.z_sum + routers,
            nll_sum=sums.nll_sum,
            weight_sum=sums.weight_sum,
            extra={"accuracy": sums.correct_sum, **reports},
        )

    return Objective(prepare=objectives.causal, loss=loss)


TABLE: Mapping[str, Callable[[Config, Vocabulary], Objective]] = {"causal": causal}


def build_objective(cfg: Config, vocabulary: Vocabulary | None = None) -> Objective:
    """Returns the objective that a config names.

    Args:
      cfg: `objective.name` is a key of `TABLE`, or `"package.module:name"` of an `Objective`, or
        of a function `(Config, Vocabulary) -> Objective`.
      vocabulary: what the tokenizer's ids are; None is a stand-in of `model.vocab_size` ids, enough
        to compile the loss, whose shapes do not depend on it.

    Raises:
      ConfigError: no such objective, or the name points to something else.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> build_objective(Config(ModelConfig(100, 64, 1))).loss.__name__
      'loss'
    """
    vocabulary = stand_in(cfg.model.vocab_size) if vocabulary is None else vocabulary
    found = resolve(cfg.objective.name, TABLE, "objective.name")
    is_factory = callable(found) and not isinstance(found, Objective)
    objective = found(cfg, vocabulary) if is_factory else found
    if not isinstance(objective, Objective):
        raise ConfigError(
            f'objective.name="{cfg.objective.name}" gives a {type(objective).__name__}; it has to '
            "be a llmasos_jax.train.objective.Objective, or a function (Config, Vocabulary) to one"
        )
    return objective
