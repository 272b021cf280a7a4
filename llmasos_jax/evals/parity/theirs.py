"""A Hugging Face folder run by transformers and torch: the truth that a conversion is held to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import FormatError, LLMasOSError, MissingExtraError
from llmasos_jax.evals.parity.probe import SCORED, Probe
from llmasos_jax.evals.parity.sides import (
    EMBEDDING,
    FINAL_NORM,
    LOGITS,
    OF_ENCODER,
    Values,
    layer_place,
)
from llmasos_jax.format.read import ModelFiles

# How the names of classes that have an output layer end, and what loads them.
_PREDICTS = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "BertForPreTraining": "AutoModelForPreTraining",
}


class TransformersSide:
    """A model of transformers, float32, attention computed in the plain way.

    Attributes:
      config, files: the same folder as this package reads it; None where it does not read it.
    """

    def __init__(self, folder: Path) -> None:
        torch, transformers = _import_both()
        if not (folder / "config.json").is_file():
            raise FormatError(
                f'"{folder}" is no Hugging Face folder: it has no config.json; after '
                '"transformers:" comes one'
            )
        try:
            self._config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            names = self._config.architectures or ()
            loads = [auto for end, auto in _PREDICTS.items() if any(n.endswith(end) for n in names)]
            self._predicts = bool(loads)
            auto = getattr(transformers, loads[0] if loads else "AutoModel")
            model = auto.from_pretrained(
                folder, local_files_only=True, attn_implementation="eager", dtype=torch.float32
            )
        except (OSError, ValueError, KeyError) as error:
            line = " ".join(str(error).split())
            raise FormatError(f'transformers does not open "{folder}": {line}') from error
        self._torch, self._model = torch, model.eval()
        self.title = f"transformers:{folder}"
        self.vocab_size = int(self._config.vocab_size)
        self.num_layers = int(self._config.num_hidden_layers)
        self.num_encoder_layers = 0
        # An encoder taken alone says of itself that it is none, or has no decoder to run.
        if self._config.is_encoder_decoder and hasattr(model, "decoder"):
            self.num_encoder_layers = self.num_layers
            decoder_layers = getattr(self._config, "num_decoder_layers", None)
            self.num_layers = int(decoder_layers or self._config.num_hidden_layers)
        pad = getattr(self._config, "pad_token_id", None)
        self.avoid: tuple[int, ...] = () if pad is None else (pad,)
        self._pad = pad or 0
        self.files = _read_as_ours(folder)
        self.config: ModelConfig | None = self.files and self.files.manifest.parameters

    def run(self, probes: Sequence[Probe]) -> Iterator[tuple[str, Values]]:
        """Yields what stands at each place; what is not shown by this family is left out."""
        runs = [self._forward(probe) for probe in probes]
        for place in list(runs[0]):
            # Taken out as it is handed on: an array lives only as long as it is needed.
            yield place, [run.pop(place) for run in runs]

    def _forward(self, probe: Probe) -> dict[str, np.ndarray]:
        torch = self._torch
        tokens_bt = np.where(probe.mask_bt > 0, probe.tokens_bt, self._pad)
        ids = torch.from_numpy(tokens_bt.astype(np.int64))
        mask = torch.from_numpy(probe.mask_bt.astype(np.int64))
        more = {}
        if probe.types_bt is not None:
            more = {"token_type_ids": torch.from_numpy(probe.types_bt.astype(np.int64))}
        if self.num_encoder_layers:
            more |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        last: dict[str, Any] = {}

        def keep(stem: str) -> Any:
            return lambda _, __, out: last.update({stem: out[0] if isinstance(out, tuple) else out})

        hooks = [b.register_forward_hook(keep(stem)) for stem, b in self._last_blocks().items()]
        try:
            with torch.no_grad():
                out = self._model(
                    input_ids=ids, attention_mask=mask, output_hidden_states=True, **more
                )
        finally:
            for hook in hooks:
                hook.remove()
        found: dict[str, np.ndarray] = {}
        if self.num_encoder_layers:
            states = (out.encoder_hidden_states, out.decoder_hidden_states)
            for stem, hidden in zip((OF_ENCODER, ""), states, strict=True):
                found |= _places(stem, [x.numpy() for x in hidden], last[stem].numpy())
        else:
            found = _places("", [x.numpy() for x in out.hidden_states], last[""].numpy())
        if self._predicts:
            logits = out.prediction_logits if "prediction_logits" in out else out.logits
            found[LOGITS] = logits[:, -SCORED:].numpy()
        return found

    def _last_blocks(self) -> dict[str, Any]:
        """The last block of each stack, by what the names of its places begin with."""
        if not self.num_encoder_layers:
            return {"": self._last_of(self._model, self.num_layers)}
        encoder, decoder = self._model.get_encoder(), self._model.get_decoder()
        return {
            OF_ENCODER: self._last_of(encoder, self.num_encoder_layers),
            "": self._last_of(decoder, self.num_layers),
        }

    def _last_of(self, stack: Any, num_layers: int) -> Any:
        for module in stack.modules():
            if isinstance(module, self._torch.nn.ModuleList) and len(module) == num_layers:
                return module[-1]
        raise FormatError(f"{self.title}: no list of {num_layers} blocks is found in it")


def _places(stem: str, hidden: list[np.ndarray], last: np.ndarray) -> dict[str, np.ndarray]:
    """What stands at each place of a stack: `hidden` ends after its final norm, if it has one."""
    found = {stem + EMBEDDING: hidden[0]}
    found |= {stem + layer_place(i): x for i, x in enumerate(hidden[1:-1])}
    found[stem + layer_place(len(hidden) - 2)] = last
    if not np.array_equal(last, hidden[-1]):
        found[stem + FINAL_NORM] = hidden[-1]
    return found


def _import_both() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError(
            f'"transformers:" needs torch and transformers ({error}); '
            "pip install 'llmasos-jax[parity]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers


def _read_as_ours(folder: Path) -> ModelFiles | None:
    from llmasos_jax.interop.hf import open_hf

    try:
        return open_hf(folder)
    except LLMasOSError:  # a family that this package does not read can be compared all the same
        return None
