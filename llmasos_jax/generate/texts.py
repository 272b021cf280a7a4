"""Texts that a model reads whole: checked, encoded, and sorted into few compiled shapes.

length    16, 32, ..., 128, 160, 192, ...     padded on the right to quarter steps
rows      1, 2, 4, ..., 32                     fewer for long texts: at most 8,192 tokens
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.inputs import cut_ids, read_ids
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import GenerationError
from llmasos_jax.generate.session import power_of_two, quarter_steps

MAX_ROWS = 32
MAX_TOKENS = 8192


@dataclass(frozen=True)
class Input:
    """What a model reads of one text or of a pair: ids, and the type of each."""

    ids: list[int]
    types: list[int]


@dataclass(frozen=True)
class Rows:
    """Texts of about one length, padded to a compiled shape.

    Attributes:
      indices: which text each row is; rows beyond are dummies.
      tokens_bt, mask_bt: int32 [B, T]; the mask is 1 for tokens.
      types_bt: int32 [B, T], or None for a model without token types.
    """

    indices: list[int]
    tokens_bt: np.ndarray
    mask_bt: np.ndarray
    types_bt: np.ndarray | None

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Tokens, mask and types."""
        return self.tokens_bt, self.mask_bt, self.types_bt


def read_texts(name: str, value: Any) -> list[str]:
    """One text or a list of them, as a list.

    Raises:
      GenerationError: neither, or the list is empty.
    """
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)):
        raise GenerationError(f"{name} is a {type(value).__name__}; give a text, or a list of them")
    if not texts:
        raise GenerationError(f"{name} is an empty list; give at least one text")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise GenerationError(f"{name}[{i}] is a {type(text).__name__}; give a text")
    return list(texts)


def make_inputs(
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    truncate: bool | None = None,
) -> list[Input]:
    """Encodes texts, or pairs of them.

    Args:
      cfg: the model.
      tokenizer: its tokenizer.
      texts: the texts, or the first ones of pairs.
      pairs: the second ones.
      truncate: whether what is too long is cut; the special ids at its end stay. None does not,
        for callers that never cut.

    Raises:
      GenerationError: a text has no tokens, or more than the model's context holds.
    """
    seconds = [None] * len(texts) if pairs is None else pairs
    inputs, most = [], cfg.context_length
    for i, (text, second) in enumerate(zip(texts, seconds, strict=True)):
        ids, types = read_ids(cfg, tokenizer, text, second)
        if not ids:
            raise GenerationError(f"text {i} ({text!r}) has no tokens; give at least one character")
        if len(ids) > most:
            if not truncate:
                hint = "shorten it" if truncate is None else "shorten it, or cut it: truncate=True"
                raise GenerationError(
                    f"text {i} has {len(ids)} tokens; the model's context holds {most}: {hint}"
                )
            ids, types = cut_ids(tokenizer, ids, types, most)
        # Models with one row of types or none have no other type.
        inputs.append(Input(ids, types if cfg.token_types > 1 else [0] * len(ids)))
    return inputs


def buckets(cfg: ModelConfig, inputs: Sequence[Input]) -> Iterator[Rows]:
    """Batches of texts of about one length, the shortest first; each text is in one of them."""
    by_width: dict[int, list[int]] = {}
    for i in sorted(range(len(inputs)), key=lambda i: len(inputs[i].ids)):
        by_width.setdefault(quarter_steps(len(inputs[i].ids)), []).append(i)
    for width, members in by_width.items():
        most = max(1, min(MAX_ROWS, MAX_TOKENS // width))
        for start in range(0, len(members), most):
            yield _rows(cfg, inputs, members[start : start + most], width)


def _rows(cfg: ModelConfig, inputs: Sequence[Input], indices: list[int], width: int) -> Rows:
    shape = (power_of_two(len(indices)), width)
    tokens_bt, mask_bt, types_bt = (np.zeros(shape, np.int32) for _ in range(3))
    mask_bt[:, 0] = 1  # a dummy row is one token long
    for row, i in enumerate(indices):
        length = len(inputs[i].ids)
        tokens_bt[row, :length], types_bt[row, :length] = inputs[i].ids, inputs[i].types
        mask_bt[row, :length] = 1
    return Rows(indices, tokens_bt, mask_bt, types_bt if cfg.token_types else None)
