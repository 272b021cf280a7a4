"""What the user calls a model -> where its files are: a path, an installed package, or the hub."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmasos_jax.errors import FormatError, HubError
from llmasos_jax.hub.huggingface import Hub
from llmasos_jax.hub.library import LIBRARY, LibraryModel, PackagedModel, find
from llmasos_jax.hub.packages import find_package, open_package
from llmasos_jax.hub.trouble import UnreachableError

_PART = r"[A-Za-z0-9][\w.-]*"
_REPO = re.compile(rf"({_PART}/{_PART})(?:/(.+\.gguf))?")
_FILES = (".json", ".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Named:
    """A model that is called by a name.

    Attributes:
      repo: on the Hugging Face hub.
      model: its row in the library, or None.
      revision: a branch, tag or commit, or None.
      file: the .gguf file that was chosen, or None.
    """

    repo: str
    model: LibraryModel | None = None
    revision: str | None = None
    file: str | None = None

    @property
    def may_be_packaged(self) -> bool:
        """Whether an installed package may answer; not for a revision, which is the hub's."""
        return self.model is not None and self.model.package is not None and not self.revision


def resolve(
    source: str | os.PathLike[str], revision: str | None = None, *, hub: Hub | None = None
) -> Path:
    """Where a model's files are; downloads what is not here.

    In this order: a path that is there; a name that an installed package carries; the hub.

    Args:
      source: a path, a name in the library, or "org/name" on the Hugging Face hub; a name may end
        in "@revision", and "org/name/FILE.gguf" picks one file.
      revision: a branch, tag or commit on the hub; None is the newest.
      hub: which hub; None is the Hugging Face hub as its environment variables say.

    Raises:
      HubError: there is no such name, or it cannot be downloaded.
      FormatError: `source` is a path that is not there.
    """
    named = read_name(source, revision)
    if named is None:
        return Path(source)
    if named.may_be_packaged and (path := open_package(_package(named))):
        return path
    with no_path_either(source, named):
        return (hub or Hub()).fetch(named.repo, named.revision, named.file)


@contextlib.contextmanager
def no_path_either(source: str | os.PathLike[str], named: Named) -> Iterator[None]:
    """Says of an "org/name" that nobody could look up that it is no path: it may be meant as one.

    Raises:
      UnreachableError: the hub does not answer.
    """
    try:
        yield
    except UnreachableError as error:
        if named.model is not None:
            raise
        raise UnreachableError(f'"{os.fspath(source)}" is no path here, and {error}') from error


def here(named: Named, *, hub: Hub | None = None) -> tuple[str, Path] | None:
    """Where a named model lies on this disk: ("package" or "cached", path), or None."""
    if named.may_be_packaged and (path := find_package(_package(named))):
        return "package", path
    path = (hub or Hub()).cached(named.repo, named.revision, named.file)
    return None if path is None else ("cached", path)


def read_name(source: str | os.PathLike[str], revision: str | None = None) -> Named | None:
    """The name that `source` is, or None if it is a path that is there: a path always wins.

    Raises:
      HubError: it is neither.
      FormatError: it can only be a path, and is not there.

    Example:
      >>> read_name("org/name@v1")
      Named(repo='org/name', model=None, revision='v1', file=None)
    """
    text = os.fspath(source)
    if os.path.lexists(source):
        if revision is not None:
            raise HubError(f'"{text}" is a path, which has no revisions; leave out "{revision}"')
        return None
    name, at, asked = text.partition("@")
    if at and revision is not None and revision != asked:
        raise HubError(f'"{text}" and revision="{revision}" differ; give one of them')
    revision = asked if at else revision
    if not isinstance(source, str) or not name or (at and not asked):
        raise _not_there(text)
    model = find(name)
    if model is not None:
        return Named(model.repo, model, revision)
    match = _REPO.fullmatch(name)
    if match and not name.endswith(_FILES):
        return Named(match[1], None, revision, match[2])
    if "/" in name or os.sep in name or name.startswith((".", "~")) or name.endswith(_FILES):
        raise _not_there(text)
    raise HubError(_unknown(name))


def _package(named: Named) -> PackagedModel:
    if named.model is None or named.model.package is None:
        raise HubError(f"{named.repo} is in no package")
    return named.model.package


def _not_there(text: str) -> FormatError:
    return FormatError(
        f'"{text}" is not there; give a model.json, the folder that has one, a Hugging Face '
        "folder, a .gguf file, a training folder or one step of its checkpoints, or a name "
        "(`llmasos models` lists them)"
    )


def _unknown(name: str) -> str:
    from llmasos_jax.models import zoo

    if zoo.find(name) is not None:
        return (
            f'"{name}" has no public weights; init_model("{name}") gives its shape random ones, '
            "and `llmasos models` lists the names that have some"
        )
    known = dict.fromkeys([*LIBRARY, *zoo.names()])  # many are in both
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6)
    hint = "; did you mean " + " or ".join(f'"{n}"' for n in near) + "?" if near else ""
    return (
        f'"{name}" is not there, and no name in the library{hint or ";"} `llmasos models` lists '
        "the names, and org/name is any repository on the Hugging Face hub"
    )
