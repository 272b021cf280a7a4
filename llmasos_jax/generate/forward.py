"""The compiled programs that look at given tokens, one shape at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_jax.generate.weights import Weights
from llmasos_jax.models.stack import Hidden
from llmasos_jax.models.transformer import Encoded, Transformer
from llmasos_jax.nn.heads import pool

Inputs = tuple[Any, Any, Any]  # tokens, mask and token types (or None), int32 [B, T]


class Forward:
    """Runs a model over rows of tokens, without a cache.

    `inputs` are tokens, mask (1 for tokens, 0 for padding, on either side) and token types or None.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._programs: dict[Callable, Callable] = {}

    def on(self, weights: Weights) -> Forward:
        """The same programs on other weights of the same structure."""
        other = copy.copy(self)
        other._weights = weights
        return other

    def logits(
        self, inputs: Inputs, decoder: Inputs | None = None, prefix_bt: Any = None
    ) -> jax.Array:
        """Scores, float32 [B, T, V]: the decoder's where there is one.

        `prefix_bt` is not 0 for tokens that every token of a row sees, of a model with `prefix_lm`.
        """
        return self._run(_logits, inputs, decoder, prefix_bt)

    def layers(
        self, inputs: Inputs, decoder: Inputs | None = None, prefix_bt: Any = None
    ) -> list[jax.Array]:
        """The residual stream, L + 1 arrays float32 [B, T, D]: of the decoder where it is given."""
        return self._run(_layers, inputs, decoder, prefix_bt)

    def logits_at(self, inputs: Inputs, places_bm: np.ndarray) -> np.ndarray:
        """The MLM head's scores at chosen places, float32 [B, M, V]."""
        return np.asarray(self._run(_logits_at, inputs, places_bm))

    def embeddings(self, inputs: Inputs) -> np.ndarray:
        """What `pooling` makes of each row, float32 [B, D], not divided by its length."""
        return np.asarray(self._run(_embeddings, inputs))

    def next_sentence(self, inputs: Inputs) -> np.ndarray:
        """Probabilities of "b follows a" and of "b is from elsewhere", float32 [B, 2]."""
        return np.asarray(self._run(_next_sentence, inputs))

    def labels(self, inputs: Inputs) -> np.ndarray:
        """The labels' probabilities, float32 [B, C], or of each token [B, T, C]; or a score."""
        return np.asarray(self._run(_labels, inputs))

    def _run(self, function: Callable, *args: Any) -> Any:
        if function not in self._programs:
            self._programs[function] = jax.jit(partial(function, self._weights))
        return self._programs[function](self._weights.params, *args)


def _read(
    weights: Weights,
    model: Transformer,
    inputs: Inputs,
    prefix_bt: Any = None,
    *,
    all_layers: bool = False,
) -> Hidden | Encoded:
    """What reads a text: the one stack, or the encoder of an encoder-decoder."""
    tokens_bt, mask_bt, types_bt = inputs
    positions_bt, runtime = _positions(mask_bt), weights.runtime
    if model.encoder is not None:
        return model.encode(
            tokens_bt,
            positions_bs=positions_bt,
            segment_ids_bs=mask_bt,
            runtime=runtime,
            all_layers=all_layers,
        )
    return model.hidden(
        tokens_bt,
        positions_bt=positions_bt,
        segment_ids_bt=mask_bt,
        token_types_bt=types_bt,
        prefix_bt=prefix_bt,
        runtime=runtime,
        all_layers=all_layers,
    )


def _decode(
    weights: Weights, model: Transformer, inputs: Inputs, decoder: Inputs, *, all_layers: bool
) -> Hidden:
    """The decoder's states, of what follows the text that the encoder reads."""
    encoded = _read(weights, model, inputs)
    tokens_bt, mask_bt, _ = decoder
    return model.hidden(
        tokens_bt,
        positions_bt=_positions(mask_bt),
        segment_ids_bt=mask_bt,
        encoded=encoded if isinstance(encoded, Encoded) else None,
        runtime=weights.runtime,
        all_layers=all_layers,
    )


def _states(encoded: Hidden | Encoded) -> jax.Array:
    return encoded.x_bsd if isinstance(encoded, Encoded) else encoded.x_btd


def _positions(mask_bt: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.cumsum(mask_bt, axis=1) - 1, 0)


def _logits(
    weights: Weights, params: Any, inputs: Inputs, decoder: Inputs | None, prefix_bt: Any
) -> jax.Array:
    model = weights.definition.bind(params)
    if decoder is None:
        x_btd = _states(_read(weights, model, inputs, prefix_bt))
    else:
        x_btd = _decode(weights, model, inputs, decoder, all_layers=False).x_btd
    return model.logits(x_btd, weights.runtime)


def _layers(
    weights: Weights, params: Any, inputs: Inputs, decoder: Inputs | None, prefix_bt: Any
) -> list[jax.Array]:
    model = weights.definition.bind(params)
    if decoder is None:
        layers = _read(weights, model, inputs, prefix_bt, all_layers=True).layers
    else:
        layers = _decode(weights, model, inputs, decoder, all_layers=True).layers
    return [x_btd.astype(jnp.float32) for x_btd in layers or ()]


def _logits_at(weights: Weights, params: Any, inputs: Inputs, places_bm: jax.Array) -> jax.Array:
    model = weights.definition.bind(params)
    x_btd = _states(_read(weights, model, inputs))
    x_bmd = jnp.take_along_axis(x_btd, places_bm[:, :, None], axis=1)
    return model.logits(x_bmd, weights.runtime)


def _embeddings(weights: Weights, params: Any, inputs: Inputs) -> jax.Array:
    model = weights.definition.bind(params)
    x_btd = _states(_read(weights, model, inputs)).astype(jnp.float32)
    return pool(x_btd, inputs[1], weights.definition.cfg.pooling)


def _next_sentence(weights: Weights, params: Any, inputs: Inputs) -> jax.Array:
    model = weights.definition.bind(params)
    if model.next_sentence is None:
        raise ValueError("this model has no score for a next sentence")
    pooled_bd = model.pooled(_states(_read(weights, model, inputs)), weights.runtime, inputs[1])
    return jax.nn.softmax(model.next_sentence(pooled_bd, weights.runtime), axis=-1)


def _labels(weights: Weights, params: Any, inputs: Inputs) -> jax.Array:
    model = weights.definition.bind(params)
    x = _states(_read(weights, model, inputs))
    if weights.definition.cfg.classifier.level == "sequence":
        x = model.pooled(x, weights.runtime, inputs[1])
    scores = model.classify(x, weights.runtime)
    return scores if weights.definition.cfg.classifier.is_score else jax.nn.softmax(scores, axis=-1)
