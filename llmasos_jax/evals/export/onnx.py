"""Exports to ONNX, opened and run by onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.huggingface import FILE as TOKENIZER
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import ExportError, MissingExtraError
from llmasos_jax.evals.export.ours import Outputs
from llmasos_jax.evals.export.target import Opened, Target, Tick
from llmasos_jax.evals.export.texts import compare_texts
from llmasos_jax.evals.parity.probe import Probe
from llmasos_jax.format.cast import cast
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.tensorfile import CODES
from llmasos_jax.interop.onnx import open_onnx, write_onnx
from llmasos_jax.interop.onnx.check import check_onnx, is_decoder
from llmasos_jax.interop.onnx.library import import_onnx
from llmasos_jax.interop.onnx.model import (
    DECODER_MODEL,
    ENCODER_MODEL,
    MODEL,
    output_names,
    past_names,
    uses_positions,
)
from llmasos_jax.interop.written import Written
from llmasos_jax.models.answers import HIDDEN, LOGITS

BOUND = 1e-4
_AHEAD = 4  # tokens of a prompt that go through the cache one by one


def import_runtime() -> Any:
    """The onnxruntime package.

    Raises:
      MissingExtraError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            f"an export to ONNX is opened with onnxruntime to prove it ({error}); "
            "pip install 'llmasos-jax[export]', or say --unproven (unproven=True)"
        ) from error
    return onnxruntime


class Onnx(Target):
    """Graphs for onnxruntime; see `Target`."""

    name = "onnx"
    opens = "onnxruntime"
    packages: tuple[str, ...] = ("onnx", "onnxruntime")
    dtypes: tuple[str, ...] = tuple(CODES)

    def check(self, files: ModelFiles, dtype: str | None) -> None:
        """Refuses options that a graph cannot say."""
        import_onnx()
        check_onnx(files.manifest.parameters)

    def check_runtime(self) -> None:
        """Imports onnx and onnxruntime."""
        import_onnx()
        import_runtime()

    def write(self, files: ModelFiles, out: Path, dtype: str | None, on_tensor: Tick) -> Written:
        """Writes the folder; weights are rounded to `dtype`, and the graph computes in float32."""
        rounded = files if dtype is None else cast(files, dtype)
        return write_onnx(rounded, out, on_tensor=on_tensor)

    def bound(self, files: ModelFiles, dtype: str | None) -> float:
        """Both compute in float32, whatever the weights are stored as."""
        return BOUND

    def open(self, folder: Path, written: Written, cfg: ModelConfig) -> OpenedGraphs:
        """Opens its graphs on the CPU."""
        return OpenedGraphs(folder, cfg)

    def back(self, folder: Path) -> ModelFiles:
        """As this package reads the folder."""
        return open_onnx(folder)

    def source(self, folder: Path) -> str | None:
        """The folder, which reads back."""
        return str(folder)


