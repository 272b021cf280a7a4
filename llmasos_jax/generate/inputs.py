"""Checks ids, masks and token types that a caller gives, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import GenerationError
from llmasos_jax.format.strict import shown
from llmasos_jax.generate.session import quarter_steps


@dataclass(frozen=True)
class ForwardInputs:
    """What one forward pass reads, padded on the right to a compiled shape.

    Attributes:
      tokens_bt: int32 [B, T'].
      mask_bt: int32 [B, T'], 1 for tokens.
      token_types_bt: int32 [B, T'], or None.
      width: T, the columns that the caller gave.
    """

    tokens_bt: np.ndarray
    mask_bt: np.ndarray
    token_types_bt: np.ndarray | None
    width: int

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Tokens, mask and token types."""
        return self.tokens_bt, self.mask_bt, self.token_types_bt


def read_inputs(
    cfg: ModelConfig,
    token_ids: Any,
    attention_mask: Any,
    token_type_ids: Any = None,
    *,
    name: str = "token_ids",
) -> ForwardInputs:
    """Checks the arguments of `Model.logits` and `Model.hidden_states`; `name` is that of the ids.

    Raises:
      GenerationError: shapes, ids or types do not fit the model.
    """
    tokens_bt = _integers(name, token_ids)
    _check_range(name, tokens_bt, cfg.vocab_size)
    shape = tokens_bt.shape
    mask_bt = np.ones(shape, np.int32)
    if attention_mask is not None:
        mask_bt = _integers("attention_mask", attention_mask)
        if mask_bt.shape != shape:
            raise GenerationError(
                f"attention_mask {list(mask_bt.shape)} does not fit token_ids {list(shape)}; give "
                "one number for each id"
            )
        if not np.isin(mask_bt, (0, 1)).all():
            wrong = mask_bt[~np.isin(mask_bt, (0, 1))][0]
            raise GenerationError(
                f"attention_mask holds {wrong}; give 1 for tokens and 0 for padding"
            )
        if not (has_tokens_b := mask_bt.any(axis=1)).all():
            raise GenerationError(
                f"attention_mask has no 1 in row {int(np.argmin(has_tokens_b))}; give each row one "
                "token at least, or leave the row out"
            )
        starts = np.diff(mask_bt.astype(np.int32), axis=1, prepend=0) == 1
        if (starts.sum(axis=1) > 1).any():  # windows and ALiBi count columns
            raise GenerationError(
                "attention_mask has padding between tokens; give padding before or after them only"
            )
    types_bt = None if token_type_ids is None else _token_types(cfg, token_type_ids, shape)
    longest, num_positions = int(mask_bt.sum(axis=1).max()), cfg.context_length
    if cfg.position == "learned" and longest > num_positions:
        raise GenerationError(
            f"{name} have {longest} tokens in a row, the model {num_positions} positions; cut them"
        )
    width = shape[1]
    pad = [(0, 0), (0, quarter_steps(width) - width)]
    padded = [np.pad(x.astype(np.int32), pad) for x in (tokens_bt, mask_bt)]
    if types_bt is not None:
        types_bt = np.pad(types_bt.astype(np.int32), pad)
    return ForwardInputs(padded[0], padded[1], types_bt, width)


def read_decoder_ids(cfg: ModelConfig, decoder_ids: Any, num_rows: int) -> ForwardInputs | None:
    """Checks what the decoder of an encoder-decoder reads, ids [B, U]; None stays None.

    Raises:
      GenerationError: the model has no encoder, or shapes or ids do not fit.
    """
    if decoder_ids is None:
        return None
    if not cfg.encoder.num_layers:
        raise GenerationError(
            "decoder_ids are for encoder-decoders, and this model is one stack; leave them out"
        )
    decoder = read_inputs(cfg, decoder_ids, None, name="decoder_ids")
    if len(decoder.tokens_bt) != num_rows:
        raise GenerationError(
            f"decoder_ids have {len(decoder.tokens_bt)} rows, token_ids {num_rows}; give one row "
            "for each"
        )
    return decoder


def read_prefix(cfg: ModelConfig, prefix_lengths: Any, mask_bt: np.ndarray) -> np.ndarray | None:
    """Which tokens every token of their row sees, bool [B, T']; None stays None.

    Raises:
      GenerationError: the model reads no prefix, or a length is none of a row's.
    """
    if prefix_lengths is None:
        return None
    if not cfg.prefix_lm:
        raise GenerationError(
            "prefix_lengths are for models with prefix_lm=True; leave them out: this one's tokens "
            + ("see only those before them" if cfg.causal else "all see each other")
        )
    try:
        lengths_b = np.asarray(prefix_lengths)
    except ValueError:  # rows of unequal length
        lengths_b = np.zeros((0, 0))
    if lengths_b.ndim != 1 or not np.issubdtype(lengths_b.dtype, np.integer):
        raise GenerationError(
            f"prefix_lengths is {shown(prefix_lengths)}; expected whole numbers [B], one for each "
            "row of token_ids"
        )
    lengths_b1 = lengths_b[:, None]
    counts_b1 = mask_bt.sum(axis=1, keepdims=True)
    is_right = lengths_b1.shape == counts_b1.shape
    if not is_right or (lengths_b1 < 0).any() or (lengths_b1 > counts_b1).any():
        raise GenerationError(
            f"prefix_lengths are {lengths_b.tolist()}; give one for each row, 0 "
            f"to its tokens: {counts_b1[:, 0].tolist()}"
        )
    return (np.cumsum(mask_bt, axis=1) <= lengths_b1) & (mask_bt > 0)


def _token_types(cfg: ModelConfig, token_type_ids: Any, shape: tuple[int, ...]) -> np.ndarray:
    if not cfg.token_types:
        raise GenerationError("this model has no token types; leave out token_type_ids")
    types_bt = _integers("token_type_ids", token_type_ids)
    if types_bt.shape != shape:
        raise GenerationError(
            f"token_type_ids {list(types_bt.shape)} do not fit token_ids {list(shape)}; give one "
            "for each"
        )
    _check_range("token_type_ids", types_bt, cfg.token_types)
    return types_bt


def _check_range(name: str, values: np.ndarray, num: int) -> None:
    if values.min() < 0 or values.max() >= num:
        raise GenerationError(
            f"{name} reach from {values.min()} to {values.max()}; the model's are 0 to {num - 1}"
        )


def _integers(name: str, values: Any) -> np.ndarray:
    """As given, not narrowed: an id of 2^32 must not become 0."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise GenerationError(
            f"{name} has rows of unequal length; pad them and give an attention_mask"
        ) from error
    whole = np.issubdtype(array.dtype, np.integer) or array.dtype == bool
    if array.ndim != 2 or not array.size or not whole:
        raise GenerationError(
            f"{name} is {array.dtype} {list(array.shape)}; expected whole numbers [batch, tokens]"
        )
    return array
