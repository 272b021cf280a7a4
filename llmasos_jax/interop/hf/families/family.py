"""What a family of models is to a reader of other people's files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.tables import Table


@dataclass(frozen=True)
class Family:
    """A family as transformers has it.

    Attributes:
      name: the `architecture` of our `model.json`.
      model_type: in `config.json`.
      architectures: classes in transformers that are read whole: the first is taken where
        `config.json` names none.
      read_config: `config.json` -> our config; the caller finishes the keys.
      table: weight names, written for the first class.
      base_prefix: what names begin with in the first class and not in the base class ("model.").
      outside: beginnings of names that have no such prefix in the first class.
      renames: (beginning, what takes its place), the first that fits: other spellings of names.
      write_config: our manifest -> `config.json`, `read_config`'s inverse; None if models of ours
        are not written as this family. It says what it can: what reads back differently is found.
    """

    name: str
    model_type: str
    architectures: tuple[str, ...]
    read_config: Callable[[Keys], ModelConfig]
    table: Callable[[ModelConfig], Table]
    base_prefix: str = "model."
    outside: tuple[str, ...] = ("lm_head.",)
    renames: tuple[tuple[str, str], ...] = ()
    write_config: Callable[[Manifest], dict[str, Any]] | None = None

    def rename(self, names: list[str]) -> list[str]:
        """Names as the table spells them, in the same order."""
        spelled = [self._renamed(name) for name in names]
        inner = [name for name in spelled if not name.startswith(self.outside)]
        if any(name.startswith(self.base_prefix) for name in inner):
            return spelled
        return [n if n.startswith(self.outside) else self.base_prefix + n for n in spelled]

    def spelling(self, names: list[str], renamed: list[str]) -> Callable[[str], str]:
        """From the table's names to the file's; of tensors that are not there, to what it is like.

        Args:
          names: as the file has them.
          renamed: the same, as `rename` gives them.
        """
        known = dict(zip(renamed, names, strict=True))
        theirs, ours = next(
            (
                (name.removesuffix(shared), other.removesuffix(shared))
                for other, name in known.items()
                if other != name and not other.startswith(self.outside)
                for shared in [os.path.commonprefix([name[::-1], other[::-1]])[::-1]]
            ),
            ("", ""),
        )

        def spelled(name: str) -> str:
            if name in known or name.startswith(self.outside) or not name.startswith(ours):
                return known.get(name, name)
            return theirs + name.removeprefix(ours)

        return spelled

    def _renamed(self, name: str) -> str:
        for begin, other in self.renames:
            if name.startswith(begin):
                return other + name.removeprefix(begin)
        return name
