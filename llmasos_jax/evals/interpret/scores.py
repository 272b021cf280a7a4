"""What a model says of each token of a text: its log-probability, its rank, how sure it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_jax.errors import GenerationError
from llmasos_jax.evals.interpret.rows import Text, call, read_row, require_head
from llmasos_jax.evals.interpret.view import framed, text_page
from llmasos_jax.evals.interpret.watch import run_watched
from llmasos_jax.generate.model import Model
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.nn.runtime import Runtime


@dataclass(frozen=True)
class TokenScores:
    """A text's tokens as the model expected them. It shows itself in a notebook.

    Attributes:
      tokens: T texts.
      ids: int32 [T].
      logprobs: float32 [T], in nats, of each token after those before it; the first is NaN, for
        nothing stands before it.
      ranks: int32 [T], how many tokens were likelier; -1 for the first.
      entropies: float32 [T], in nats, of the distribution that the token was drawn from; NaN for
        the first.
    """

    tokens: tuple[str, ...]
    ids: np.ndarray
    logprobs: np.ndarray
    ranks: np.ndarray
    entropies: np.ndarray

    @property
    def total(self) -> float:
        """The text's log-probability after its first token, in nats."""
        return float(np.nansum(self.logprobs))

    def html(self) -> str:
        """A page of its own: the tokens, coloured; details under the pointer."""
        details = [
            f"log-probability {p:.3f}, rank {r}, entropy {e:.3f}"
            for p, r, e in zip(self.logprobs, self.ranks, self.entropies, strict=True)
        ]
        return text_page("log-probability of each token", self.tokens, self.logprobs, details)

    def _repr_html_(self) -> str:
        return framed(self.html())


def token_logprobs(model: Model, text: Text, decoder: Text | None = None) -> TokenScores:
    """The log-probability of each token of a text, given those before it.

    Args:
      model: a decoder or an encoder-decoder.
      text: a text, or ids; of an encoder-decoder what the encoder reads.
      decoder: of an encoder-decoder the text, or ids, that are scored.

    Returns:
      One number for each token, nats.

    Raises:
      GenerationError: the model reads in both directions, or the text does not fit.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> from llmasos_jax.generate.load import init_model
      >>> scores = token_logprobs(init_model(ModelConfig(40, 64, 1)), [5, 6, 7])
      >>> scores.logprobs.shape, bool(scores.total < 0)
      ((3,), True)
    """
    require_head(model)
    if not model.config.causal:
        raise GenerationError(
            f"{model!r} reads in both directions, so no token comes after others; take a decoder"
        )
    row = read_row(model, text, decoder)
    found = call(model, _scores, row.arrays)
    num = len(row.scored_ids)
    first = np.full(1, np.nan, np.float32)
    logprobs, entropies = (np.append(first, np.asarray(found[i])[: num - 1]) for i in (0, 2))
    ranks = np.append(np.int32(-1), np.asarray(found[1])[: num - 1]).astype(np.int32)
    return TokenScores(
        row.scored_tokens, np.array(row.scored_ids, np.int32), logprobs, ranks, entropies
    )


def _scores(
    definition: ModelDef, runtime: Runtime, params: Any, arrays: tuple[Any, Any]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of tokens 1 to T' - 1, each [T' - 1]."""
    seen = run_watched(definition, runtime, params, arrays)
    tokens_bt = arrays[0][0] if arrays[1] is None else arrays[1][0]
    logprobs_tv = jax.nn.log_softmax(definition.bind(params).logits(seen.x_btd, runtime)[0])
    own_t1 = jnp.take_along_axis(logprobs_tv[:-1], tokens_bt[0, 1:, None], axis=1)
    ranks_t = jnp.sum(logprobs_tv[:-1] > own_t1, axis=1)
    entropies_t = -jnp.sum(jnp.exp(logprobs_tv[:-1]) * logprobs_tv[:-1], axis=1)
    return own_t1[:, 0], ranks_t, entropies_t
