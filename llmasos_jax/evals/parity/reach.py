"""What differs between two models and was not met by what was run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.evals.parity.sides import Side, read_leaves
from llmasos_jax.evals.parity.weights import LeafDifference

_HEADS = ("pooler.", "next_sentence.", "classifier.")


def unreached(
    one: Side, two: Side, options: Sequence[str], weights: Sequence[LeafDifference], length: int
) -> list[str]:
    """Options and weights that differ where no id, position or length that was run meets them.

    Args:
      one: a model.
      two: the other.
      options: those that differ, `"name: a -> b"`.
      weights: those that differ.
      length: tokens in the longest row.
    """
    a, b = one.config, two.config
    if a is None or b is None:
        return []
    # What reads the last hidden state, and is run by whoever asks for it.
    dead = {"context_length", "pooling", "pooler", "next_sentence"}
    dead |= {"classifier.labels", "classifier.level"}
    if a.token_types != b.token_types:
        dead.add("token_types")
    if not _windows_bite(a, b, length):
        dead.add("attention_windows")
    if length <= long_from((a, b)):
        dead |= {"rope_scaling.long_factors", "rope_scaling.original_length"}
    if a.vocab_size != b.vocab_size and not _pads_only(one, two):
        dead.add("vocab_size")
    found = [text for text in options if text.split(":")[0] in dead]
    found += [leaf.name for leaf in weights if leaf.name.startswith(_HEADS)]
    if any(leaf.name == "embed.positions" for leaf in weights) and _rows_past(one, two, length):
        found.append(f"embed.positions: rows from {length} on")
    return found


def long_from(configs: Sequence[ModelConfig | None]) -> int:
    """The tokens of a row past which LongRoPE divides by its long factors; 0 without LongRoPE."""
    scalings = [cfg.rope_scaling for cfg in configs if cfg is not None]
    return max((s.original_length or 0 for s in scalings if s.kind == "longrope"), default=0)


def _windows_bite(a: ModelConfig, b: ModelConfig, length: int) -> bool:
    """Whether each layer whose windows differ has a window that hides something in the rows."""
    for layer in range(a.num_layers):
        windows = a.layer_window(layer), b.layer_window(layer)
        known = [window for window in windows if window is not None]
        if windows[0] != windows[1] and min(known) >= length:
            return False
    return True


def _pads_only(one: Side, two: Side) -> bool:
    """Whether the rows that only one table has are all alike: they pad, and are no ids."""
    if one.files is None or two.files is None:
        return False
    files = (one.files, two.files)
    tables = [read_leaves(each.tensors, "embed")["table"] for each in files]
    short, long = sorted(tables, key=len)
    more = long[len(short) :]
    return not len(more) or bool((more == more[:1]).all())


def _rows_past(one: Side, two: Side, length: int) -> bool:
    if one.files is None or two.files is None:
        return False
    x, y = (
        read_leaves(side.files.tensors, "embed").get("positions", np.zeros((0, 0)))
        for side in (one, two)
        if side.files
    )
    rows = min(len(x), len(y))
    return not np.array_equal(x[length:rows], y[length:rows])
