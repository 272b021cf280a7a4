"""What a model of ours gives for some ids: what an export is compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from llmasos_jax.config.devices import KernelsConfig
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.evals.parity.probe import Probe
from llmasos_jax.format.names import unflatten
from llmasos_jax.models.answers import LOGITS, answers
from llmasos_jax.models.definition import file_def
from llmasos_jax.nn.runtime import Runtime

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Compared:
    """One output of both programs.

    Attributes:
      output: its name.
      difference: the largest, as a share of `largest`.
      largest: absolute value in our output.
      numbers: how many were compared.
    """

    output: str
    difference: float
    largest: float
    numbers: int


class OurModel:
    """A model of ours with plain float32 weights, as the reference of an export.

    Args:
      cfg: the model.
      tensors: its weights by their names.
      start_id: that the decoder of an encoder-decoder begins with.
    """

    def __init__(
        self, cfg: ModelConfig, tensors: Mapping[str, np.ndarray], start_id: int | None = None
    ) -> None:
        self._cfg, self._start_id = cfg, start_id
        named = {name: np.asarray(x).astype(np.float32) for name, x in tensors.items()}
        self._params = jax.device_put(unflatten(named))
        self._run = compiled(cfg)

    def outputs(self, probes: Sequence[Probe]) -> list[Outputs]:
        """Everything that the model answers, float32, for each probe.

        The decoder of an encoder-decoder reads each row backwards, all of it.
        """
        found = []
        for probe in probes:
            reads = probe.tokens_bt[:, ::-1] if self._cfg.encoder.num_layers else None
            found.append(self._numbers(probe.tokens_bt, probe.mask_bt, probe.types_bt, reads))
        return found

    def scores(self, prompt_ids: Sequence[int], next_ids: Sequence[int], like: Probe) -> np.ndarray:
        """Logits float32 [N, V] from which each of the N next ids was drawn.

        Args:
          prompt_ids: that the model read.
          next_ids: that it went on with.
          like: a probe with room for them: its shape is compiled already.
        """
        shape = like.tokens_bt.shape
        if self._cfg.encoder.num_layers:
            read, reads_bt = prompt_ids, _rows([self._start_id or 0, *next_ids[:-1]], shape)
            first = 0
        else:
            read, reads_bt, first = [*prompt_ids, *next_ids[:-1]], None, len(prompt_ids) - 1
        mask_bt = _rows([1] * len(read), shape)
        logits_btv = self._numbers(_rows(read, shape), mask_bt, None, reads_bt)[LOGITS]
        return logits_btv[0, first : first + len(next_ids)]

    def _numbers(self, *args: Any) -> Outputs:
        with jax.default_matmul_precision("highest"):
            out = self._run(self._params, *args)
        return {name: np.asarray(x) for name, x in out.items()}


@functools.lru_cache(maxsize=8)  # the same model once more: rounded and exact, or of other formats
def compiled(cfg: ModelConfig, **options: Any) -> Callable[..., dict[str, jax.Array]]:
    """What a model answers, as a compiled function of its weights and a batch.

    Args:
      cfg: the model.
      options: of `jax.jit`.
    """
    # Plain products alone, as other programs have them.
    runtime = Runtime(kernels=KernelsConfig(attention="reference"))

    def forward(
        params: Any, tokens_bt: Any, mask_bt: Any, types_bt: Any, reads_bt: Any
    ) -> dict[str, jax.Array]:
        return answers(
            file_def(cfg), params, tokens_bt, mask_bt, runtime, types_bt=types_bt, reads_bt=reads_bt
        )

    return jax.jit(forward, **options)


def _rows(ids: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """The same ids in each row, int32 [B, T], zeros after them."""
    row = np.zeros(shape[1], np.int32)
    row[: len(ids)] = ids
    return np.broadcast_to(row, shape)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities along the last axis, float64, in nats."""
    wide = logits.astype(np.float64)
    return wide - np.logaddexp.reduce(wide, axis=-1, keepdims=True)


def compare(
    ours: Sequence[Mapping[str, np.ndarray]],
    theirs: Sequence[Mapping[str, np.ndarray]],
    probes: Sequence[Probe],
    *,
    pads_count: bool = False,
) -> list[Compared]:
    """How far apart two programs are, output by output; infinite where one has another shape.

    Args:
      ours: outputs for each probe, [B, T, ...] or [B, ...].
      theirs: the same of the other program.
      probes: what they were computed on.
      pads_count: whether a place where the probe has padding counts too.
    """
    found = []
    for name in ours[0]:
        largest, apart, numbers = 0.0, 0.0, 0
        for one, other, probe in zip(ours, theirs, probes, strict=True):
            x, y = one[name], other.get(name)
            if y is None or y.shape != x.shape:
                apart = float("inf")
                continue
            if x.ndim == 3 and not pads_count:
                seen = probe.mask_bt > 0
                x, y = x[seen], y[seen]
            largest = max(largest, float(np.abs(x).max()))
            worst = float(np.abs(x - y).max())
            apart = max(apart, worst if np.isfinite(worst) else float("inf"))
            numbers += x.size
        share = apart / largest if 0 < largest < np.inf else apart
        found.append(Compared(name, share, largest, numbers))
    return found
