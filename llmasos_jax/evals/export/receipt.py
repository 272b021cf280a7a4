"""The receipt of an export: what was compared with what, and what came out."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmasos_jax import __version__
from llmasos_jax.evals.export.proof import Proof, Second
from llmasos_jax.evals.export.target import Target
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.write import write_file
from llmasos_jax.interop.written import Written

RECEIPT = "parity.json"
_PACKAGES = ("jax", "numpy")


def write_receipt(
    folder: Path,
    target: Target,
    files: ModelFiles,
    written: Written,
    dtype: str | None,
    proof: Proof | None,
    seed: int,
) -> None:
    """Writes `parity.json` beside the files that it names with their hashes."""
    manifest = files.manifest
    weights = manifest.weights
    receipt = {
        "model": {
            "name": manifest.name,
            "version": manifest.version,
            "architecture": manifest.architecture,
            "weights": {f.file: f.sha256 for f in weights.files} if weights else None,
        },
        "target": target.name,
        "class": written.saved_class,
        "dtype": dtype or _own_dtype(files),
        "proven": proof is not None,
        "tolerance": target.bound(files, dtype),
        **_found(proof),
        "seed": seed,
        "platform": platform.machine(),
        "versions": {
            "python": platform.python_version(),
            "llmasos_jax": __version__,
            **_versions((*_PACKAGES, *target.packages)),
        },
        "files": {
            path.relative_to(folder).as_posix(): _sha256(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
        "notes": list(written.notes),
    }
    text = json.dumps(receipt, indent=2, ensure_ascii=False) + "\n"
    write_file(folder / RECEIPT, text.encode("utf-8"))


def _found(proof: Proof | None) -> dict[str, Any]:
    if proof is None:
        return {"difference": None, "compared": []}
    second = proof.second
    return {
        "difference": proof.difference,
        "compared": [asdict(c) for c in proof.compared],
        "rows": list(proof.rows),
        "greedy": proof.greedy,
        "texts": proof.texts,
        "rounded": asdict(proof.rounded),
        "effect_of_rounding": [asdict(c) for c in proof.effect],
        **({} if second is None else {"second": _second(second)}),
    }


def _second(found: Second) -> dict[str, Any]:
    proven = found.why is None
    said = {"program": found.program, "proven": proven, "seconds": round(found.seconds, 1)}
    if not proven:
        return {**said, "why": found.why}
    compared = [asdict(c) for c in found.compared]
    return {**said, "difference": found.difference, "compared": compared, "greedy": found.greedy}


def _own_dtype(files: ModelFiles) -> str:
    return ", ".join(sorted({tensor.dtype for tensor in files.tensors.values()}))


def _versions(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
