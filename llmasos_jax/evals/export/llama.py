"""A GGUF file, opened and run by llama.cpp through xllamacpp."""

from __future__ import annotations

import importlib.util
import json
import os
import select
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, encode_input
from llmasos_jax.errors import ExportError, MissingExtraError
from llmasos_jax.evals.export.ours import Outputs
from llmasos_jax.evals.export.target import Opened
from llmasos_jax.evals.export.weights import MismatchError
from llmasos_jax.evals.parity.probe import Probe
from llmasos_jax.interop.gguf.write_tokenizer import PROBES
from llmasos_jax.models.answers import HIDDEN

# Of the last token of each row: logarithms of the probabilities of all ids, [B, V].
LOG_PROBABILITIES = "log_probabilities"
_START_S, _ANSWER_S = 600, 600
_MOST_CONTEXT = 1152  # the longest row of a proof, and tokens after it
_LINE = 300  # characters of what llama.cpp said last


def check_llama() -> None:
    """Raises MissingExtraError where llama.cpp is not installed."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtraError(
            "an export to GGUF is opened with llama.cpp to prove it, which is not installed; pip "
            "install 'llmasos-jax[export]', or say --unproven (unproven=True)"
        )


class OpenedLlama(Opened):
    """A GGUF file in llama.cpp, float32 keys and values; another process until it is closed.

    Args:
      path: the file.
      cfg: the model.

    Raises:
      ExportError: llama.cpp does not take the file.
    """

    pad_id: int | None = None

    def __init__(self, path: Path, cfg: ModelConfig) -> None:
        self._cfg = cfg
        context = max(64, min(cfg.context_length, _MOST_CONTEXT))
        kind = "tokens" if cfg.causal else "embeddings"
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "llmasos_jax.evals.export.llama_child"),
                *(str(path), str(context), str(threads), kind),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._address = self._started()
        self._whole_id: int | None = None

    def _started(self) -> str:
        stdout = self._process.stdout
        ready = [] if stdout is None else select.select([stdout], [], [], _START_S)[0]
        address = stdout.readline().decode().strip() if stdout is not None and ready else ""
        if not address.startswith("http"):
            said = self._last_line(address)
            self.close()
            raise ExportError(f"llama.cpp does not open what was written: {said}")
        return address

    def _last_line(self, instead: str = "") -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines()]
        told = [line for line in lines if "GGML_ASSERT" in line or "error" in line.lower()]
        told = told or [line for line in lines if line]
        text = " | ".join(told[:1] + told[1:][-1:]) or instead or "it ended without a word"
        return text[:_LINE]

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> OpenedLlama:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _post(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            f"{self._address}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            said = " ".join(error.read().decode(errors="replace").split())[:_LINE]
            raise ExportError(f"llama.cpp refuses to run what was written: {said}") from error
        except (OSError, ValueError) as error:
            raise ExportError(
                f"llama.cpp gave up on what was written ({error}): {self._last_line()}"
            ) from error

    def outputs(self, probes: Sequence[Probe]) -> list[Outputs]:
        """Of a decoder LOG_PROBABILITIES [B, V] after each row, of an encoder HIDDEN [B, T, D].

        Raises:
          ExportError: llama.cpp does not run it.
        """
        if not self._cfg.causal:
            return [{HIDDEN: self._hidden(probe)} for probe in probes]
        rows = [[tuple(ids) for ids in rows_of(probe)] for probe in probes]
        found = {ids: self.log_probabilities(ids) for ids in {ids for row in rows for ids in row}}
        return [{LOG_PROBABILITIES: np.stack([found[ids] for ids in row])} for row in rows]

    def log_probabilities(self, ids: Sequence[int]) -> np.ndarray:
        """Logarithms of the probabilities of all ids after `ids`, float32 [V], in nats."""
        best = self._next(ids, self._cfg.vocab_size, keep=False)
        found = np.full(self._cfg.vocab_size, np.nan, np.float32)
        for entry in best:
            found[entry["id"]] = entry["logprob"]
        return found

    def greedy(self, prompt_ids: Sequence[int], count: int) -> list[int]:
        """Ids of the `count` likeliest next tokens, one by one through llama.cpp's cache."""
        found: list[int] = []
        for _ in range(count):
            found.append(self._next([*prompt_ids, *found], 1, keep=True)[0]["id"])
        return found

    def _next(self, ids: Sequence[int], count: int, *, keep: bool) -> list[dict[str, Any]]:
        answer = self._post(
            "completion",
            prompt=[int(i) for i in ids],
            n_predict=1,
            n_probs=count,
            cache_prompt=keep,
            ignore_eos=True,
            # An id that makes a character of its own: without one nothing is answered.
            logit_bias=[[self._whole(), 1000.0]],
        )
        return answer["completion_probabilities"][0]["top_logprobs"]

    def _whole(self) -> int:
        """An id whose text is whole characters."""
        if self._whole_id is None:
            found = self._post("tokenize", content="a", add_special=False)["tokens"]
            self._whole_id = int(found[-1]) if found else 0
        return self._whole_id

    def _hidden(self, probe: Probe) -> np.ndarray:
        out = np.zeros((*probe.tokens_bt.shape, self._cfg.embedding_dim), np.float32)
        for number, ids in enumerate(rows_of(probe)):
            answer = self._post("embeddings", content=ids)
            out[number, : len(ids)] = np.asarray(answer[0]["embedding"], np.float32)
        return out

    def check_texts(self, tokenizer: Tokenizer, cfg: ModelConfig) -> int:
        """Compares the ids of some texts, with what stands around them; see `target.Opened`."""
        for text in PROBES:
            answer = self._post("tokenize", content=text, add_special=True, parse_special=False)
            theirs = answer["tokens"]
            ours = tokenizer.encode(text) if cfg.causal else encode_input(tokenizer, text)[0]
            if theirs != ours:
                raise MismatchError(
                    f"what was written is not the model's tokenizer: llama.cpp gives "
                    f"{theirs[:12]} for {text!r}, not {ours[:12]}"
                )
        return len(PROBES)


def rows_of(probe: Probe) -> list[list[int]]:
    """The ids of each row, without padding."""
    lengths = probe.mask_bt.sum(1)
    return [row[:n].tolist() for row, n in zip(probe.tokens_bt, lengths, strict=True)]
