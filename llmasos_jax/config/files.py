"""Where files are: packaged configs and those of the user, which are run; and the cache folder."""

from __future__ import annotations

import importlib.util
import inspect
import linecache
import os
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmasos_jax.errors import ConfigError, LLMasOSError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent.parent
_SCHEMA = "; llmasos_jax/config/schema.py lists all fields"


def configs_folder() -> Path:
    """Where the packaged configs are: inside an installed package, beside it in a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def cache_folder() -> Path:
    """This program's folder in the user's cache folder, by the XDG Base Directory rules."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # A relative path there is invalid and to be ignored.
    if os.path.isabs(base):
        return Path(base) / "llmasos"
    try:
        return Path.home() / ".cache" / "llmasos"
    except RuntimeError as error:
        raise ConfigError(f"no cache folder ({error}); set XDG_CACHE_HOME to one") from error


def packaged_configs() -> list[str]:
    """Names that `--config=` takes without a path, sorted."""
    return sorted(p.stem for p in configs_folder().glob("*.py") if not p.stem.startswith("_"))


def find_config(source: str | os.PathLike[str]) -> tuple[Path, str]:
    """Returns the file and the variant of `name`, `path.py`, `path.py:variant` or `path.json`.

    Raises:
      ConfigError: no such file or packaged config.
    """
    text = os.fspath(source)
    if Path(text).is_file():
        return Path(text), ""
    # The variant is split from the file's name only: a folder may have a colon in it.
    head, tail = os.path.split(text)
    name, _, variant = tail.partition(":")
    if head or name.endswith((".py", ".json")):
        path = Path(head, name)
        if not path.is_file():
            raise ConfigError(f"{path}: no such config file; give a path, or one of {_names()}")
        return path, variant
    path = configs_folder() / f"{name}.py"
    if name not in packaged_configs():
        hint = did_you_mean(name, packaged_configs())
        raise ConfigError(f'no packaged config is named "{name}"{hint} (or give a path)')
    return path, variant


def run_config(path: Path, variant: str, *, hint: Callable[[str], str]) -> Any:
    """Returns what `get_config(variant)` of the file returns.

    Args:
      path: a Python file.
      variant: passed on if not empty.
      hint: gives `'; did you mean "x"?'` for a field name that the file got wrong.

    Raises:
      ConfigError: the file does not run; the message has its line.
    """
    module = UserFile(path, hint)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"{path} has no function get_config(variant=''); add it")
    if not variant:
        return module.call(get_config)
    if not inspect.signature(get_config).parameters:
        raise ConfigError(f'{path} takes no variant, got "{variant}"; leave ":{variant}" out')
    return module.call(get_config, variant)


class UserFile:
    """A Python file of the user's, run: its names are attributes.

    Args:
      path: of the file.
      hint: gives `'; did you mean "x"?'` for a field name that the file got wrong.

    Raises:
      ConfigError: the file does not run; the message has its line.
    """

    def __init__(self, path: Path, hint: Callable[[str], str]) -> None:
        self._path, self._hint = path, hint
        spec = importlib.util.spec_from_file_location(f"_llmasos_config_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{path} is not a Python file; a config file ends in .py")
        self._module = importlib.util.module_from_spec(spec)
        self.call(spec.loader.exec_module, self._module)

    @property
    def docstring(self) -> str:
        """What stands at its head."""
        return self._module.__doc__ or ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function of the file returns.

        Raises:
          ConfigError: it fails; the message has the file's line.
        """
        try:
            return function(*args)
        except LLMasOSError:
            raise
        except (Exception, SystemExit) as error:
            raise ConfigError(_where(self._path, error, self._hint)) from error


def _where(path: Path, error: BaseException, hint: Callable[[str], str]) -> str:
    """One line: file, line number, its text, and what is wrong with it."""
    file, frames = os.path.abspath(path), traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if os.path.abspath(f.filename) == file]
    number = lines[-1] if lines else getattr(error, "lineno", None)
    at = f"{path}:{number}" if number else str(path)
    linecache.checkcache(file)  # in a notebook the file changes between two calls
    text = linecache.getline(file, number).strip() if number else ""
    quoted = f" `{text}`" if text else ""
    # ml_collections answers an unknown field with a list of all of them; the first words will do.
    unknown = re.match(r"""["']*Key "(\w+)" does not exist""", str(error))
    if isinstance(error, AttributeError | KeyError) and unknown:
        return f'{at}{quoted}: config has no field "{unknown[1]}"{hint(unknown[1]) or _SCHEMA}'
    mistyped = re.search(r"field '(\w+)'.* type <class '(\w+)'>.* type <class '(\w+)'>", str(error))
    if isinstance(error, TypeError) and mistyped:
        return f"{at}{quoted}: {mistyped[1]} got a {mistyped[2]}; expected {mistyped[3]}"
    message = " ".join(str(error).split())
    return f"{at}{quoted}: {type(error).__name__}: {message}"


def _names() -> str:
    return ", ".join(packaged_configs())
