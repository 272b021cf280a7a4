"""A GGUF file's metadata, read key by key, and a note of which keys were read.

A key that nothing reads may change what the model computes, so what is left over is an error,
unless it is known to change nothing.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from llmasos_jax.errors import FormatError, did_you_mean
from llmasos_jax.format.strict import shown

_LOG = logging.getLogger(__name__)
_MOST = 2**31
# What begins a key that this library alone writes; other programs pass over it.
OURS = "llmasos."
# Keys that change nothing in what the model computes, and why. "ARCH" stands for the architecture.
INERT = {
    "general.*": "says where the model comes from; what matters of it is read by name",
    "tokenizer.*": "the tokenizer's own",
    "quantize.*": "how the numbers were rounded; the tensors say to what",
    "split.*": "which part of several files this is",
    "ARCH.vocab_size": "the rows of the embedding table say it",
    "ARCH.pooling_type": "how other programs make one vector of a text",
    "ARCH.tensor_data_layout": "a remark of the converter, which no program reads",
    "ARCH.rope.scaling.finetuned": "whether the model was trained further with the scaling",
}


class Keys:
    """Reads the keys of one architecture.

    Args:
      metadata: of the file.
      where: the file, for messages.

    Raises:
      FormatError: there is no "general.architecture".
    """

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        self._metadata, self._where = metadata, where
        self._used: set[str] = set()
        self.arch: str = ""
        self.arch = self._read("general.architecture", str, None, "a text")

    def error(self, text: str) -> FormatError:
        """A FormatError that names the file."""
        return FormatError(f"{self._where}: {text}")

    def ours(self) -> dict[str, Any]:
        """The keys that this library alone writes, by whole key; who asks has to know each."""
        found = {k: v for k, v in self._metadata.items() if k.startswith(OURS)}
        self._used |= found.keys()
        return found

    def has(self, name: str) -> bool:
        """Whether the architecture's key is there."""
        return f"{self.arch}.{name}" in self._metadata

    def integer(
        self, name: str, default: int | None = None, *, least: int = 1, most: int = _MOST
    ) -> int:
        """The architecture's key, a whole number; one that each layer repeats is one.

        Raises:
          FormatError: it is absent and has no default, or is no such number, or layers differ.
        """
        key = f"{self.arch}.{name}"
        value = self._metadata.get(key)
        if isinstance(value, np.ndarray):
            self._used.add(key)
            different = np.unique(value)
            if len(different) != 1:
                raise self.error(
                    f"{key} differs between layers ({shown(different.tolist())}), which is not read"
                )
            value = different[0].item()
        else:
            value = self._read(key, int, default, "a whole number")
        if not isinstance(value, int) or not least <= value <= most:
            raise self.error(f"{key} = {shown(value)} must be a whole number, {least} to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """The architecture's key, a number; the nearest short decimal of a float32.

        Raises:
          FormatError: it is absent and has no default, or is no finite number.
        """
        key = f"{self.arch}.{name}"
        value = self._read(key, (int, float), default, "a number")
        if not np.isfinite(value) or abs(value) > 1e30:
            raise self.error(f"{key} = {shown(value)} must be a finite number")
        # Files hold float32: 1e-5 reads as 9.999999747378752e-06.
        single = np.float32(value)
        return float(str(single)) if float(single) == value else float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """The architecture's key, true or false.

        Raises:
          FormatError: it is absent and has no default, or is neither.
        """
        return self._read(f"{self.arch}.{name}", bool, default, "true or false")

    def text(self, name: str, default: str | None = None) -> str:
        """The architecture's key, a text.

        Raises:
          FormatError: it is absent and has no default, or is no text.
        """
        return self._read(f"{self.arch}.{name}", str, default, "a text")

    def flags_or_period(self, name: str, default: int, count: int) -> tuple[bool, ...]:
        """One flag for each of `count` layers: given so, or as a period, the last of each false.

        Raises:
          FormatError: it is neither.
        """
        key = f"{self.arch}.{name}"
        value = self._metadata.get(key, default)
        self._used.add(key)
        if isinstance(value, np.ndarray) and len(value) == count:
            return tuple(bool(flag) for flag in value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST:
            return tuple(layer % value < value - 1 for layer in range(count))
        raise self.error(f"{key} = {shown(value)} must be a period or {count} flags")

    def must_be(self, name: str, *allowed: Any, why: str) -> None:
        """Refuses the key unless it is absent or has one of these values.

        Raises:
          FormatError: it has another.
        """
        key = f"{self.arch}.{name}"
        self._used.add(key)
        value = self._metadata.get(key, allowed[0])
        if isinstance(value, np.ndarray) or value not in allowed:
            known = " or ".join(repr(v) for v in allowed)
            raise self.error(f"{key} = {shown(value)}; only {known} is read: {why}")

    def check_all_read(self, ignore: Iterable[str] = ()) -> None:
        """Refuses what nothing has read.

        Args:
          ignore: keys that the caller accepts to lose; "*" stands for anything.

        Raises:
          FormatError: naming each key that is neither read nor known to change nothing.
        """
        inert = [pattern.replace("ARCH", self.arch) for pattern in INERT]
        accepted = tuple(ignore)
        left = []
        for key in self._metadata:
            if key in self._used or _matches(key, inert):
                continue
            if _matches(key, accepted):
                _LOG.warning("%s = %s is left out, as asked", key, shown(self._metadata[key]))
                continue
            left.append(key)
        if left:
            values = "; ".join(f"{shown(k)} = {shown(self._metadata[k])}" for k in left[:8])
            near = did_you_mean(left[0], self._used) if len(left) == 1 else ""
            near = near if "did you mean" in near else ""
            raise self.error(
                f"{len(left)} keys are not known for {shown(self.arch)} and may change what the "
                f"model computes: {values}{near}; ignore=(name,) accepts to lose one"
            )

    def _read(self, key: str, kind: Any, default: Any, what: str) -> Any:
        self._used.add(key)
        value = self._metadata.get(key, default)
        if value is None:
            near = did_you_mean(key, list(self._metadata)[:200])
            near = near if "did you mean" in near else ""
            raise self.error(f"the key {key} is missing; it must be {what}{near}")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(f"{key} = {shown(value)} must be {what}")
        return value


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)
