"""GGUF as a target of an export, proven in llama.cpp."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
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
from llmasos_jax.evals.export.ours import Compared, OurModel, Outputs, compare
from llmasos_jax.evals.export.proof import FIXED, NEW_TOKENS, Proof
from llmasos_jax.evals.export.target import Tick
from llmasos_jax.evals.export.weights import MismatchError, Read, compare_stored
from llmasos_jax.evals.parity.probe import Probe, length_for, make_probes
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.interop.gguf.open import open_gguf
from llmasos_jax.interop.gguf.quantize import WRITTEN
from llmasos_jax.interop.gguf.write import check_gguf, folded_tensors, type_named, write_gguf
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


class GgufTarget:
    """See `target.Target`."""

    name = "gguf"
    opens = "llama.cpp"
    packages: tuple[str, ...] = ("xllamacpp", "numpy")
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16", *WRITTEN[3:])

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

    def bound(self, dtype: str | None, cfg: ModelConfig | None = None) -> float:
        """What outputs may differ by; of a model with GELU more, if `cfg` is given."""
        kind = type_named(dtype or "float32", {})
        usual = _BOUNDS.get(kind, _QUANTISED_BOUND)
        return max(usual, _GELU_BOUND) if cfg is not None and cfg.mlp in _GELU else usual

    def open(self, folder: Path, written: Written, cfg: ModelConfig) -> OpenedLlama:
        """Opens the file with our own reader, and then with llama.cpp.

        Raises:
          ExportError: the file says another network, or llama.cpp does not take it.
        """
        path = file_in(folder)
        files = open_gguf(path)
        apart = config_differences(folded(cfg), files.manifest.parameters)
        if apart:
            raise ExportError(
                f"what was written is not the model: {path.name} says {'; '.join(apart[:4])}; "
                "nothing was kept"
            )
        return self.run(path, cfg, has_tokenizer=files.tokenizer is not None)

    def run(self, path: Path, cfg: ModelConfig, *, has_tokenizer: bool = True) -> OpenedLlama:
        """Opens a file with llama.cpp alone.

        Raises:
          ExportError: llama.cpp does not take it.
        """
        return OpenedLlama(path, cfg, has_tokenizer=has_tokenizer)

    def stored(self, folder: Path) -> Mapping[str, np.ndarray]:
        """Weights as the file holds them, by our names, read when asked for."""
        return Read(open_gguf(file_in(folder)).tensors)

    def source(self, folder: Path) -> str | None:
        """The file, which `llmasos parity` reads."""
        return str(file_in(folder))

    def prove(
        self,
        files: ModelFiles,
        folder: Path,
        written: Written,
        dtype: str | None,
        seed: int,
        *,
        new_tokens: int = NEW_TOKENS,
    ) -> Proof:
        """Compares weights, probabilities, greedy tokens and texts with llama.cpp's.

        llama.cpp runs what was written, and so does our own model, with the weights read back: what
        rounding them did is measured beside it, and cannot hide a fault.

        Args:
          files: the model.
          folder: the export.
          written: what `write` gave.
          dtype: as it was written.
          seed: of the random ids.
          new_tokens: after each of two prompts.

        Raises:
          ExportError: they differ, or llama.cpp does not take the file.
        """
        said = in_their_words(files)
        cfg, held = said.manifest.parameters, self.stored(folder)
        bound = self.bound(dtype or type_named(None, files.tensors), cfg)
        rounded = compare_stored(said, held, dtype, self.opens)
        probes = _probes(files, seed, new_tokens)
        ours = OurModel(cfg, held)
        own = ours.outputs(probes)
        with self.open(folder, written, cfg) as opened:
            compared = compare(_seen(own, probes), opened.outputs(probes), probes)
            _check(compared, bound)
            greedy = 0
            if LOGITS in own[0] and cfg.causal:
                for ids in (rows_of(probes[0])[1], rows_of(probes[-1])[0]):
                    greedy += _check_greedy(opened, ours, ids, new_tokens, probes[0], bound)
            texts = 0
            if files.tokenizer is not None:
                texts = opened.check_texts(files.tokenizer.load(), cfg)
        effect: Sequence[Compared] = ()
        if rounded.tensors:
            exact = OurModel(cfg, Read(said.tensors)).outputs(probes)
            effect = compare(_seen(exact, probes), _seen(own, probes), probes)
        lengths = tuple(int(n) for probe in probes for n in probe.mask_bt.sum(1))
        return Proof(tuple(compared), lengths, greedy, texts, rounded, tuple(effect))


def in_their_words(files: ModelFiles) -> ModelFiles:
    """The same network as GGUF says it: a norm's 1 + scale is its scale."""
    manifest = files.manifest.replace(parameters=folded(files.manifest.parameters))
    return dataclasses.replace(files, manifest=manifest, tensors=folded_tensors(files))


