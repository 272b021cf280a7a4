"""A GGUF model in several files: NAME-00001-of-00003.gguf and its siblings.

The first part has the metadata; the others have tensors, and say which part they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmasos_jax.errors import FormatError
from llmasos_jax.format.strict import shown
from llmasos_jax.interop.gguf.container import Container, TensorInfo, read_container

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
_MOST_PARTS = 1024


@dataclass(frozen=True)
class Whole:
    """A model of one file or several.

    Attributes:
      path: the file that was named.
      stem: the model's name, as far as files tell it.
      metadata: of the first file.
      tensors: name -> the file that has it, and the place there.
    """

    path: Path
    stem: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, tuple[Path, TensorInfo]]


def read_whole(path: Path) -> Whole:
    """Reads the header of a file, and of its siblings if it is the first of several.

    Raises:
      FormatError: a file is damaged or absent, or parts do not belong together.
    """
    first = read_container(path)
    count = first.metadata.get("split.count", 1)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= _MOST_PARTS:
        raise FormatError(
            f"{path.name}: split.count = {shown(count)} must be a number up to {_MOST_PARTS}"
        )
    if count <= 1:
        return Whole(path, path.stem, first.metadata, {n: (path, t) for n, t in _all(first)})
    named = _NAME.fullmatch(path.name)
    if named is None or int(named["count"]) != count:
        raise FormatError(
            f"{path.name} is one of {count} parts, which are found by their names; call it "
            f"NAME-00001-of-{count:05}.gguf again, beside the others"
        )
    stem = named["stem"]
    if first.metadata.get("split.no") != 0 or int(named["number"]) != 1:
        raise FormatError(
            f"{path.name} is not the first of its {count} parts; name "
            f'"{stem}-00001-of-{count:05}.gguf"'
        )
    tensors = {name: (path, tensor) for name, tensor in _all(first)}
    for number in range(1, count):
        _add_part(tensors, path.with_name(f"{stem}-{number + 1:05}-of-{count:05}.gguf"), number)
    wanted = first.metadata.get("split.tensors.count", len(tensors))
    if wanted != len(tensors):
        raise FormatError(
            f"the {count} parts of {stem} have {len(tensors)} tensors, split.tensors.count says "
            f"{shown(wanted)}; they do not belong together"
        )
    return Whole(path, stem, first.metadata, tensors)


def _all(container: Container) -> list[tuple[str, TensorInfo]]:
    return list(container.tensors.items())


def _add_part(tensors: dict[str, tuple[Path, TensorInfo]], path: Path, number: int) -> None:
    part = read_container(path)
    if part.metadata.get("split.no") != number:
        raise FormatError(
            f"{path.name} says that it is part {shown(part.metadata.get('split.no'))}, counted "
            f"from 0, not {number}; it does not belong here"
        )
    for name, tensor in part.tensors.items():
        if name in tensors:
            raise FormatError(
                f"{shown(name)} is in {tensors[name][0].name} and in {path.name}; once is right"
            )
        tensors[name] = (path, tensor)
