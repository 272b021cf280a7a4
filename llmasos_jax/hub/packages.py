"""Models that an installed Python package carries. The package's code is never run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from llmasos_jax.errors import HubError
from llmasos_jax.hub.library import PackagedModel
from llmasos_jax.hub.verify import sha256_of


def find_package(package: PackagedModel) -> Path | None:
    """Where an installed package keeps the model; None if it is not installed.

    Finds files, and imports nothing.
    """
    try:
        spec = importlib.util.find_spec(package.module)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    for folder in spec.submodule_search_locations or ():
        if (Path(folder) / package.weights).is_file():
            return Path(folder) / package.path
    return None


def open_package(package: PackagedModel) -> Path | None:
    """The same, its weights checked against the hash that the library names.

    Raises:
      HubError: the weights are others.
    """
    path = find_package(package)
    if path is None:
        return None
    weights = path.parent / package.weights if package.path == package.weights else None
    weights = weights or path / Path(package.weights).relative_to(package.path)
    found = sha256_of(weights)
    if found != package.sha256:
        raise HubError(
            f'"{weights}" of the package {package.distribution} {_version(package)} has sha256 '
            f"{found[:16]}..., expected {package.sha256[:16]}... (version {package.version}); "
            f"reinstall it: {package.install} --force-reinstall"
        )
    return path


def _version(package: PackagedModel) -> str:
    try:
        return importlib.metadata.version(package.distribution)
    except importlib.metadata.PackageNotFoundError:
        return "(version unknown)"