def file_in(folder: Path) -> Path:
    """The GGUF file of an export.

    Raises:
      ExportError: there is none, or there are several.
    """
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        raise ExportError(f"{folder} has {len(found)} GGUF files, expected one")
    return found[0]


def _probes(files: ModelFiles, seed: int, room: int) -> list[Probe]:
    """Rows of random ids of several lengths, and a fixed text; all of one shape where they fit."""
    cfg = files.manifest.parameters
    length = max(2, min(length_for([cfg], None), cfg.context_length - room))
    probes = make_probes(cfg.vocab_size, length, seed)
    ids = [] if files.tokenizer is None else files.tokenizer.load().encode(FIXED)
    ids = ids[: probes[0].tokens_bt.shape[1] - room]
    if ids:
        tokens_bt = np.zeros_like(probes[0].tokens_bt)
        mask_bt = np.zeros_like(tokens_bt)
        tokens_bt[:, : len(ids)], mask_bt[:, : len(ids)] = ids, 1
        probes.append(Probe(tokens_bt, mask_bt))
    return probes


def _seen(outputs: Sequence[Outputs], probes: Sequence[Probe]) -> list[Outputs]:
    """What llama.cpp shows of our outputs: of a decoder the probabilities after each row."""
    return [
        {LOG_PROBABILITIES: _after_rows(out[LOGITS], probe)} if LOGITS in out else out
        for out, probe in zip(outputs, probes, strict=True)
    ]


def _after_rows(logits_btv: np.ndarray, probe: Probe) -> np.ndarray:
    last = [len(row) - 1 for row in rows_of(probe)]
    return _log_softmax(logits_btv[np.arange(len(last)), last]).astype(np.float32)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True)


def _check(compared: Sequence[Compared], bound: float) -> None:
    worst = max(compared, key=lambda c: c.difference)
    if not worst.difference <= bound:
        raise MismatchError(
            f"what was written is not the model: llama.cpp gives {worst.output} that differ by "
            f"{worst.difference:.1e} of the largest, more than {bound:.0e}; nothing was kept. "
            "`llmasos parity` says where two models part"
        )


def _check_greedy(
    opened: OpenedLlama,
    ours: OurModel,
    start: Sequence[int],
    count: int,
    like: Probe,
    bound: float,
) -> int:
    """Each token through llama.cpp's cache is the likeliest here, but for the bound."""
    start = list(start)[: max(1, like.tokens_bt.shape[1] - count)]
    count = min(count, like.tokens_bt.shape[1] - len(start))
    found = opened.greedy(start, count)
    scores_nv = _log_softmax(ours.scores(start, found, like))
    for step, (token, scores_v) in enumerate(zip(found, scores_nv, strict=True)):
        if scores_v.max() - scores_v[token] > 2 * bound * float(np.abs(scores_v).max()):
            raise MismatchError(
                f"what was written is not the model: greedy token {step + 1} after {len(start)} "
                f"ids is {token} in llama.cpp, through its cache, and {int(scores_v.argmax())} here"
            )
    return count
