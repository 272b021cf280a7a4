"""Exports to Hugging Face folders, opened and run by transformers and torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import ExportError
from llmasos_jax.evals.export.hftokens import compare_tokenizer, import_both
from llmasos_jax.evals.export.ours import Outputs
from llmasos_jax.evals.export.target import Opened, Target, Tick
from llmasos_jax.evals.parity.probe import Probe
from llmasos_jax.format.cast import cast
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.tensorfile import CODES
from llmasos_jax.interop.hf import open_hf
from llmasos_jax.interop.hf.express import express
from llmasos_jax.interop.hf.open import CONFIG
from llmasos_jax.interop.hf.write import write_huggingface
from llmasos_jax.interop.written import Written
from llmasos_jax.models.answers import HIDDEN, LABELS, LOGITS, NEXT, POOLED

_CHECKED = ("missing_keys", "unexpected_keys", "mismatched_keys")


class HuggingFace(Target):
    """A folder for transformers; see `Target`."""

    name = "hf"
    opens = "transformers"
    packages: tuple[str, ...] = ("torch", "transformers", "safetensors", "tokenizers")
    dtypes: tuple[str, ...] = tuple(CODES)

    def check(self, files: ModelFiles, dtype: str | None) -> None:
        """Finds the class that says all of the model."""
        express(files.manifest)

    def check_runtime(self) -> None:
        """Imports torch and transformers."""
        import_both()

    def write(self, files: ModelFiles, out: Path, dtype: str | None, on_tensor: Tick) -> Written:
        """Writes the folder."""
        rounded = files if dtype is None else cast(files, dtype)
        return write_huggingface(rounded, out, on_tensor=on_tensor)

    def bound(self, files: ModelFiles, dtype: str | None) -> float:
        """Both compute in float32."""
        return 1e-4

    def open(self, folder: Path, written: Written, cfg: ModelConfig) -> OpenedFolder:
        """Opens it by the class that its config names, every tensor in its place."""
        return OpenedFolder(folder, written.saved_class, cfg)

    def back(self, folder: Path) -> ModelFiles:
        """As this package reads the folder."""
        return open_hf(folder)

    def source(self, folder: Path) -> str | None:
        """Run by transformers, so that a place in the network can be named."""
        return f"transformers:{folder}"


class OpenedFolder(Opened):
    """A Hugging Face folder in transformers; see `Opened`.

    Raises:
      ExportError: transformers does not open it, or misses a tensor, or has one too many.
      MissingExtraError: torch or transformers is not installed.
    """

    def __init__(self, folder: Path, saved_class: str, cfg: ModelConfig) -> None:
        self._torch, transformers = import_both()
        self._transformers = transformers
        self._folder, self._class, self._cfg = folder, saved_class, cfg
        self._model = _opened(self._torch, transformers, folder, saved_class, cfg)
        _check_ends(self._model, folder, cfg)
        self.pad_id: int | None = json.loads((folder / CONFIG).read_bytes()).get("pad_token_id")

    def outputs(self, probes: Sequence[Probe]) -> list[Outputs]:
        """Runs each probe at once, without a cache."""
        with self._torch.no_grad(), _told():
            return [_run(self._torch, self._model, self._class, self._cfg, p) for p in probes]

    def greedy(self, prompt_ids: Sequence[int], count: int) -> list[int]:
        """By the model's `generate`."""
        ids = self._torch.tensor([list(prompt_ids)])
        config = self._model.generation_config
        # Nothing but the likeliest token, and no end before `count`.
        for name in ("eos_token_id", "stop_strings", "repetition_penalty", "suppress_tokens"):
            setattr(config, name, None)
        cache = {}
        if self._cfg.encoder.num_layers:
            # Made by `generate` it would have as many layers as the encoder has.
            kept = [self._transformers.DynamicCache() for _ in range(2)]
            cache["past_key_values"] = self._transformers.EncoderDecoderCache(*kept)
        with _told():
            out = self._model.generate(
                ids,
                **cache,
                attention_mask=self._torch.ones_like(ids),
                do_sample=False,
                use_cache=True,
                max_new_tokens=count,
            )
        return [int(i) for i in out[0, 1 if self._cfg.encoder.num_layers else ids.shape[1] :]]

    def check_texts(self, tokenizer: Tokenizer, cfg: ModelConfig) -> int:
        """Compares ids, token types and special tokens."""
        return compare_tokenizer(self._folder, tokenizer, cfg)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever it says, the export is not what it should be
        line = " ".join(str(error).split())[:300]
        raise ExportError(f"transformers does not run what was written: {line}") from error


def _opened(torch: Any, transformers: Any, folder: Path, saved_class: str, cfg: ModelConfig) -> Any:
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
    return model.eval()


def _check_ends(model: Any, folder: Path, cfg: ModelConfig) -> None:
    """Where transformers ends a text; with a generation config it asks the config no longer."""
    config = getattr(model, "generation_config", None)
    if config is None or not (cfg.causal or cfg.encoder.num_layers):
        return
    ends = config.eos_token_id
    listed = [] if ends is None else ends if isinstance(ends, list) else [ends]
    found = sorted({i for i in listed if i < cfg.vocab_size})
    wanted = sorted(set(open_hf(folder).manifest.generation.eos_ids))
    if found != wanted:
        raise ExportError(
            f"what was written is not the model: in transformers the ids {found} end a text, not "
            f"{wanted}; nothing was kept"
        )


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
