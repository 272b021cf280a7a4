"""An exported Hugging Face folder, opened and run by transformers and torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ExportError, MissingExtraError
from llmasos_jax.evals.export.outputs import HIDDEN, LABELS, LOGITS, NEXT, POOLED, Outputs
from llmasos_jax.evals.parity.probe import Probe

_CHECKED = ("missing_keys", "unexpected_keys", "mismatched_keys")


def import_both() -> tuple[Any, Any]:
    """Torch and transformers.

    Raises:
      MissingExtraError: one of them is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            f"an export to Hugging Face is opened with transformers and torch to prove it ({error})"
            "; pip install 'llmasos-jax[parity]', or say --unproven (unproven=True)"
        ) from error
    return torch, transformers


def their_outputs(
    folder: Path, saved_class: str, cfg: ModelConfig, probes: Sequence[Probe]
) -> list[Outputs]:
    """What transformers gives for each probe, float32, by our names.

    Args:
      folder: the export.
      saved_class: of transformers.
      cfg: the model.
      probes: their padding holds the padding id of the folder.

    Raises:
      ExportError: transformers does not open it, or misses a tensor, or has one too many.
      MissingExtraError: torch or transformers is not installed.
    """
    torch, transformers = import_both()
    is_base = saved_class.endswith("Model") and not cfg.causal
    options = {"add_pooling_layer": False} if is_base and _skips_pooler(saved_class, cfg) else {}
    transformers.utils.logging.disable_progress_bar()
    try:
        model, info = getattr(transformers, saved_class).from_pretrained(
            folder,
            local_files_only=True,
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # whatever it says, the export is not what it should be
        line = " ".join(str(error).split())[:300]
        raise ExportError(f"transformers does not open what was written: {line}") from error
    wrong = {kind: sorted(map(str, info[kind])) for kind in _CHECKED if info.get(kind)}
    if wrong:
        kind, names = next(iter(wrong.items()))
        raise ExportError(
            f"transformers' {saved_class} has {kind.replace('_', ' ')} in what was written: "
            f"{', '.join(names[:5])}"
        )
    model.eval()
    with torch.no_grad():
        return [_run(torch, model, saved_class, cfg, probe) for probe in probes]


def _skips_pooler(saved_class: str, cfg: ModelConfig) -> bool:
    return not cfg.pooler and saved_class.startswith(("Bert", "Roberta", "XLMRoberta"))


def _run(torch: Any, model: Any, saved_class: str, cfg: ModelConfig, probe: Probe) -> Outputs:
    ids = torch.from_numpy(probe.tokens_bt.astype(np.int64))
    options: dict[str, Any] = {"attention_mask": torch.from_numpy(probe.mask_bt.astype(np.int64))}
    if probe.types_bt is not None:
        options["token_type_ids"] = torch.from_numpy(probe.types_bt.astype(np.int64))
    if cfg.encoder.num_layers:
        options["decoder_input_ids"] = ids.flip(1)
    if cfg.causal:
        options["use_cache"] = False
    out = model(input_ids=ids, **options)
    if saved_class.endswith("ForPreTraining"):
        named = {LOGITS: out.prediction_logits, NEXT: out.seq_relationship_logits}
    elif saved_class.endswith("ForNextSentencePrediction"):
        named = {NEXT: out.logits}
    elif saved_class.endswith("Classification"):
        named = {LABELS: out.logits}
    elif hasattr(out, "logits"):
        named = {LOGITS: out.logits}
    else:
        named = {HIDDEN: out.last_hidden_state, POOLED: getattr(out, "pooler_output", None)}
    return {name: x.float().numpy() for name, x in named.items() if x is not None}
