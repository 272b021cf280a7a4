"""Exports of LoRA runs to PEFT folders, opened and run by PEFT on the base in transformers."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from llmasos_jax.checkpoint import steps
from llmasos_jax.checkpoint.stored import StoredState
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ExportError, FormatError, HubError, MissingExtraError
from llmasos_jax.evals.export.hftokens import import_both
from llmasos_jax.evals.export.huggingface import OpenedFolder
from llmasos_jax.evals.export.ours import Compared, OurModel, compare
from llmasos_jax.evals.export.proof import Proof
from llmasos_jax.evals.export.target import Opened, Target, Tick
from llmasos_jax.evals.export.weights import Read, Rounded
from llmasos_jax.evals.parity.probe import Probe
from llmasos_jax.format.names import expected
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.hub.finetuned import Finetuned, open_finetuned
from llmasos_jax.hub.open import open_model
from llmasos_jax.hub.resolve import read_name
from llmasos_jax.interop.hf.open import CONFIG
from llmasos_jax.interop.hf.peftwrite import Changed, said_by, write_peft
from llmasos_jax.interop.hf.write import write_huggingface
from llmasos_jax.interop.written import Written

_ROWS, _LENGTH = 2, 24


class Peft(Target):
    """An adapter for PEFT; see `Target`."""

    name = "peft"
    opens = "peft"
    packages: tuple[str, ...] = ("torch", "transformers", "peft", "safetensors")
    dtypes: tuple[str, ...] = ("float32",)

    def check(self, files: ModelFiles, dtype: str | None) -> None:
        """Refuses what is no LoRA run, or is of no class of transformers."""
        run = _run_of(files)
        said_by(run.files.manifest)

    def check_runtime(self) -> None:
        """Imports torch and transformers, and looks for peft."""
        import_both()
        if importlib.util.find_spec("peft") is None:
            raise MissingExtraError(
                "an adapter is opened with peft to prove it, and that is not installed; pip "
                "install 'llmasos-jax[parity]', or say --unproven (unproven=True)"
            )

    def write(self, files: ModelFiles, out: Path, dtype: str | None, on_tensor: Tick) -> Written:
        """Writes the folder."""
        run = _run_of(files)
        changed, quantize = _changed(run), run.config.finetune.quantize
        written = write_peft(changed, out, on_tensor=on_tensor)
        notes = list(written.notes)
        if quantize is not None:
            notes.append(
                f"it was trained beside the base in {quantize}; the base itself gives others"
            )
        if os.path.isabs(changed.base) and not Path(changed.base, CONFIG).is_file():
            notes.append(
                "PEFT opens no base of this kind: give it what `llmasos export BASE --to=hf` writes"
            )
        return dataclasses.replace(written, notes=tuple(notes))

    def bound(self, files: ModelFiles, dtype: str | None) -> float:
        """Both compute in float32."""
        return 1e-4

    def open(self, folder: Path, written: Written, cfg: ModelConfig) -> Opened:
        """Nothing: `own_proof` opens it on its base."""
        raise ExportError(f"{folder} is an adapter, which is opened on its base alone")

    def own_proof(
        self, files: ModelFiles, folder: Path, written: Written, seed: int
    ) -> Proof | None:
        """PEFT's outputs on the base in transformers, and ours of the folder read back."""
        run, back = _run_of(files), open_model(folder)
        cfg, start_id = back.manifest.parameters, back.manifest.generation.decoder_start_id
        length = min(_LENGTH, cfg.context_length)
        tokens = np.random.default_rng(seed).integers(0, cfg.vocab_size, (_ROWS, length))
        mask = np.ones((_ROWS, length), np.int32)
        mask[-1, length // 2 :] = 0
        probe = Probe((tokens * mask).astype(np.int32), mask)
        ours = OurModel(cfg, Read(back.tensors), start_id).outputs([probe])
        if run.config.finetune.quantize is None:
            merged = OurModel(files.manifest.parameters, Read(files.tensors), start_id)
            self._check(compare(ours, merged.outputs([probe]), [probe]), files, "read back here")
        with tempfile.TemporaryDirectory() as name:
            unchanged, saved_class = _unchanged(run)
            write_huggingface(unchanged, Path(name))
            opened = _OpenedAdapter(Path(name), saved_class, unchanged.manifest.parameters, folder)
            theirs = opened.outputs([probe])
        compared = compare(ours, theirs, [probe])
        self._check(compared, files, "in peft")
        lengths = tuple(int(n) for n in mask.sum(1))
        return Proof(tuple(compared), lengths, 0, 0, Rounded(0, 0.0, None), ())

    def _check(self, compared: Sequence[Compared], files: ModelFiles, where: str) -> None:
        worst = max(compared, key=lambda c: c.difference)
        if not worst.difference <= self.bound(files, None):
            raise ExportError(
                f"{where} the adapter gives other {worst.output}, by {worst.difference:.1e} of the "
                "largest; nothing was kept"
            )

    def back(self, folder: Path) -> ModelFiles:
        """As this package reads the folder."""
        return open_model(folder)

    def source(self, folder: Path) -> str | None:
        """What `llmasos parity` reads."""
        return str(folder)


class _OpenedAdapter(OpenedFolder):
    """The base in transformers with the adapter beside it, as PEFT runs it."""

    def __init__(self, base: Path, saved_class: str, cfg: ModelConfig, adapter: Path) -> None:
        super().__init__(base, saved_class, cfg)
        import peft

        try:
            opened = peft.PeftModel.from_pretrained(self._model, adapter)
        except Exception as error:  # whatever it says, the export is not what it should be
            line = " ".join(str(error).split())[:300]
            raise ExportError(f"peft does not open what was written: {line}") from error
        self._model = opened.eval()


def _run_of(files: ModelFiles) -> Finetuned:
    """The LoRA run that an opened model came from.

    Raises:
      FormatError: it came from none.
    """
    is_run = steps.is_step_folder(files.path)
    method = files.manifest.metadata.get("finetune", {}).get("method") if is_run else None
    if method != "lora":
        what = f'a run of finetune.method="{method}"' if method else "no fine-tuning run"
        raise FormatError(
            f'"{files.path}" is {what}, and PEFT folders hold the adapter of a LoRA run; give one, '
            "or write the whole model (--to hf)"
        )
    # Whoever opened the files said whether it may run code, and compared the base.
    return open_finetuned(StoredState(files.path), allow_code=True, is_checked=True)


def _changed(run: Finetuned) -> Changed:
    finetune = run.config.finetune
    name, revision = _base_of(str(finetune.base))
    changes = {n: change for n in run.files.tensors if (change := run.change(n)) is not None}
    return Changed(
        manifest=run.files.manifest,
        changes=changes,
        tensors=run.files.tensors,
        base=name,
        revision=revision,
        rank=finetune.rank,
        alpha=finetune.alpha,
        rank_stabilized=finetune.rank_stabilized,
        dora=finetune.dora,
    )


def _base_of(source: str) -> tuple[str, str | None]:
    """What PEFT opens a base by: a repository on the hub, or an absolute path."""
    try:
        named = read_name(source)
    except (FormatError, HubError):  # it was here when the run was opened
        named = None
    if named is None:
        return os.path.abspath(source), None
    return named.repo, named.revision


def _unchanged(run: Finetuned) -> tuple[ModelFiles, str]:
    """The run's model with the base's weights, and its class: what PEFT puts an adapter on."""
    found, cfg = said_by(run.files.manifest)

    tensors: dict[str, StoredTensor] = {}
    for name in expected(cfg):
        there = run.replaced(name) or run.base.tensors.get(name)
        if there is None:
            raise ExportError(f"neither the run nor its base has {name}")
        tensors[name] = there
    files = dataclasses.replace(
        run.files,
        manifest=run.files.manifest.replace(parameters=cfg),
        tensors=MappingProxyType(tensors),
        tokenizer=None,
    )
    return files, found.saved_class
