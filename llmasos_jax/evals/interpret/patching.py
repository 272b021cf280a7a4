"""Activation patching: which places of a model carry what tells two texts apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_jax.errors import GenerationError, did_you_mean
from llmasos_jax.evals.interpret.rows import Text, call, read_row, require_head, token_id
from llmasos_jax.evals.interpret.svg import heatmap_svg
from llmasos_jax.evals.interpret.view import framed, matrix_page
from llmasos_jax.evals.interpret.watch import (
    ATTENTION,
    BLOCK,
    MLP,
    MODEL,
    Place,
    repeated,
    run_watched,
    score_at,
)
from llmasos_jax.generate.model import Model
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.nn.runtime import Runtime

# What a user calls a place: the residual stream before a block, what attention adds, what the MLP.
PLACES = {"residual": BLOCK, "attention": ATTENTION, "mlp": MLP}


@dataclass(frozen=True)
class Patching:
    """What it does to put a clean run's activations into a corrupted one.

    Scores are shares of the way from the corrupted score (0) to the clean one (1).

    Attributes:
      tokens, clean_tokens: T texts of both.
      place: "residual" (before each block), "attention" or "mlp" (what they add).
      effects: float32 [L, T], of patching one layer at one token.
      layers: float32 [L], of patching one layer at all tokens.
      everywhere: of patching all layers at all tokens.
      clean, corrupted: the two scores, logits.
    """

    tokens: tuple[str, ...]
    clean_tokens: tuple[str, ...]
    place: str
    effects: np.ndarray
    layers: np.ndarray
    everywhere: float
    clean: float
    corrupted: float

    def svg(self) -> str:
        """The effects as a picture (an SVG element)."""
        return heatmap_svg(self.effects, self._rows(), self.tokens, f"patching the {self.place}")

    def html(self) -> str:
        """A page of its own: effects by layer and token under the pointer."""
        title = f"patching the {self.place}: share of the clean score that comes back"
        return matrix_page(title, ["effect"], self._rows(), self.tokens, self.effects[None])

    def _repr_html_(self) -> str:
        return framed(self.html())

    def _rows(self) -> tuple[str, ...]:
        return tuple(f"layer {i}" for i in range(len(self.effects)))


def activation_patching(
    model: Model,
    clean: Text,
    corrupted: Text,
    token: int | str,
    *,
    against: int | str | None = None,
    place: str = "residual",
    position: int = -1,
    decoder: Text | None = None,
) -> Patching:
    """Runs a corrupted text with a clean one's activations at each layer and token in turn.

    Meng et al., 2022, arXiv 2202.05262 ("causal tracing"), with a text for the noise. Costs L + 4
    forward passes of T rows.

    Args:
      model: of any family that has an output layer; of an encoder-decoder, its decoder is patched
        at what it has written, and what its encoder gives is the corrupted text's.
      clean: a text, or ids.
      corrupted: one of as many tokens.
      token: whose logit is the score; an id, or a text that is one token.
      against: another token, whose logit is subtracted; None is none.
      place: "residual", "attention" or "mlp".
      position: at which token the score is read.
      decoder: of an encoder-decoder what the decoder has written, in both runs.

    Raises:
      GenerationError: the texts have different lengths or the same score, or an argument does not
        fit the model.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> from llmasos_jax.generate.load import init_model
      >>> model = init_model(ModelConfig(40, 64, num_layers=2))
      >>> found = activation_patching(model, [5, 6, 7], [5, 9, 7], token=8)
      >>> found.effects.shape, found.everywhere
      ((2, 3), 1.0)
    """
    require_head(model)
    if place not in PLACES:
        raise GenerationError(f'place="{place}" is none{did_you_mean(place, PLACES)}')
    rows = [read_row(model, text, decoder) for text in (clean, corrupted)]
    if len(rows[0].ids) != len(rows[1].ids):
        raise GenerationError(
            f"clean has {len(rows[0].ids)} tokens, corrupted {len(rows[1].ids)}; activations are "
            "put token by token, so give as many"
        )
    other = 0 if against is None else token_id(model, against)
    weight = np.float32(against is not None)
    position = rows[0].place(position)
    wanted = (np.int32(position), np.int32(token_id(model, token)), np.int32(other), weight)
    name = PLACES[place]
    clean_score, kept = call(model, _record, rows[0].arrays, wanted, static=(name,))
    corrupted_score, _ = call(model, _record, rows[1].arrays, wanted, static=(name,))
    first, last = float(corrupted_score), float(clean_score)
    if first == last:
        raise GenerationError(
            f"clean and corrupted have the same score, {first:.6g}, so nothing can be brought back"
        )
    run = lambda layers, tokens: np.asarray(
        call(model, _patched, rows[1].arrays, wanted, kept, layers, tokens, static=(name,))
    )
    scores, everywhere = _sweep(run, model.config.num_layers, kept.shape[1], rows[1].scored_ids)
    share = lambda x: ((x - first) / (last - first)).astype(np.float32)
    return Patching(
        rows[1].scored_tokens,
        rows[0].scored_tokens,
        place,
        share(scores[:, :-1]),
        share(scores[:, -1]),
        float(share(everywhere)),
        last,
        first,
    )


def _sweep(run: Any, num_layers: int, width: int, ids: tuple[int, ...]) -> tuple[Any, Any]:
    """Scores [L, T + 1] of each layer and token, the last of all tokens; and of everything."""
    num = len(ids)
    tokens = np.zeros((num + 1, width), bool)
    tokens[np.arange(num), np.arange(num)] = True
    tokens[num] = True
    each = np.eye(num_layers, dtype=bool)
    scores = np.stack([run(each[layer], tokens) for layer in range(num_layers)])
    return scores, run(np.ones(num_layers, bool), tokens)[-1]


def _record(
    definition: ModelDef,
    runtime: Runtime,
    name: str,
    params: Any,
    arrays: tuple[Any, Any],
    wanted: tuple[Any, ...],
) -> tuple[jax.Array, jax.Array]:
    """The score, and what stands at each layer's place, [L, T', D]."""
    seen = run_watched(definition, runtime, params, arrays)
    layers = range(definition.cfg.num_layers)
    kept = jnp.stack([seen.values[Place(MODEL, name, layer)][0] for layer in layers])
    position, *tokens = wanted
    score = score_at(definition, runtime, params, seen.x_btd, position, tuple(tokens))
    return score[0], kept


def _patched(
    definition: ModelDef,
    runtime: Runtime,
    name: str,
    params: Any,
    arrays: tuple[Any, Any],
    wanted: tuple[Any, ...],
    kept_ltd: jax.Array,
    layers_l: jax.Array,
    tokens_bt: jax.Array,
) -> jax.Array:
    """Scores of rows, [B], in which the chosen layers' chosen tokens are those that were kept."""

    def edit(place: Place, x_btd: jax.Array) -> jax.Array:
        if place.stack != MODEL or place.name != name:
            return x_btd
        chosen = (tokens_bt & layers_l[place.layer])[:, :, None]
        return jnp.where(chosen, kept_ltd[place.layer][None], x_btd)

    rows = repeated(arrays, tokens_bt.shape[0])
    seen = run_watched(definition, runtime, params, rows, edit)
    position, *tokens = wanted
    return score_at(definition, runtime, params, seen.x_btd, position, tuple(tokens))
