"""What an objective's loss gives: sums, so that parts and devices add up before a mean is taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Term:
    """One more term of a loss, whose mean is over something else than tokens.

    Attributes:
      loss_sum: nats; differentiated, and divided by the global `weight_sum`.
      weight_sum: what it is a mean over (rows, in next sentence prediction).
      extra: more sums by name, reported divided by `weight_sum`.
    """

    loss_sum: jax.Array
    weight_sum: jax.Array
    extra: dict[str, jax.Array] = field(default_factory=dict)


class Tally(Protocol):
    """Sums of which a report is no quotient: a pytree, whose leaves are added."""

    def values(self) -> dict[str, jax.Array]:
        """What is reported, by name."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossSum:
    """Sums over tokens, or examples; a mean is taken once, after all parts and devices are added.

    Attributes:
      loss_sum: what is differentiated: nats, plus the weighted z-loss and the routers' losses.
      nll_sum: negative log-likelihood alone, nats; perplexity comes from this one.
      weight_sum: tokens that count.
      extra: more sums by name, reported divided by `weight_sum` (`{"accuracy": correct tokens}`).
      terms: further terms by name, each with a mean of its own; an objective that has some says
        their weights ahead, in `Objective.term_weights`.
      tallies: more sums by name, which report themselves.
    """

    loss_sum: jax.Array
    nll_sum: jax.Array
    weight_sum: jax.Array
    extra: dict[str, jax.Array] = field(default_factory=dict)
    terms: dict[str, Term] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)

    def __add__(self, other: LossSum) -> LossSum:
        return jax.tree.map(lambda a, b: a + b, self, other)

    def means(self) -> dict[str, jax.Array]:
        """Turns sums over a whole batch, or all held-out text, into what is reported.

        Returns:
          "loss", which is the mean over tokens plus the mean of each term; "nll"; the extra ones;
          "TERM_loss" and "TERM_EXTRA" of each term; what each tally reports.

        Example:
          >>> one = jnp.float32(1.0)
          >>> sums = LossSum(6 * one, 4 * one, 2 * one, terms={"nsp": Term(8 * one, 4 * one)})
          >>> {name: float(value) for name, value in sums.means().items()}
          {'loss': 5.0, 'nll': 2.0, 'nsp_loss': 2.0}
        """
        tokens = jnp.maximum(self.weight_sum, 1.0)
        means = {"loss": self.loss_sum / tokens, "nll": self.nll_sum / tokens}
        means |= {name: value / tokens for name, value in self.extra.items()}
        for term, sums in self.terms.items():
            weight = jnp.maximum(sums.weight_sum, 1.0)
            means[f"{term}_loss"] = sums.loss_sum / weight
            means["loss"] = means["loss"] + means[f"{term}_loss"]
            means |= {f"{term}_{name}": value / weight for name, value in sums.extra.items()}
        for tally in self.tallies.values():
            means |= tally.values()
        return means
