"""How much each token that was read did for one token's score: two attributions by gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_jax.errors import GenerationError
from llmasos_jax.evals.interpret.path import Path, integrate
from llmasos_jax.evals.interpret.rows import Row, Text, call, read_row, require_head, token_id
from llmasos_jax.evals.interpret.svg import bars_svg
from llmasos_jax.evals.interpret.view import framed, text_page
from llmasos_jax.evals.interpret.watch import (
    BLOCK,
    ENCODER,
    MODEL,
    Place,
    repeated,
    run_watched,
    score_at,
)
from llmasos_jax.generate.model import Model
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.nn.runtime import Runtime

Embedded = dict[str, jax.Array]  # by stack, what goes into its first block


@dataclass(frozen=True)
class Attribution:
    """What each token did for a score. It shows itself in a notebook.

    Attributes:
      tokens: texts of what was read: of an encoder-decoder, the encoder's and then the decoder's.
      values: float32 [T], in units of logits.
      score: the token's logit, or its difference to another's.
      baseline: the same of the baseline; NaN for gradient times input, which has none.
      gap: how far the sum of `values` is from `score - baseline`, as a share of it; NaN likewise.
      evaluations: how many points of the path had their gradient taken.
    """

    tokens: tuple[str, ...]
    values: np.ndarray
    score: float
    baseline: float
    gap: float
    evaluations: int

    def svg(self) -> str:
        """The values as bars (an SVG element)."""
        return bars_svg(self.values, self.tokens, "attribution")

    def html(self) -> str:
        """A page of its own: the tokens, coloured; values under the pointer."""
        details = [f"{value:+.4f}" for value in self.values]
        return text_page("attribution to each token", self.tokens, self.values, details)

    def _repr_html_(self) -> str:
        return framed(self.html())


def gradient_times_input(
    model: Model,
    text: Text,
    token: int | str,
    *,
    against: int | str | None = None,
    position: int = -1,
    decoder: Text | None = None,
) -> Attribution:
    """The gradient of a token's logit by each embedding, times the embedding, summed over D.

    Args:
      model: of any family that has an output layer.
      text: a text, or ids; of an encoder-decoder what the encoder reads.
      token: whose logit; an id, or a text that is one token.
      against: another token, whose logit is subtracted; None is none.
      position: at which token the logit is read, from the end where it is negative.
      decoder: of an encoder-decoder what the decoder has written.

    Raises:
      GenerationError: the model has no output layer, or an argument does not fit it.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> from llmasos_jax.generate.load import init_model
      >>> gradient_times_input(init_model(ModelConfig(40, 64, 1)), [5, 6, 7], 8).values.shape
      (3,)
    """
    row, wanted = _ask(model, text, token, against, position, decoder)
    embedded = call(model, _embedded, row.arrays)
    values, grads, _ = call(model, _path, row.arrays, wanted, embedded, _zeros(embedded), _ONE)
    parts = {name: np.sum(np.asarray(grads[name] * x[0]), -1) for name, x in embedded.items()}
    nan = float("nan")
    return Attribution(*_joined(row, parts), float(values[0]), nan, nan, 1)


def integrated_gradients(
    model: Model,
    text: Text,
    token: int | str,
    *,
    against: int | str | None = None,
    position: int = -1,
    decoder: Text | None = None,
    baseline: Text | np.ndarray | None = None,
    tolerance: float = 0.01,
    max_evaluations: int = 2048,
) -> Attribution:
    """Integrated gradients from a baseline's embeddings to the text's (Sundararajan et al., 2017).

    arXiv 1703.01365, equation 1. Their sum is the difference of the two scores (completeness). The
    path is cut where that does not hold yet, since on each piece of it the integral of the slope
    is known: the difference of the scores at its ends. So it holds to `tolerance` or is refused.

    Args:
      model: as in `gradient_times_input`, and the next five.
      text: what is read.
      token: whose logit.
      against: whose logit is subtracted.
      position: where.
      decoder: of an encoder-decoder.
      baseline: where the path begins. None is the mean of the embeddings of all tokens, at each
        position; an array float [D] is what goes into the first block instead; a text, or ids, of
        as many tokens, is their embeddings (of an encoder-decoder, the encoder's alone).
      tolerance: how far the sum may be from the difference, as a share of it.
      max_evaluations: gradients at most.

    Raises:
      GenerationError: as `gradient_times_input`; the baseline has another length; the sum was not
        within `tolerance` after `max_evaluations`; or a gradient is beyond float32, as from zeros
        in a deep model, whose every norm turns within a small share of the way of the one before.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> from llmasos_jax.generate.load import init_model
      >>> found = integrated_gradients(init_model(ModelConfig(40, 64, 1)), [5, 6, 7], 8)
      >>> bool(abs(found.values.sum() / (found.score - found.baseline) - 1) <= 0.01)
      True
    """
    row, wanted = _ask(model, text, token, against, position, decoder)
    embedded = call(model, _embedded, row.arrays)
    start = _start(model, row, embedded, baseline, decoder)
    run = lambda nodes, weights: call(
        model, _path, row.arrays, wanted, embedded, start, (nodes, weights)
    )
    cfg = model.config
    jumps = any(map(cfg.has_experts, range(cfg.num_layers)))
    path = integrate(run, tolerance, max_evaluations, jumps=jumps)
    parts = {
        name: np.sum(np.asarray((x - start[name])[0]) * path.integral[name], -1)
        for name, x in embedded.items()
    }
    tokens, values = _joined(row, parts)
    return Attribution(tokens, values, path.last, path.first, _gap(values, path), path.evaluations)


_ONE = (np.ones(1, np.float32), np.ones(1, np.float32))


def _gap(values: np.ndarray, path: Path) -> float:
    difference = path.last - path.first
    apart = abs(float(values.sum()) - difference)
    return apart / abs(difference) if difference else apart


def _start(
    model: Model,
    row: Row,
    embedded: Embedded,
    baseline: Text | np.ndarray | None,
    decoder: Text | None,
) -> Embedded:
    """What goes into the first block of each stack at the beginning of the path."""
    if baseline is None:
        return call(model, _mean_embedded, row.arrays)
    if isinstance(baseline, np.ndarray):
        dim, dtype = model.config.embedding_dim, baseline.dtype
        is_number = np.issubdtype(dtype, np.floating) and bool(np.isfinite(baseline).all())
        if baseline.shape != (dim,) or not is_number:
            raise GenerationError(
                f"the baseline is an array {dtype}{list(baseline.shape)}; give finite floats "
                f"[{dim}], which stand at each token, or a list of ids"
            )
        return jax.tree.map(lambda x: jnp.broadcast_to(baseline.astype(x.dtype), x.shape), embedded)
    other = read_row(model, baseline, decoder)
    if len(other.ids) != len(row.ids):
        raise GenerationError(
            f"the baseline has {len(other.ids)} tokens, the text {len(row.ids)}; give as many"
        )
    return call(model, _embedded, other.arrays)


def _ask(
    model: Model,
    text: Text,
    token: int | str,
    against: int | str | None,
    position: int,
    decoder: Text | None,
) -> tuple[Row, tuple[Any, ...]]:
    """The row, and what of it is wanted: position, token, another one and its weight."""
    require_head(model)
    row = read_row(model, text, decoder)
    other = 0 if against is None else token_id(model, against)
    weight = np.float32(against is not None)
    numbers = (np.int32(row.place(position)), np.int32(token_id(model, token)), np.int32(other))
    return row, (*numbers, weight)


def _joined(row: Row, parts: dict[str, np.ndarray]) -> tuple[tuple[str, ...], np.ndarray]:
    """What each token did, padding left out, in the order in which the stacks read."""
    if not row.decoder_ids:
        return row.tokens, parts[MODEL][: len(row.ids)]
    read, written = parts[ENCODER][: len(row.ids)], parts[MODEL][: len(row.decoder_ids)]
    return (*row.tokens, *row.decoder_tokens), np.concatenate([read, written])


def _zeros(embedded: Embedded) -> Embedded:
    return jax.tree.map(jnp.zeros_like, embedded)


def _embedded(
    definition: ModelDef, runtime: Runtime, params: Any, arrays: tuple[Any, Any]
) -> Embedded:
    """What goes into the first block of each stack, [1, T', D]."""
    seen = run_watched(definition, runtime, params, arrays)
    stacks: Sequence[str] = (MODEL,) if arrays[1] is None else (ENCODER, MODEL)
    return {name: seen.values[Place(name, BLOCK, 0)].astype(jnp.float32) for name in stacks}


def _mean_embedded(
    definition: ModelDef, runtime: Runtime, params: Any, arrays: tuple[Any, Any]
) -> Embedded:
    """The same if each token's embedding were the mean of all, positions and scale as they are."""
    table_vd = params["embed"]["table"]
    mean_1d = jnp.mean(table_vd.astype(jnp.float32), axis=0, keepdims=True)
    mean_vd = jnp.broadcast_to(mean_1d, table_vd.shape).astype(table_vd.dtype)
    params = {**params, "embed": {**params["embed"], "table": mean_vd}}
    return _embedded(definition, runtime, params, arrays)


def _path(
    definition: ModelDef,
    runtime: Runtime,
    params: Any,
    arrays: tuple[Any, Any],
    wanted: tuple[Any, ...],
    end: Embedded,
    start: Embedded,
    points: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """Scores at points of the straight path, [S], and weighted sums over the points.

    These are of the gradients, by stack [T', D], and of the slopes along the path. `points` are S
    shares of the way, and each one's weight.
    """
    nodes_s, weights_s = points
    rows = repeated(arrays, nodes_s.shape[0])

    def score(x: Embedded) -> jax.Array:
        def edit(place: Place, array: jax.Array) -> jax.Array:
            is_first = place.name == BLOCK and place.layer == 0
            return x[place.stack].astype(array.dtype) if is_first else array

        seen = run_watched(definition, runtime, params, rows, edit)
        position, *tokens = wanted
        return score_at(definition, runtime, params, seen.x_btd, position, tuple(tokens))

    at = jax.tree.map(lambda a, b: a + nodes_s[:, None, None] * (b - a), start, end)
    values_s, back = jax.vjp(score, at)
    (grads,) = back(weights_s)
    sums = {name: jnp.sum(grad, axis=0) for name, grad in grads.items()}
    slope = sum(jnp.sum(sums[name] * (end[name] - start[name])[0]) for name in sums)
    return values_s, sums, jnp.asarray(slope)
