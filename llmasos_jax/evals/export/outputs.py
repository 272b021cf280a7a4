"""What a model of ours gives for some ids, by the names under which an export is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from llmasos_jax.config.devices import KernelsConfig
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.evals.parity.probe import Probe
from llmasos_jax.format.names import unflatten
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.models.definition import file_def
from llmasos_jax.nn.runtime import Runtime

Outputs = dict[str, np.ndarray]
LOGITS, NEXT, LABELS = "logits", "next_sentence", "labels"
HIDDEN, POOLED = "last_hidden_state", "pooled"


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


def our_outputs(files: ModelFiles, probes: Sequence[Probe]) -> list[Outputs]:
    """Everything that a model answers, float32, for each probe.

    The decoder of an encoder-decoder reads each row backwards, all of it.
    """
    cfg = files.manifest.parameters
    definition = file_def(cfg)
    named = {n: np.asarray(t.read()).astype(np.float32) for n, t in files.tensors.items()}
    params = unflatten(named)

    @jax.jit
    def run(params: Any, tokens_bt: Any, mask_bt: Any, types_bt: Any) -> dict[str, jax.Array]:
        model = definition.bind(params)
        # Plain products alone: other runtimes read this program.
        runtime = Runtime(kernels=KernelsConfig(attention="reference"))
        if cfg.encoder.num_layers:
            encoded = model.encode(tokens_bt, segment_ids_bs=mask_bt, runtime=runtime)
            hidden = model.hidden(tokens_bt[:, ::-1], encoded=encoded, runtime=runtime)
            return {LOGITS: model.logits(hidden.x_btd, runtime)}
        kinds = {} if types_bt is None else {"token_types_bt": types_bt}
        x_btd = model.hidden(tokens_bt, segment_ids_bt=mask_bt, runtime=runtime, **kinds).x_btd
        return _answers(cfg, model, x_btd, mask_bt, runtime)

    found = []
    with jax.default_matmul_precision("highest"):
        for probe in probes:
            out = run(params, probe.tokens_bt, probe.mask_bt, probe.types_bt)
            found.append({name: np.asarray(x) for name, x in out.items()})
    return found


def _answers(
    cfg: ModelConfig, model: Any, x_btd: jax.Array, mask_bt: jax.Array, runtime: Runtime
) -> dict[str, jax.Array]:
    found = {}
    if cfg.head is not None:
        found[LOGITS] = model.logits(x_btd, runtime)
    if cfg.next_sentence:
        found[NEXT] = model.next_sentence(model.pooled(x_btd, runtime, mask_bt), runtime)
    if cfg.classifier.labels:
        is_text = cfg.classifier.level == "sequence"
        state = model.pooled(x_btd, runtime, mask_bt) if is_text else x_btd
        found[LABELS] = model.classify(state, runtime)
    if not found:
        found[HIDDEN] = x_btd
        if cfg.pooler:
            found[POOLED] = model.pooled(x_btd, runtime, mask_bt)
    return found


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
        found.append(Compared(name, apart / largest if largest else apart, largest, numbers))
    return found
