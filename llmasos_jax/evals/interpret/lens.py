"""The logit lens: what the output layer would say of the residual stream after each layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_jax.errors import GenerationError
from llmasos_jax.evals.interpret.rows import Text, call, label, read_row, require_head
from llmasos_jax.evals.interpret.svg import heatmap_svg
from llmasos_jax.evals.interpret.view import framed, matrix_page
from llmasos_jax.evals.interpret.watch import BLOCK, MODEL, Place, run_watched
from llmasos_jax.generate.model import Model
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.nn.norm import Norm
from llmasos_jax.nn.runtime import Runtime


@dataclass(frozen=True)
class LogitLens:
    """Guesses after each of L layers, and before the first. It shows itself in a notebook.

    Attributes:
      tokens: T texts.
      guesses: L + 1 rows of T texts, the likeliest token there.
      top_ids: int32 [L + 1, T, k], the likeliest tokens, best first.
      top_logprobs: float32 [L + 1, T, k], in nats.
      divergences: float32 [L + 1, T], in nats: KL of the output from what is said here; 0 in the
        last row, up to rounding.
      logits: float32 [L + 1, T, V], if asked for; the last row is the model's output.
    """

    tokens: tuple[str, ...]
    guesses: tuple[tuple[str, ...], ...]
    top_ids: np.ndarray
    top_logprobs: np.ndarray
    divergences: np.ndarray
    logits: np.ndarray | None = None

    def svg(self) -> str:
        """The best guesses' log-probabilities as a picture (an SVG element)."""
        return heatmap_svg(self.top_logprobs[..., 0], self._layers(), self.tokens, "logit lens")

    def html(self) -> str:
        """A page of its own: each layer's best guess, its log-probability under the pointer."""
        names = ["log-probability of the best guess", "KL of the output from it"]
        values = np.stack([self.top_logprobs[..., 0], self.divergences])
        rows = self._layers()
        return matrix_page("logit lens", names, rows, self.tokens, values, texts=self.guesses)

    def _repr_html_(self) -> str:
        return framed(self.html())

    def _layers(self) -> tuple[str, ...]:
        return ("embedding", *(f"layer {i}" for i in range(len(self.guesses) - 1)))


def logit_lens(
    model: Model,
    text: Text,
    decoder: Text | None = None,
    *,
    top_k: int = 5,
    with_logits: bool = False,
) -> LogitLens:
    """Reads the residual stream after each layer with the model's own norm and output layer.

    nostalgebraist, 2020, "interpreting GPT: the logit lens". Early layers of models that were not
    trained for it need not speak the output's language: little said early is no proof of little
    known.

    Args:
      model: of any family that has an output layer.
      text: a text, or ids; of an encoder-decoder what the encoder reads.
      decoder: of an encoder-decoder what the decoder has written; its layers are looked at.
      top_k: how many tokens are kept for each place.
      with_logits: whether all scores are kept, 4 (L + 1) T V bytes.

    Raises:
      GenerationError: the model has no output layer, or `top_k` is out of range.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> from llmasos_jax.generate.load import init_model
      >>> found = logit_lens(init_model(ModelConfig(40, 64, num_layers=2)), [5, 6, 7], top_k=3)
      >>> found.top_ids.shape, bool(abs(found.divergences[-1]).max() < 1e-6)
      ((3, 3, 3), True)
    """
    require_head(model)
    if not 1 <= top_k <= model.config.vocab_size:
        raise GenerationError(f"top_k={top_k}; give 1 to {model.config.vocab_size}")
    row = read_row(model, text, decoder)
    num = len(row.scored_ids)
    found = call(model, _lens, row.arrays, static=(top_k, with_logits))
    ids, logprobs, divergences, *logits = (np.asarray(x)[:, :num] for x in found)
    guesses = tuple(tuple(label(model, int(i)) for i in best) for best in ids[..., 0])
    return LogitLens(
        row.scored_tokens,
        guesses,
        ids,
        logprobs,
        divergences,
        logits[0] if logits else None,
    )


def _lens(
    definition: ModelDef,
    runtime: Runtime,
    top_k: int,
    with_logits: bool,
    params: Any,
    arrays: tuple[Any, Any],
) -> tuple[jax.Array, ...]:
    model = definition.bind(params)
    seen = run_watched(definition, runtime, params, arrays)
    norm: Norm | None = model.final_norm
    blocks = range(definition.cfg.num_layers)
    early = [seen.values[Place(MODEL, BLOCK, layer)] for layer in blocks]
    # What leaves the last block went through the final norm already.
    normed = [x if norm is None else norm(x) for x in early]
    x_ltd = jnp.concatenate([x[:1] for x in (*normed, seen.x_btd)])
    output_tv = jax.nn.log_softmax(model.logits(seen.x_btd[:1], runtime)[0])

    def read(x_td: jax.Array) -> tuple[jax.Array, ...]:
        logits_tv = model.logits(x_td[None], runtime)[0]
        logprobs_tv = jax.nn.log_softmax(logits_tv)
        top, ids = jax.lax.top_k(logprobs_tv, top_k)
        apart_t = jnp.sum(jnp.exp(output_tv) * (output_tv - logprobs_tv), axis=-1)
        return (ids, top, apart_t, *((logits_tv,) if with_logits else ()))

    # One layer's scores at a time: T V numbers, not (L + 1) T V.
    return jax.lax.map(read, x_ltd)