class OpenedGraphs(Opened):
    """An export in onnxruntime; see `Opened`.

    Raises:
      ExportError: onnxruntime does not open it.
      MissingExtraError: onnxruntime is not installed.
    """

    pad_id: int | None = None
    bound = BOUND  # of its own ways with each other

    def __init__(self, folder: Path, cfg: ModelConfig) -> None:
        self._folder, self._cfg = folder, cfg
        self._is_pair = cfg.encoder.num_layers > 0
        self._has_cache = is_decoder(cfg)
        names = (ENCODER_MODEL, DECODER_MODEL) if self._is_pair else (MODEL,)
        self._sessions = {name: _session(folder / name) for name in names}
        if self._is_pair:
            start = open_onnx(folder).manifest.generation.decoder_start_id
            self._start_id = 0 if start is None else start

    def outputs(self, probes: Sequence[Probe]) -> list[Outputs]:
        """Runs each probe at once; a decoder's also padded on the left, and its end by its cache.

        Raises:
          ExportError: the ways differ by more than rounding.
        """
        found = []
        for probe in probes:
            tokens, mask = (np.asarray(x, np.int64) for x in (probe.tokens_bt, probe.mask_bt))
            if self._is_pair:
                state = self._encode(tokens, mask)
                found.append({LOGITS: self._decode(state, tokens[:, ::-1])[0]})
                self._check_steps(state, tokens[:, ::-1], found[-1][LOGITS])
            elif self._has_cache:
                whole, _ = self._step(tokens, mask, None)
                self._check_left(tokens, mask, whole)
                found.append({LOGITS: whole})
            else:
                found.append(self._read(tokens, mask, probe.types_bt))
        return found

    def greedy(self, prompt_ids: Sequence[int], count: int) -> list[int]:
        """One by one through present and past; without a cache, the whole text each time."""
        ids = np.array([list(prompt_ids)], np.int64)
        ones, found = np.ones_like(ids), []
        state, past = (self._encode(ids, ones) if self._is_pair else None), None
        new = np.array([[self._start_id]]) if self._is_pair else ids
        for _ in range(count):
            if state is not None:
                logits, past = self._decode(state, new, past)
            elif self._has_cache:
                length = ids.shape[1] + len(found)
                logits, past = self._step(new, np.ones((1, length), np.int64), past)
            else:
                whole = np.array([[*prompt_ids, *found]], np.int64)
                logits = self._read(whole, np.ones_like(whole), None)[LOGITS]
            found.append(int(logits[0, -1].argmax()))
            new = np.array([[found[-1]]], np.int64)
        return found

    def check_texts(self, tokenizer: Tokenizer, cfg: ModelConfig) -> int:
        """Compares ids that the folder's tokenizer.json gives."""
        path = self._folder / TOKENIZER
        if not path.is_file():
            return 0
        theirs = open_onnx(self._folder).tokenizer
        if theirs is None:
            return 0
        return compare_texts(tokenizer, theirs.load(), cfg)

    def _read(self, tokens: np.ndarray, mask: np.ndarray, types: Any) -> Outputs:
        feed = {"input_ids": tokens, "attention_mask": mask}
        if self._cfg.token_types:
            given = np.zeros_like(tokens) if types is None else types
            feed["token_type_ids"] = np.asarray(given, np.int64)
        names = output_names(self._cfg)
        values = _ran(self._sessions[MODEL], list(names.values()), feed)
        return dict(zip(names, values, strict=True))

    def _empty(self, num_rows: int) -> dict[str, np.ndarray]:
        cfg, found = self._cfg, {}
        for layer in range(cfg.num_layers):
            widths = (cfg.head_width, cfg.value_width)
            for name, width in zip(past_names(layer)[0], widths, strict=True):
                found[name] = np.zeros((num_rows, cfg.kv_heads, 0, width), np.float32)
        return found

    def _run(self, name: str, feed: dict[str, Any], past: Any) -> tuple[np.ndarray, Any]:
        feed |= self._empty(len(feed["input_ids"])) if past is None else past
        pairs = [past_names(layer) for layer in range(self._cfg.num_layers)]
        wanted = [LOGITS, *(after for pair in pairs for after in pair[1])]
        logits, *kept = _ran(self._sessions[name], wanted, feed)
        befores = [before for pair in pairs for before in pair[0]]
        return logits, dict(zip(befores, kept, strict=True))

    def _step(self, new: np.ndarray, mask: np.ndarray, past: Any) -> tuple[np.ndarray, Any]:
        feed = {"input_ids": new, "attention_mask": mask}
        if uses_positions(self._cfg):
            places = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
            feed["position_ids"] = places[:, -new.shape[1] :]
        return self._run(MODEL, feed, past)

    def _encode(self, tokens: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        feed = {"input_ids": tokens, "attention_mask": mask}
        states = _ran(self._sessions[ENCODER_MODEL], [HIDDEN], feed)[0]
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    def _decode(
        self, state: dict[str, np.ndarray], new: np.ndarray, past: Any = None
    ) -> tuple[np.ndarray, Any]:
        return self._run(DECODER_MODEL, {"input_ids": np.ascontiguousarray(new), **state}, past)

    def _check_left(self, tokens: np.ndarray, mask: np.ndarray, whole: np.ndarray) -> None:
        """The same tokens with padding on the left, the last ones of them one by one."""
        length = tokens.shape[1]
        order = np.argsort(mask, axis=1, kind="stable")  # padding first, tokens as they were
        turned, left = (np.take_along_axis(x, order, 1) for x in (tokens, mask))
        wanted = np.take_along_axis(whole, order[:, :, None], 1)
        first = max(1, length - _AHEAD)
        logits, past = self._step(turned[:, :first], left[:, :first], None)
        self._check_same(logits, wanted[:, :first], left[:, :first], "padded on the left")
        if self._cfg.rope_scaling.kind == "longrope":
            return  # a prompt's length chooses its factors: in pieces it is another prompt
        for i in range(first, length):
            logits, past = self._step(turned[:, i : i + 1], left[:, : i + 1], past)
            self._check_same(logits, wanted[:, i : i + 1], left[:, i : i + 1], "by its cache")

    def _check_steps(self, state: Any, tokens: np.ndarray, whole: np.ndarray) -> None:
        first, past = max(1, tokens.shape[1] - _AHEAD), None
        for start, end in [(0, first), *((i, i + 1) for i in range(first, tokens.shape[1]))]:
            logits, past = self._decode(state, tokens[:, start:end], past)
            ones = np.ones(logits.shape[:2])
            self._check_same(logits, whole[:, start:end], ones, "by its cache")

    def _check_same(self, a: np.ndarray, b: np.ndarray, mask: np.ndarray, how: str) -> None:
        seen = mask > 0
        if not seen.any():
            return
        apart = float(np.abs(a[seen] - b[seen]).max() / np.abs(b[seen]).max())
        if not apart <= self.bound:
            raise ExportError(
                f"what was written is not the model: {how}, onnxruntime gives logits that differ "
                f"by {apart:.1e} of the largest from those of the tokens at once; nothing was kept"
            )


def _session(path: Path) -> Any:
    runtime = import_runtime()
    try:
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # whatever it says, the export is not what it should be
        line = " ".join(str(error).split())[:300]
        raise ExportError(f"onnxruntime does not open what was written: {line}") from error


def _ran(session: Any, names: Sequence[str], feed: Mapping[str, Any]) -> Any:
    try:
        return session.run(names, feed)
    except Exception as error:  # whatever it says, the export is not what it should be
        line = " ".join(str(error).split())[:300]
        raise ExportError(f"onnxruntime does not run what was written: {line}") from error
