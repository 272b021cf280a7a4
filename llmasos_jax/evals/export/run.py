"""Writes an export beside its place, proves it, and only then puts it there."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmasos_jax.errors import FormatError
from llmasos_jax.evals.export.proof import Proof, prove
from llmasos_jax.evals.export.receipt import RECEIPT, write_receipt
from llmasos_jax.evals.export.target import Target
from llmasos_jax.evals.export.targets import target_of
from llmasos_jax.format import folder as folders
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.hub.open import open_model
from llmasos_jax.progress import Progress, Steps


@dataclass(frozen=True)
class ExportResult:
    """What an export came to.

    Attributes:
      path: its folder.
      target: the format.
      saved_class: what opens it there.
      proof: what was compared, and what it came to; None if it was not opened there.
      bound: the largest difference that is a match, as a share of an output's largest number.
      notes: what the folder does not have and why.
      num_tensors: tensors written.
      num_bytes: of them.
      seconds: how long it took.
    """

    path: Path
    target: str
    saved_class: str
    proof: Proof | None
    bound: float
    notes: tuple[str, ...]
    num_tensors: int
    num_bytes: int
    seconds: float

    @property
    def proven(self) -> bool:
        """Whether it was opened there and compared."""
        return self.proof is not None

    @property
    def difference(self) -> float | None:
        """The largest, as a share of the largest number of an output; None if unproven."""
        return None if self.proof is None else self.proof.difference

    def __str__(self) -> str:
        lines = [
            f'"{self.path}": {self.saved_class}, {self.num_tensors} tensors, '
            f"{self.num_bytes / 1e6:,.1f} MB in {self.seconds:.1f} s"
        ]
        if self.proof is None:
            lines.append("not proven: it was never opened by the program that it is for")
        else:
            lines += _proven(self.proof, self.bound)
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _proven(proof: Proof, bound: float) -> list[str]:
    outputs = ", ".join(c.output for c in proof.compared)
    lines = [
        f"proven: {outputs} differ by {proof.difference:.1e} of the largest at most "
        f"(bound {bound:.0e}); {RECEIPT} says how"
    ]
    if proof.greedy:
        lines.append(f"{proof.greedy} greedy tokens through its cache are the likeliest here")
    if (second := proof.second) is not None:
        outcome = (
            f"proven in {second.program} too: they differ by {second.difference:.1e} at most"
            if second.why is None
            else f"not proven in {second.program}: {second.why}"
        )
        lines.append(outcome)
    if proof.effect:
        worst = max(c.difference for c in proof.effect)
        lines.append(
            f"rounding moved {proof.rounded.tensors} tensors by up to {proof.rounded.worst:.1e} of "
            f"themselves, and outputs by {worst:.1e} of the largest"
        )
    return lines


def export_model(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: str = "hf",
    **options: Any,
) -> ExportResult:
    """Writes a model in another program's format; see `llmasos_jax.api.export`."""
    (result,) = export_models(source, {to: Path(out)}, **options)
    return result


def export_models(
    source: str | os.PathLike[str],
    outs: Mapping[str, Path],
    *,
    dtype: str | None = None,
    step: int | None = None,
    allow_code: bool = False,
    revision: str | None = None,
    ignore: Sequence[str] = (),
    unproven: bool = False,
    seed: int = 0,
    iree: bool = True,
) -> Iterator[ExportResult]:
    """Writes a model in several formats, one after the other; gives each that is in its place.

    What can be seen to be wrong with any of them is looked for before the first is written: proofs
    take a while.

    Args:
      source: the model.
      outs: a new or empty folder for each target.
      dtype: of the weights; see `llmasos_jax.api.export`, also for the rest.
      step: which checkpoint.
      allow_code: whether the model may name code.
      revision: on the hub.
      ignore: what of a foreign model may get lost.
      unproven: keeps them without a proof.
      seed: of the ids.
      iree: whether programs of StableHLO are tried in IREE too.
    """
    targets = {name: target_of(name, dtype) for name in outs}
    if seed < 0:
        raise FormatError(f"seed={seed} is not possible; give 0 or more")
    for name, out in outs.items():
        _check_place(out)
        if not unproven:
            targets[name].check_runtime()
    files = open_model(source, step, allow_code=allow_code, revision=revision, ignore=ignore)
    for target in targets.values():
        target.check(files, dtype)
    for name, out in outs.items():
        yield _export(targets[name], files, out, dtype, unproven, seed, iree)


def _check_place(out: Path) -> None:
    """Refuses a place that no new folder can have.

    Raises:
      FormatError: it is taken, or its name cannot be one.
    """
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FormatError(f'"{out}" is there and not empty; name a new or empty folder')
        file = next((parent for parent in out.parents if parent.is_file()), None)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise FormatError(f"{str(out)!r} cannot be a folder: {reason}; name another") from error
    if file is not None:
        raise FormatError(f'"{out}" cannot be a folder: "{file}" is a file; name another')


def _export(
    target: Target,
    files: ModelFiles,
    out: Path,
    dtype: str | None,
    unproven: bool,
    seed: int,
    iree: bool,
) -> ExportResult:
    start = time.monotonic()
    with folders.replaced_folder(out, set()) as temporary:
        total = sum(tensor.nbytes for tensor in files.tensors.values())
        with Progress(f"export {target.name}", total, is_bytes=True) as progress:
            written = target.write(
                files, temporary, dtype, lambda name, size: progress.advance(size, name)
            )
        proof = None
        if not unproven:
            with Steps(f"prove {target.name}") as steps:
                proof = target.own_proof(files, temporary, written, seed) or prove(
                    *(target, files, temporary, written, dtype, seed),
                    **{"second": iree, "on_step": steps.begin},
                )
        write_receipt(temporary, target, files, written, dtype, proof, seed)
    return ExportResult(
        path=out,
        target=target.name,
        saved_class=written.saved_class,
        proof=proof,
        bound=target.bound(files, dtype),
        notes=written.notes,
        num_tensors=written.num_tensors,
        num_bytes=written.num_bytes,
        seconds=time.monotonic() - start,
    )
