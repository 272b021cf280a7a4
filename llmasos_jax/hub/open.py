"""A name or a path -> a model on this disk, of whatever kind, opened."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

from llmasos_jax.checkpoint import steps
from llmasos_jax.errors import FormatError, HubError
from llmasos_jax.format.folder import INDEX, MANIFEST, WEIGHTS
from llmasos_jax.format.read import ModelFiles, read_model
from llmasos_jax.hub.finetuned import open_run
from llmasos_jax.hub.resolve import resolve
from llmasos_jax.interop.lowrank import PEFT_CONFIG

_HF_CONFIG = "config.json"
_GGUF = b"GGUF"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".onnx")
_ONNX, _ONNX_DATA = ("model.onnx", "encoder_model.onnx", "decoder_model.onnx"), "model.onnx.data"


def open_model(
    source: str | os.PathLike[str],
    step: int | None = None,
    *,
    allow_code: bool = False,
    revision: str | None = None,
    ignore: Sequence[str] = (),
) -> ModelFiles:
    """Opens whatever holds a model, and reads no tensor. A path that is there wins over a name.

    Args:
      source: a `model.json` or its folder; a training folder, its `checkpoints`, or a step folder;
        a Hugging Face folder; a PEFT folder, which is merged into its base; a .gguf file, or a
        folder with one; an export to ONNX of ours; a name in the library, or "org/name" on the
        Hugging Face hub, which is downloaded once.
      step: of a training run; None takes the newest.
      allow_code: whether parts may be called "package.module:name", which imports that module. Off
        by default: opening a model runs no code.
      revision: a branch, tag or commit of a name on the hub.
      ignore: keys of a `config.json` and tensors of foreign files that may get lost.

    Raises:
      FormatError: it is none of these, or not right.
      CheckpointError: a training run has no checkpoint, or a damaged one.
      HubError: a name that is not known, or whose files cannot be had.
    """
    path = resolve(source, revision)
    kind = kind_of(path)
    check_ignore(source, kind, ignore)
    if kind == "training":
        return open_run(path, step, allow_code=allow_code)
    if step is not None:
        raise FormatError(f'"{source}" is a model, which has no steps; leave out step={step}')
    if kind == "huggingface":
        from llmasos_jax.interop.hf import open_hf

        return _called(source, open_hf(path.parent if path.is_file() else path, ignore=ignore))
    if kind == "peft":
        return _open_peft(path if path.is_dir() else path.parent, allow_code, ignore)
    if kind == "gguf":
        from llmasos_jax.interop.gguf import open_gguf

        return _called(source, open_gguf(_gguf_file(path), ignore=ignore))
    if kind == "onnx":
        from llmasos_jax.interop.onnx import open_onnx

        return open_onnx(path)
    return read_model(path, allow_code=allow_code)


def _open_peft(folder: Path, allow_code: bool, ignore: Sequence[str]) -> ModelFiles:
    """An adapter's folder, merged into the model that it names: beside it, else from here."""
    from llmasos_jax.interop.hf.peft import open_peft
    from llmasos_jax.interop.hf.peftconfig import read_peft_config

    config = read_peft_config(folder)
    beside = folder / config.base
    source = str(beside) if beside.exists() else config.base
    try:
        path = resolve(source, None if os.path.lexists(source) else config.revision)
        kind = kind_of(path)
        if kind in ("peft", "training"):
            raise FormatError("it is an adapter or a run itself; convert it to a model first")
        base = open_model(path, allow_code=allow_code, ignore=ignore)
    except (FormatError, HubError) as error:
        raise FormatError(
            f'"{folder}" is an adapter of "{config.base}", which cannot be opened ({error}); put '
            f"that model there, or correct base_model_name_or_path in its {PEFT_CONFIG}"
        ) from error
    return open_peft(folder, config, base)


