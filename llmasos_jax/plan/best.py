"""The best config of a search as a file: it starts from the given one and sets what differs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llmasos_jax.config.build import fields_of, load_config
from llmasos_jax.config.files import find_config
from llmasos_jax.config.schema import Config


def write_best(source: str, best: Config, text: str, folder: Path) -> Path:
    """Writes `best.py`, which loads to `best`.

    Args:
      source: what `--config` was: a path or the name of a packaged config.
      best: of the search.
      text: how it differs, for the file's first line.
      folder: where to.

    Returns:
      The file.

    Raises:
      OSError: it cannot be written.
    """
    path, variant = find_config(source)
    if os.path.dirname(source) or path.name == source or source.endswith(".json"):
        source = f"{path.resolve()}:{variant}" if variant else str(path.resolve())
    base = dict(fields_of(load_config(source)))
    lines = [
        f"    config.{name} = {_literal(value)}"
        for name, value in fields_of(best)
        if value != base[name]
    ]
    page = [
        f'"""{best.name}, as `llmasos plan --search` found it: {text}."""',
        "",
        "from ml_collections import ConfigDict",
        "",
        "from llmasos_jax.config.build import read_config",
        "",
        "",
        "def get_config() -> ConfigDict:",
        '    """The config that it began with, and what was found."""',
        f"    config = read_config({_literal(source)})",
        *lines,
        "    return config",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "best.py"
    file.write_text("\n".join(page) + "\n", encoding="utf-8")
    return file


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
    return repr(value)
