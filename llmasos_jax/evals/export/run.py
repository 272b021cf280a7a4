"""Writes an export beside its place, proves it, and only then puts it there."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax import __version__
from llmasos_jax.data.tokenizers.huggingface import FILE as TOKENIZER
from llmasos_jax.errors import ExportError, FormatError, did_you_mean
from llmasos_jax.evals.export.outputs import Compared, compare, our_outputs
from llmasos_jax.evals.export.theirs import import_both, their_outputs
from llmasos_jax.evals.export.tokens import compare_tokenizer
from llmasos_jax.evals.parity.probe import Probe, length_for, make_probes
from llmasos_jax.format import folder as folders
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.write import write_file
from llmasos_jax.hub.open import open_model
from llmasos_jax.interop.hf.write import write_huggingface
from llmasos_jax.interop.written import Written
from llmasos_jax.progress import Progress

TARGETS = ("hf", "gguf", "onnx", "stablehlo")
RECEIPT = "parity.json"
TOLERANCE = 1e-4  # float32, as a share of the largest number of an output
_PACKAGES = ("jax", "numpy", "torch", "transformers", "safetensors")


@dataclass(frozen=True)
class ExportResult:
    """What an export came to.

    Attributes:
      path: its folder.
      target: the format.
      saved_class: the class of the other program that opens it.
      proven: whether it was opened there and compared.
      difference: the largest, as a share of the largest number of an output; None if unproven.
      compared: each output.
      notes: what the folder does not have and why.
      num_tensors: tensors written.
      num_bytes: of them.
      seconds: how long it took.
    """

    path: Path
    target: str
    saved_class: str
    proven: bool
    difference: float | None
    compared: tuple[Compared, ...]
    notes: tuple[str, ...]
    num_tensors: int
    num_bytes: int
    seconds: float

    def __str__(self) -> str:
        lines = [
            f'"{self.path}": {self.saved_class}, {self.num_tensors} tensors, '
            f"{self.num_bytes / 1e6:,.1f} MB in {self.seconds:.1f} s"
        ]
        if self.proven:
            outputs = ", ".join(c.output for c in self.compared)
            lines.append(
                f"proven: {outputs} differ by {self.difference:.1e} of the largest at most "
                f"(bound {TOLERANCE:.0e}); {RECEIPT} says how"
            )
        else:
            lines.append("not proven: it was never opened by the program that it is for")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def export_model(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: str = "hf",
    step: int | None = None,
    allow_code: bool = False,
    revision: str | None = None,
    ignore: Sequence[str] = (),
    unproven: bool = False,
    seed: int = 0,
) -> ExportResult:
    """Writes a model in another program's format; see `llmasos_jax.api.export`."""
    start = time.monotonic()
    _check_target(to)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FormatError(f'"{out}" is there and not empty; name a new or empty folder')
    if not unproven:
        import_both()  # before gigabytes are written
    files = open_model(source, step, allow_code=allow_code, revision=revision, ignore=ignore)
    with folders.replaced_folder(out, set()) as temporary:
        total = sum(tensor.nbytes for tensor in files.tensors.values())
        with Progress("export", total, is_bytes=True) as progress:
            written = write_huggingface(
                files, temporary, on_tensor=lambda name, size: progress.advance(size, name)
            )
        probes: list[Probe] = []
        compared: tuple[Compared, ...] = ()
        num_texts = 0
        if not unproven:
            probes, compared = _prove(files, temporary, written, seed)
            num_texts = _prove_tokenizer(files, temporary)
        receipt = _receipt(files, temporary, written, to, probes, compared, num_texts, seed)
        text = json.dumps(receipt, indent=2, ensure_ascii=False) + "\n"
        write_file(temporary / RECEIPT, text.encode("utf-8"))
    return ExportResult(
        path=out,
        target=to,
        saved_class=written.saved_class,
        proven=not unproven,
        difference=max((c.difference for c in compared), default=None),
        compared=compared,
        notes=written.notes,
        num_tensors=written.num_tensors,
        num_bytes=written.num_bytes,
        seconds=time.monotonic() - start,
    )


def _check_target(to: str) -> None:
    if to not in TARGETS:
        raise FormatError(f'there is no target "{to}"{did_you_mean(to, TARGETS)}')
    if to != "hf":
        raise FormatError(f'to="{to}" is not in this version; known: hf (a Hugging Face folder)')


def _prove(
    files: ModelFiles, folder: Path, written: Written, seed: int
) -> tuple[list[Probe], tuple[Compared, ...]]:
    """Opens the folder where it is for, and compares every output.

    Raises:
      ExportError: they differ by more than the bound, or it does not open there.
    """
    cfg = files.manifest.parameters
    config = json.loads((folder / "config.json").read_bytes())
    pad = config.get("pad_token_id")
    avoid = () if pad is None or cfg.vocab_size < 2 else (pad,)
    probes = [
        Probe(np.where(p.mask_bt > 0, p.tokens_bt, pad or 0), p.mask_bt, p.types_bt)
        for p in make_probes(
            cfg.vocab_size, length_for([cfg], None), seed, avoid, token_types=cfg.token_types
        )
    ]
    theirs = their_outputs(folder, written.saved_class, cfg, probes)
    ours = our_outputs(files, probes)
    compared = compare(ours, theirs, probes, pads_count=cfg.encoder.num_layers > 0)
    worst = max(compared, key=lambda c: c.difference)
    if not worst.difference <= TOLERANCE:
        raise ExportError(
            f"what was written is not the model: {written.saved_class} gives {worst.output} that "
            f"differ by {worst.difference:.1e} of the largest, more than {TOLERANCE:.0e}; nothing "
            "was kept. `llmasos parity` says where two models part"
        )
    return probes, tuple(compared)


def _prove_tokenizer(files: ModelFiles, folder: Path) -> int:
    """How many texts were compared; 0 where the folder has no tokenizer."""
    if files.tokenizer is None or not (folder / TOKENIZER).is_file():
        return 0
    return compare_tokenizer(folder, files.tokenizer.load(), files.manifest.parameters)


def _receipt(
    files: ModelFiles,
    folder: Path,
    written: Written,
    to: str,
    probes: Sequence[Probe],
    compared: Sequence[Compared],
    num_texts: int,
    seed: int,
) -> dict[str, Any]:
    manifest = files.manifest
    return {
        "model": {
            "name": manifest.name,
            "version": manifest.version,
            "architecture": manifest.architecture,
            "weights": {file.file: file.sha256 for file in manifest.weights.files}
            if manifest.weights
            else None,
        },
        "target": to,
        "class": written.saved_class,
        "proven": bool(compared),
        "tolerance": TOLERANCE,
        "difference": max((c.difference for c in compared), default=None),
        "compared": [asdict(c) for c in compared],
        "texts": num_texts,
        "rows": [int(n) for probe in probes for n in probe.mask_bt.sum(1)],
        "seed": seed,
        "dtype": "float32",
        "platform": platform.machine(),
        "versions": {"python": platform.python_version(), **_versions()},
        "files": {
            path.relative_to(folder).as_posix(): _sha256(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
        "notes": list(written.notes),
    }


def _versions() -> dict[str, str]:
    found = {"llmasos_jax": __version__}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