def check_ignore(source: str | os.PathLike[str], kind: str, ignore: Sequence[str]) -> None:
    """Refuses to leave out parts of what LLMasOS wrote itself.

    Args:
      source: what the user asked for, for the message.
      kind: of it, from `kind_of`.
      ignore: what may get lost.

    Raises:
      FormatError: something may, of an LLMasOS model or training run.
    """
    own = {
        "llmasos": "an LLMasOS model",
        "training": "a training run of LLMasOS",
        "onnx": "an export of LLMasOS to ONNX",
    }
    if ignore and (what := own.get(kind)):
        raise FormatError(
            f'ignore={list(ignore)!r} is for what other programs wrote; "{source}" is {what}, of '
            "which everything is read; leave it out"
        )


def _called(source: str | os.PathLike[str], files: ModelFiles) -> ModelFiles:
    """A model that was asked for by name keeps it: a cache's folders are called by commits."""
    if os.path.lexists(source):
        return files
    name = os.fspath(source).partition("@")[0]
    return dataclasses.replace(files, manifest=files.manifest.replace(name=name))


_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")


def kind_of(path: Path) -> str:
    """What stands at a path: "llmasos", "training", "huggingface", "peft", "gguf", "onnx".

    Raises:
      FormatError: none of these; the message names what is there.
    """
    if path.is_dir():
        return _kind_of_folder(path)
    if path.suffix.lower() == ".gguf" or _begins_with(path, _GGUF):
        return "gguf"
    if path.name == PEFT_CONFIG:
        return "peft"
    if path.name == _HF_CONFIG and not (path.parent / MANIFEST).exists():
        return "huggingface"
    if path.name in _ONNX:
        return "onnx"
    if path.suffix in _WEIGHTS:
        raise FormatError(f'"{path}" is a file of weights; give the folder that it is in')
    return "llmasos"


def _kind_of_folder(path: Path) -> str:
    # The link may be broken: then the reader says what is wrong with it.
    if os.path.lexists(path / MANIFEST):
        return "llmasos"
    has_config = (path / _HF_CONFIG).is_file()
    # First, since other programs too keep "checkpoints" beside what they have made.
    if has_config and any(os.path.lexists(path / name) for name in (WEIGHTS, INDEX)):
        return "huggingface"
    if (path / PEFT_CONFIG).is_file():
        return "peft"
    if _is_training(path):
        return "training"
    # With a config.json too, for programs that go by it.
    if any((path / name).is_file() for name in _ONNX) and (path / _ONNX_DATA).is_file():
        return "onnx"
    if has_config:
        return "huggingface"
    if len(_ggufs(path)) == 1:
        return "gguf"
    raise FormatError(
        f'"{path}" holds no model: expected a {MANIFEST}, a {_HF_CONFIG} with safetensors, one '
        f'.gguf file, {_ONNX_DATA} with its graph, or the "{steps.FOLDER}" folder of a training '
        f"run; {_found(path)}"
    )


def _is_training(path: Path) -> bool:
    named = (path / steps.FOLDER).is_dir() or path.name == steps.FOLDER
    return named or steps.is_step_folder(path) or bool(steps.all_steps(path))


def _ggufs(path: Path) -> list[Path]:
    """The .gguf files of a folder; of a model in parts the first, which finds the others."""
    found = (p for p in path.iterdir() if p.suffix.lower() == ".gguf" and p.is_file())
    return sorted(p for p in found if not _LATER_PART.search(p.name))


def _gguf_file(path: Path) -> Path:
    return _ggufs(path)[0] if path.is_dir() else path


def _begins_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False  # whoever reads it says why


def _found(path: Path) -> str:
    ggufs = _ggufs(path)
    if ggufs:
        return f"it has {len(ggufs)} .gguf files, give one: {', '.join(p.name for p in ggufs[:5])}"
    names = sorted(p.name for p in path.iterdir())
    if not names:
        return "it is empty"
    more = "" if len(names) <= 5 else f" and {len(names) - 5} more"
    return f"it has {', '.join(names[:5])}{more}"
