"""Rows of conversations with what is learned of them in colour, or between marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from rich.console import Console

    from llmasos_jax.data.batch import Batch
    from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
    from llmasos_jax.data.tokenizers.vocabulary import Vocabulary

NAMES = {"sft": "example {}", "distill": "example {}", "dpo": ("chosen", "rejected")}
LEGEND = "between ⟦ and ⟧ stands what is scored; all before it is read"
_LEARNED, _REJECTED, _READ = "bold green", "bold red", ""
_SPECIAL, _NAME = "bright_black", "bold"


@dataclass(frozen=True)
class Piece:
    """Text that is learned, or that is only read.

    Attributes:
      text: special tokens are written out in it.
      is_learned: whether the model is to write it.
      is_special: whether it is one special token.
    """

    text: str
    is_learned: bool
    is_special: bool = False


@dataclass(frozen=True)
class Part:
    """One example of a row.

    Attributes:
      name: what it is called.
      tokens: how many it has.
      learned: how many of them are learned.
      pieces: its text.
    """

    name: str
    tokens: int
    learned: int
    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        """Its text with marks around what is learned.

        Example:
          >>> Part("", 3, 2, (Piece("Hi ", False), Piece("you", True), Piece("<end>", True))).text
          'Hi ⟦you<end>⟧'
        """
        marked = "".join(f"⟦{p.text}⟧" if p.is_learned else p.text for p in self.pieces)
        return marked.replace("⟧⟦", "")


def parts_of(
    batch: Batch, index: int, tokenizer: Tokenizer, vocabulary: Vocabulary, objective: str
) -> list[Part]:
    """The examples of row `index` of a batch of "sft", "distill" or "dpo"."""
    segments, tokens = batch.segment_ids[index], batch.tokens[index]
    is_learned = np.concatenate([[False], batch.loss_weights[index][:-1] > 0])
    names = NAMES[objective]
    found = []
    for segment in range(1, int(segments.max(initial=0)) + 1):
        here = segments == segment
        name = names.format(segment) if isinstance(names, str) else names[segment - 1]
        pieces = _pieces(tokens[here], is_learned[here], tokenizer, vocabulary)
        found.append(Part(name, int(here.sum()), int(is_learned[here].sum()), pieces))
    return found


def _pieces(
    tokens: np.ndarray, is_learned: np.ndarray, tokenizer: Tokenizer, vocabulary: Vocabulary
) -> tuple[Piece, ...]:
    special = set(vocabulary.special_ids)
    token = getattr(tokenizer, "token", lambda number: None)
    found: list[Piece] = []
    before: list[int] = []  # since the last special token: what a text looks like depends on it
    run: list[int] = []

    def flush(learned: bool) -> None:
        if run:
            text = tokenizer.decode(before + run)[len(tokenizer.decode(before)) :]
            found.append(Piece(text, learned))
            before.extend(run)
            run.clear()

    state = False
    for number, learned in zip(tokens.tolist(), is_learned.tolist(), strict=True):
        if learned != state or number in special:
            flush(state)
        state = learned
        if number in special:
            found.append(Piece(token(number) or _name(number, vocabulary), learned, True))
            before.clear()
        else:
            run.append(number)
    flush(state)
    return tuple(found)


def _name(number: int, vocabulary: Vocabulary) -> str:
    names = {vocabulary.cls_id: "<bos>", vocabulary.sep_id: "<eos>"}
    return names.get(number, f"<special {number}>")


def print_parts(number: int, parts: Sequence[Part], console: Console) -> None:
    """Prints a row in colour.

    Args:
      number: of the row.
      parts: its examples.
      console: where to.
    """
    from rich.text import Text

    learned = sum(part.learned for part in parts)
    console.print()
    console.print(Text(f"row {number}: {counted(sum(p.tokens for p in parts), learned)}"))
    for place, part in enumerate(parts):
        if place:
            console.print()
        said = f"  {counted(part.tokens, part.learned)}"
        console.print(Text.assemble("  ", (part.name, _NAME), (said, _SPECIAL)))
        text = Text()
        for piece in part.pieces:
            text.append(piece.text, _style(piece, part))
        text.rstrip()
        for line in text.wrap(console, max(20, console.width - 4)):
            console.print(Text.assemble(("  │ ", _SPECIAL), line))


def legend_in_colour(parts: Sequence[Part], console: Console) -> None:
    """Says what the colours of a row mean."""
    from rich.text import Text

    said = [("green", _LEARNED), " is learned, "]
    if any(part.name == "rejected" for part in parts):
        said = [("green", _LEARNED), " becomes likelier than ", ("red", _REJECTED), ", "]
    console.print()
    console.print(
        Text.assemble(*said, "all else is read; special tokens in it are ", ("grey", _SPECIAL))
    )


def counted(tokens: int, learned: int) -> str:
    """How many tokens there are.

    Example:
      >>> counted(12, 3)
      '12 tokens, 3 scored'
    """
    return f"{tokens:,} tokens, {learned:,} scored"


def _style(piece: Piece, part: Part) -> str:
    if piece.is_learned:
        return _REJECTED if part.name == "rejected" else _LEARNED
    return _SPECIAL if piece.is_special else _READ
