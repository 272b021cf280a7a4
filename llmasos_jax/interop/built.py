"""Tokenizers that are made of another program's files, not read from ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from llmasos_jax.data.tokenizers.tokenizer import Tokenizer


class BuiltTokenizer:
    """A `format.tokenizerfiles.TokenizerFiles` whose tokenizer is made when it is first needed.

    Args:
      make: gives the tokenizer; raises only `TokenizerError` and `FormatError`.

    Example:
      >>> from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
      >>> BuiltTokenizer(ByteTokenizer).load().encode("a")
      [256, 97]
    """

    def __init__(self, make: Callable[[], Tokenizer]) -> None:
        self._make = make

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return self._make()

    def load(self, *, allow_code: bool = False) -> Tokenizer:
        """Makes the tokenizer; it runs no code of the model's, whatever `allow_code` is."""
        return self._tokenizer

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes its file into `folder` and returns the `tokenizer` entry of `model.json`."""
        return self._tokenizer.save(folder)
