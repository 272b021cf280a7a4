"""Says what is inside a model, a training folder or a checkpoint. Reads headers, no weights."""

from __future__ import annotations

import argparse
import math
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from llmasos_jax.cli.options import add_allow_code, add_json, print_fields, print_json
from llmasos_jax.errors import FormatError


@dataclass(frozen=True)
class Contents:
    """What `inspect` answers.

    Attributes:
      kind: "model" or "checkpoint".
      path: where it was found.
      name: of the model or the run.
      architecture, version: of a model.
      step: of a checkpoint, in optimizer steps.
      parameters: numbers in the model's tensors.
      tokenizer: its kind.
      config: the fields that are not at their defaults.
      tensors: name -> dtype and shape; None for a model.json without weights.
    """

    kind: str
    path: str
    name: str
    parameters: int
    config: dict[str, Any]
    tensors: dict[str, str] | None
    architecture: str | None = None
    version: str | None = None
    step: int | None = None
    tokenizer: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos inspect`."""
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="a model, a training folder or a checkpoint"
    )
    add_allow_code(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Looks, and prints what was found."""
    found = look(args.path, allow_code=args.allow_code)
    if args.json:
        print_json(asdict(found))
    else:
        print_fields(found)


def look(path: Path, *, allow_code: bool = False) -> Contents:
    """Finds out what stands at `path`.

    Args:
      path: a model, a training folder or a checkpoint.
      allow_code: whether a model's parts may be called "package.module:name", which imports it.

    Raises:
      FormatError: nothing that this program reads.
      CheckpointError: a checkpoint, but a damaged one.
    """
    from llmasos_jax.checkpoint import steps

    if path.suffix == ".json" or (path / "model.json").is_file():
        return _model(path, allow_code)
    if steps.is_step_folder(path) or steps.all_steps(path) or (path / steps.FOLDER).is_dir():
        return _checkpoint(steps.find_step(path))
    raise FormatError(
        f'"{path}" is neither a model (a folder with a model.json), nor a training folder, nor a '
        "checkpoint" + ("" if path.exists() else "; there is nothing at all")
    )


def _model(path: Path, allow_code: bool) -> Contents:
    from llmasos_jax.format.folder import find_manifest
    from llmasos_jax.format.read import read_manifest, read_model, weight_files
    from llmasos_jax.models.count import count_parameters

    manifest = read_manifest(path, allow_code=allow_code)
    # A model.json may come without weights; it is worth a look all the same.
    has_weights = bool(weight_files(find_manifest(path).parent, manifest))
    files = read_model(path, allow_code=allow_code) if has_weights else None
    return Contents(
        kind="model",
        path=str(path),
        name=manifest.name,
        architecture=manifest.architecture,
        version=manifest.version,
        parameters=files.num_parameters if files else count_parameters(manifest.parameters),
        tokenizer=str(manifest.tokenizer["kind"]) if manifest.tokenizer else None,
        config=_changed(manifest.parameters),
        tensors={name: str(tensor) for name, tensor in files.tensors.items()} if files else None,
    )


def _checkpoint(step_folder: Path) -> Contents:
    from llmasos_jax.checkpoint import steps
    from llmasos_jax.checkpoint.stored import read_leaves
    from llmasos_jax.config.build import from_dict

    config = from_dict(steps.read_json(step_folder, steps.CONFIG))
    leaves = read_leaves(step_folder)
    return Contents(
        kind="checkpoint",
        path=str(step_folder),
        name=config.name,
        step=int(step_folder.name),
        parameters=sum(
            math.prod(leaf.shape) for name, leaf in leaves.items() if name.startswith("params/")
        ),
        tokenizer=config.tokenizer.kind,
        config=_changed(config),
        tensors={name: str(leaf) for name, leaf in leaves.items()},
    )


def _changed(config: Any) -> dict[str, Any]:
    """The fields of a config that are not at their defaults."""
    changed: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if value == default:
            continue
        if is_dataclass(value):
            changed |= {f"{field.name}.{k}": v for k, v in _changed(value).items()}
        else:
            changed[field.name] = list(value) if isinstance(value, tuple) else value
    return changed
