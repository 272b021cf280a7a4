"""Attention maps: how much each token reads of each other one, in each head of each layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_jax.errors import GenerationError
from llmasos_jax.evals.interpret.rows import Text, call, read_row
from llmasos_jax.evals.interpret.svg import heatmap_svg
from llmasos_jax.evals.interpret.view import framed, matrix_page
from llmasos_jax.evals.interpret.watch import run_watched
from llmasos_jax.generate.model import Model
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.models.transformer import Transformer
from llmasos_jax.nn.kernels import dot_product
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.nn.scores import masked_scores

SELF, CROSS, OF_ENCODER = "self", "cross", "encoder"


@dataclass(frozen=True)
class AttentionMaps:
    """Weights of attention, each row of which sums to 1. It shows itself in a notebook.

    Attributes:
      tokens: T texts; of an encoder-decoder, of its decoder.
      maps: float32 [L, N, T, T]: of layer l and head n, how much of token s token t reads.
      source: S texts that the encoder of an encoder-decoder read; else empty.
      cross: float32 [L, N, T, S], the decoder's attention to them; None with one stack.
      encoder: float32 [L', N, S, S], the encoder's own; None with one stack.
    """

    tokens: tuple[str, ...]
    maps: np.ndarray
    source: tuple[str, ...] = ()
    cross: np.ndarray | None = None
    encoder: np.ndarray | None = None

    def svg(self, layer: int, head: int) -> str:
        """One map of `maps` as a picture (an SVG element)."""
        title = f"attention, layer {layer}, head {head}"
        return heatmap_svg(self.maps[layer, head], self.tokens, self.tokens, title)

    def html(self, which: str = SELF) -> str:
        """A page of its own: choose layer and head, read a weight under the pointer.

        Args:
          which: "self", "cross" or "encoder".
        """
        parts = {
            SELF: (self.maps, self.tokens, self.tokens),
            CROSS: (self.cross, self.tokens, self.source),
            OF_ENCODER: (self.encoder, self.source, self.source),
        }
        maps, rows, cols = parts.get(which, (None, (), ()))
        if maps is None:
            has = [name for name, part in parts.items() if part[0] is not None]
            raise GenerationError(f"there are no maps {which!r}; give one of {', '.join(has)}")
        num_layers, num_heads = maps.shape[:2]
        names = [f"layer {i}, head {n}" for i in range(num_layers) for n in range(num_heads)]
        flat = maps.reshape(-1, *maps.shape[2:])
        return matrix_page(f"attention ({which})", names, rows, cols, flat)

    def _repr_html_(self) -> str:
        return framed(self.html())


def attention_maps(model: Model, text: Text, decoder: Text | None = None) -> AttentionMaps:
    """The weights of attention over a text, after masks, biases and softmax.

    Args:
      model: of any family, on one device or cut over many.
      text: a text, or ids; of an encoder-decoder what the encoder reads.
      decoder: of an encoder-decoder what the decoder has written; None is its start id.

    Raises:
      GenerationError: the model computes attention with a function of its own, whose weights
        nothing here knows.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> from llmasos_jax.generate.load import init_model
      >>> found = attention_maps(init_model(ModelConfig(40, 64, num_layers=2)), [5, 6, 7])
      >>> found.maps.shape, bool(abs(found.maps.sum(-1) - 1).max() < 1e-5)
      ((2, 1, 3, 3), True)
    """
    if model.config.attention != "dot_product":
        raise GenerationError(
            f'model.attention="{model.config.attention}" is a function of its own; maps are known '
            'for "dot_product" only'
        )
    row = read_row(model, text, decoder)
    found = call(model, _maps, row.arrays)
    t, s = len(row.scored_ids), len(row.ids)
    cut = {
        SELF: lambda x: x[:, :, :t, :t],
        CROSS: lambda x: x[:, :, :t, :s],
        OF_ENCODER: lambda x: x[:, :, :s, :s],
    }
    arrays = {name: cut[name](np.asarray(x)) for name, x in found.items()}
    source = row.tokens if row.decoder_ids else ()
    return AttentionMaps(
        row.scored_tokens, arrays[SELF], source, arrays.get(CROSS), arrays.get(OF_ENCODER)
    )


def _maps(
    definition: ModelDef, runtime: Runtime, params: Any, arrays: tuple[Any, Any]
) -> dict[str, jax.Array]:
    kept: dict[tuple[str, int], jax.Array] = {}

    class Listening:
        """The definition, whose models have attention functions that keep their weights.

        Tags show queries, keys and values, but not masks, biases and scales. `attend_fn` gets all
        of them: a field of each attention of the bound model, which is bound for this call alone.
        """

        @staticmethod
        def bind(params: Any) -> Transformer:
            model = definition.bind(params)
            for name, block in model.prefix.items():
                block.attn.attend_fn = _keeping(kept, (SELF, int(name)))
                if block.cross_attn is not None:
                    block.cross_attn.attend_fn = _keeping(kept, (CROSS, int(name)))
            if model.encoder is not None:
                for name, block in model.encoder.prefix.items():
                    block.attn.attend_fn = _keeping(kept, (OF_ENCODER, int(name)))
            return model

    run_watched(Listening(), runtime, params, arrays)
    parts = {part for part, _ in kept}
    layers = {part: sorted(i for name, i in kept if name == part) for part in parts}
    return {part: jnp.stack([kept[part, i] for i in layers[part]]) for part in parts}


def _keeping(kept: dict[Any, jax.Array], place: tuple[str, int]) -> Callable[..., jax.Array]:
    """`dot_product`, which keeps its weights [N, T, S] of the first row."""

    def attend(
        q_btnh: jax.Array,
        k_bskh: jax.Array,
        v_bskh: jax.Array,
        visible: Visibility,
        *,
        scale: float,
        soft_cap: float | None = None,
        slopes: np.ndarray | None = None,
        bias: jax.Array | None = None,
        runtime: Runtime,
    ) -> jax.Array:
        b, t, n, h = q_btnh.shape
        k = k_bskh.shape[2]
        q_btkgh = q_btnh.reshape(b, t, k, n // k, h)
        scores = jnp.einsum(
            "btkgh,bskh->bkgts", q_btkgh, k_bskh, preferred_element_type=jnp.float32
        )
        scores = masked_scores(scores * scale, visible, soft_cap, slopes, bias)
        weights = jax.nn.softmax(scores, axis=-1)
        kept[place] = weights.reshape(b, n, t, -1)[0]
        options = {"scale": scale, "soft_cap": soft_cap, "slopes": slopes, "bias": bias}
        return dot_product(q_btnh, k_bskh, v_bskh, visible, **options, runtime=runtime)

    return attend
