"""Whether an export ends a text, and begins a conversation, as the model does."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import ExportError
from llmasos_jax.format.read import ModelFiles


def compare_generation(
    files: ModelFiles, back: ModelFiles, tokenizer: Tokenizer | None, unsaid: Collection[str] = ()
) -> None:
    """Compares ids and texts that end an answer, the chat template, the decoder's first id.

    Args:
      files: the model.
      back: the export, read back.
      tokenizer: the model's; its end is the model's where the model names none.
      unsaid: what the format has no exact words for.

    Raises:
      ExportError: one is another; no output of the network shows that.
    """
    cfg = files.manifest.parameters
    wanted, found = (asdict(one.manifest.generation) for one in (files, back))
    if cfg.causal or cfg.encoder.num_layers > 0:
        usual = getattr(tokenizer, "eos_id", None)
        wanted["eos_ids"], found["eos_ids"] = (
            _ends(one["eos_ids"], usual, cfg.vocab_size) for one in (wanted, found)
        )
    if back.tokenizer is None and not files.manifest.generation.eos_ids:
        found["eos_ids"] = wanted["eos_ids"]  # what ends a text is the tokenizer's to say
    if back.tokenizer is None and found["chat_template"] is None:
        found["chat_template"] = wanted["chat_template"]  # left out with it, as a note says
    for name, value in wanted.items():
        if name not in unsaid and found[name] != value:
            raise ExportError(
                f"what was written is not the model: it says generation.{name} = "
                f"{_shown(found[name])}, not {_shown(value)}; nothing was kept"
            )


def _ends(ids: tuple[int, ...], usual: int | None, vocab_size: int) -> list[int]:
    known = ids or (() if usual is None else (usual,))
    return sorted({i for i in known if i < vocab_size})


def _shown(value: Any) -> str:
    return text if len(text := repr(value)) <= 60 else f"{text[:57]}..."
