"""GGUF as a target of an export, proven in llama.cpp."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ExportError
from llmasos_jax.evals.export.llama import (
    LOG_PROBABILITIES,
    OpenedLlama,
    check_llama,
    rows_of,
)
from llmasos_jax.evals.export.ours import Outputs, log_softmax
from llmasos_jax.evals.export.questions import NEW_TOKENS
from llmasos_jax.evals.export.target import Target, Tick
from llmasos_jax.evals.parity.probe import Probe
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.interop.gguf.open import open_gguf
from llmasos_jax.interop.gguf.quantize import WRITTEN
from llmasos_jax.interop.gguf.write import check_gguf, type_named, write_gguf
from llmasos_jax.interop.gguf.write_config import config_differences, folded
from llmasos_jax.interop.written import Written
from llmasos_jax.models.answers import LOGITS

# As a share of the largest number of an output. Weights of another type than F32 are multiplied
# there with what goes in rounded to 16 bits, or to 8 for quantised types; that is no fault of the
# file, and is larger than what float32 sums in another order come to.
_BOUNDS = {"F32": 1e-4, "F16": 5e-3, "BF16": 3e-2}
_QUANTISED_BOUND = 6e-2
# llama.cpp looks GELU up in a table of float16.
_GELU_BOUND = 2e-3
_GELU = ("gelu", "gelu_tanh", "geglu", "geglu_tanh")


class Gguf(Target):
    """One file for llama.cpp; see `Target`."""

    name = "gguf"
    opens = "llama.cpp"
    packages: tuple[str, ...] = ("xllamacpp", "numpy")
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16", *WRITTEN)
    reads_types = False
    room = NEW_TOKENS
    unsaid: tuple[str, ...] = ("eos_ids", "stop")

    def check(self, files: ModelFiles, dtype: str | None) -> None:
        """Refuses what llama.cpp has no architecture for.

        Raises:
          FormatError: it has none; or the type is not written.
        """
        check_gguf(files, dtype)

    def check_runtime(self) -> None:
        """Raises MissingExtraError where xllamacpp is not installed."""
        check_llama()

    def write(self, files: ModelFiles, out: Path, dtype: str | None, on_tensor: Tick) -> Written:
        """Writes one file into an empty folder."""
        return write_gguf(files, out, dtype=dtype, on_tensor=on_tensor)

    def bound(self, files: ModelFiles, dtype: str | None) -> float:
        """By what llama.cpp rounds while it computes."""
        usual = _BOUNDS.get(type_named(dtype, files.tensors), _QUANTISED_BOUND)
        return max(usual, _GELU_BOUND) if files.manifest.parameters.mlp in _GELU else usual

    def said(self, files: ModelFiles) -> ModelFiles:
        """Rotary scaling in the words that GGUF has."""
        manifest = files.manifest.replace(parameters=folded(files.manifest.parameters))
        return dataclasses.replace(files, manifest=manifest)

    def shown(self, outputs: Outputs, probe: Probe) -> Outputs:
        """Of a decoder the probabilities after each row, of an encoder everything."""
        if LOGITS not in outputs:
            return outputs
        return {LOG_PROBABILITIES: _after_rows(outputs[LOGITS], probe)}

    def open(self, folder: Path, written: Written, cfg: ModelConfig) -> OpenedLlama:
        """Opens the file with our own reader, and then with llama.cpp.

        Raises:
          ExportError: the file says another network, or llama.cpp does not take it.
        """
        path = file_in(folder)
        files = open_gguf(path)
        apart = config_differences(files.manifest.parameters, folded(cfg))
        if apart:
            raise ExportError(
                f"what was written is not the model: {path.name} says {'; '.join(apart[:4])}; "
                "nothing was kept"
            )
        if files.tokenizer is None:
            why = next((note for note in written.notes if "tokenizer" in note), "it is gone")
            raise ExportError(
                f"llama.cpp runs no model without a tokenizer, and this file has none ({why}); say "
                "--unproven (unproven=True) to keep it"
            )
        return self.run(path, cfg)

    def run(self, path: Path, cfg: ModelConfig) -> OpenedLlama:
        """Opens a file with llama.cpp alone.

        Raises:
          ExportError: llama.cpp does not take it.
        """
        return OpenedLlama(path, cfg)

    def back(self, folder: Path) -> ModelFiles:
        """The file, as this package reads it."""
        return open_gguf(file_in(folder))

    def source(self, folder: Path) -> str | None:
        """The file, which `llmasos parity` reads."""
        return str(file_in(folder))


def file_in(folder: Path) -> Path:
    """The GGUF file of an export.

    Raises:
      ExportError: there is none, or there are several.
    """
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        raise ExportError(f"{folder} has {len(found)} GGUF files, expected one")
    return found[0]


def _after_rows(logits_btv: np.ndarray, probe: Probe) -> np.ndarray:
    last = [len(row) - 1 for row in rows_of(probe)]
    return log_softmax(logits_btv[np.arange(len(last)), last]).astype(np.float32)
