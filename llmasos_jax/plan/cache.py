"""Figures of programs that were compiled before: nothing is traced or compiled twice."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmasos_jax.config.build import to_dict
from llmasos_jax.config.files import cache_folder
from llmasos_jax.config.schema import Config
from llmasos_jax.plan.chips import Topology
from llmasos_jax.plan.figures import Figures, from_json, to_json

_PACKAGE = Path(__file__).resolve().parent.parent
# What the step is made of; the rest of the package may change without a new program.
_SOURCES = ("config", "parallel", "data", "nn", "models", "train", "errors.py", "types.py")
_SOURCES += ("plan/hlo", "plan/compile.py", "plan/kernels.py", "plan/figures.py", "plan/pod.py")
_SOURCES += ("plan/chips.py", "plan/memory_report.py")
_NOT_IN_THE_STEP = ("name", "checkpoint", "sample", "hosts", "tokenizer")


def cache_key(cfg: Config, topology: Topology) -> str:
    """Names a program: its config, its devices, this package's source, the compiler's version."""
    values = {n: v for n, v in to_dict(cfg).items() if n not in _NOT_IN_THE_STEP}
    told = {
        "config": values,
        "topology": str(topology),
        "versions": _versions(),
        "flags": os.environ.get("LIBTPU_INIT_ARGS"),
        "source": _source_hash(),
        "parts": [hashlib.sha256(path.read_bytes()).hexdigest() for path in _own_parts(values)],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def load_figures(key: str) -> Figures | None:
    """What `save_figures` kept; None if there is none. A damaged file is said and left out."""
    path = _path(key)
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        print(
            f"note: {path} is no plan ({type(error).__name__}); it is made again", file=sys.stderr
        )
        return None


def save_figures(key: str, figures: Figures) -> None:
    """Keeps figures under a key, in one step. A folder that cannot be written to is said."""
    path = _path(key)
    part = path.with_name(f"{key}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(path.parent)
        part.write_text(json.dumps(to_json(figures)), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        print(f"note: the plan is not kept for the next call ({error})", file=sys.stderr)
    finally:
        with contextlib.suppress(OSError):  # it has its name, or was never there
            part.unlink()


def _remove_left_over(folder: Path) -> None:
    """Takes away what processes left that were killed while they wrote."""
    for part in folder.glob("*.part"):
        with contextlib.suppress(OSError):  # another process was faster
            if time.time() - part.stat().st_mtime > 60:
                part.unlink()


def _path(key: str) -> Path:
    return cache_folder() / "plan" / f"{key}.json"


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in ("jax", "jaxlib", "libtpu", "flax", "optax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


@functools.cache
def _source_hash() -> str:
    digest = hashlib.sha256()
    for name in _SOURCES:
        root = _PACKAGE / name
        for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
            digest.update(path.relative_to(_PACKAGE).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _own_parts(values: Any) -> Iterator[Path]:
    """Files of parts that a config names as "package.module:name"."""
    if isinstance(values, dict):
        for value in values.values():
            yield from _own_parts(value)
    elif isinstance(values, list):
        for value in values:
            yield from _own_parts(value)
    elif isinstance(values, str) and ":" in values:
        module = values.partition(":")[0]
        if all(part.isidentifier() for part in module.split(".")):
            try:
                spec = importlib.util.find_spec(module)
            except (ImportError, ValueError):
                spec = None
            if spec is not None and spec.origin and Path(spec.origin).is_file():
                yield Path(spec.origin)
