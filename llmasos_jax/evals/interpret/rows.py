"""What is looked at: one text as a model reads it, and the model's parts that look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from llmasos_jax.data.tokenizers.inputs import read_ids
from llmasos_jax.errors import GenerationError
from llmasos_jax.generate.inputs import read_decoder_ids, read_inputs
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.weights import Weights
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.nn.runtime import Runtime

Text = str | Sequence[int]  # a text, or the ids that a model reads of it


@dataclass(frozen=True)
class Row:
    """One text, padded on the right to a compiled shape.

    Attributes:
      ids: what the model reads; of an encoder-decoder, its encoder.
      tokens: each id's text, for people; `<7>` where an id has none of its own.
      inputs: tokens, mask and token types (or None), int32 [1, T'].
      decoder_ids, decoder_tokens: of the decoder of an encoder-decoder; else empty.
      decoder: the same arrays for it, or None.
    """

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    inputs: tuple[Any, Any, Any]
    decoder_ids: tuple[int, ...] = ()
    decoder_tokens: tuple[str, ...] = ()
    decoder: tuple[Any, Any, Any] | None = None

    @property
    def arrays(self) -> tuple[Any, Any]:
        """What the programs take."""
        return self.inputs, self.decoder

    @property
    def scored_ids(self) -> tuple[int, ...]:
        """The ids of the stack that the output layer stands on."""
        return self.decoder_ids or self.ids

    @property
    def scored_tokens(self) -> tuple[str, ...]:
        """Their texts."""
        return self.decoder_tokens or self.tokens

    def place(self, position: int) -> int:
        """A position among the scored ids, counted from the end where it is negative.

        Raises:
          GenerationError: there is none.
        """
        num = len(self.scored_ids)
        if not -num <= position < num:
            raise GenerationError(
                f"position={position} is none of the {num} tokens; give {-num} to {num - 1}"
            )
        return position % num


def read_row(model: Model, text: Text, decoder: Text | None = None) -> Row:
    """A text, or the ids of one, as the model reads it.

    Args:
      model: what reads.
      text: a text, or ids; of an encoder-decoder what the encoder reads.
      decoder: what the decoder of an encoder-decoder has written; None is its start id alone. Of a
        text, ids begin with the start id.

    Raises:
      GenerationError: the ids do not fit the model, or it has no tokenizer for a text.
    """
    ids = model.encode(text) if isinstance(text, str) else list(text)
    read = read_inputs(model.config, [ids], None, _types(model, text))
    if not model.config.encoder.num_layers:
        if decoder is not None:
            read_decoder_ids(model.config, [[0]], 1)  # raises: one stack has no decoder of its own
        return Row(tuple(ids), _labels(model, ids), read.arrays())
    written = _decoder_ids(model, decoder)
    second = read_decoder_ids(model.config, [written], 1)
    return Row(
        tuple(ids),
        _labels(model, ids),
        read.arrays(),
        tuple(written),
        _labels(model, written),
        None if second is None else second.arrays(),
    )


def token_id(model: Model, token: int | str) -> int:
    """The id of a token that is named by its text or by its id.

    Raises:
      GenerationError: the text is not one token, or the id is none of the model's.
    """
    if isinstance(token, str):
        tokenizer = model._require_tokenizer()
        ids = tokenizer.encode(token)
        begins = tokenizer.adds_bos and len(ids) > 1 and ids[0] == tokenizer.bos_id
        ids = ids[1:] if begins else ids
        if len(ids) != 1:
            raise GenerationError(
                f"{token!r} is {len(ids)} tokens {list(ids)}; give a text that is one, or an id"
            )
        return int(ids[0])
    num = model.config.vocab_size
    if not 0 <= token < num:
        raise GenerationError(f"token {token} is none of the model's ids, 0 to {num - 1}")
    return int(token)


def weights_of(model: Model) -> Weights:
    """The model's weights where they are, on one device or cut over many."""
    return model._weights


def require_head(model: Model) -> None:
    """Raises GenerationError unless the model has an output layer."""
    if model.config.head is None:
        raise GenerationError(
            f"{model!r} has no output layer, so no token has a score; take a model that has one"
        )


@lru_cache(maxsize=64)
def program(
    function: Callable, definition: ModelDef, runtime: Runtime, *static: Any
) -> Callable[..., Any]:
    """`function(definition, runtime, *static, params, *arrays)`, compiled once for each shape.

    It holds no weights: they are an argument, and stay as they are cut over devices.
    """
    return jax.jit(partial(function, definition, runtime, *static))


def call(model: Model, function: Callable, *arrays: Any, static: tuple[Any, ...] = ()) -> Any:
    """Runs a program on a model's weights."""
    weights = weights_of(model)
    run = program(function, weights.definition, weights.runtime, *static)
    return run(weights.params, *arrays)


def _types(model: Model, text: Text) -> list[list[int]] | None:
    if not isinstance(text, str) or not model.config.token_types:
        return None
    return [read_ids(model.config, model._require_tokenizer(), text)[1]]


def _decoder_ids(model: Model, decoder: Text | None) -> list[int]:
    if decoder is not None and not isinstance(decoder, str):
        return list(decoder)
    start = model.manifest.generation.decoder_start_id
    if start is None:
        raise GenerationError(f"{model!r} has no start id for its decoder; give decoder as ids")
    return [start, *(model._require_tokenizer().encode(decoder) if decoder else ())]


def _labels(model: Model, ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(label(model, i) for i in np.asarray(ids).tolist())


def label(model: Model, i: int) -> str:
    """An id's text, for people; `<7>` where it has none of its own."""
    text = "" if model.tokenizer is None else model.tokenizer.decode([i])
    return f"<{i}>" if not text or "\ufffd" in text else text
