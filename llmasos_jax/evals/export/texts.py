"""Whether the tokenizer that an export holds is the model's, whoever reads it."""

from __future__ import annotations

from collections.abc import Callable

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer, encode_input
from llmasos_jax.errors import ExportError

TEXTS = ("Hello, world! 123", "  two  spaces\nand a line", "Über naïve 世界 🙂", "")


def compare_texts(ours: Tokenizer, theirs: Tokenizer, cfg: ModelConfig) -> int:
    """Compares what two of our tokenizers make of texts, with what stands around them.

    Args:
      ours: the model's.
      theirs: read back from the export.
      cfg: the model.

    Returns:
      How many texts.

    Raises:
      ExportError: one gives other ids, or calls an id otherwise.
    """
    reads_whole = not cfg.causal or cfg.encoder.num_layers > 0
    for text in TEXTS:
        wanted, found = (
            encode_input(one, text)[0] if reads_whole else one.encode(text)
            for one in (ours, theirs)
        )
        if wanted != found:
            raise ExportError(
                f"what was written is not the model's tokenizer: of {text!r} it gives "
                f"{found[:12]}, not {wanted[:12]}; nothing was kept"
            )
    token = getattr(theirs, "token", None)
    if token is not None:
        compare_tokens(ours, token)
    return len(TEXTS)


def compare_tokens(ours: Tokenizer, theirs: Callable[[int], str | None]) -> None:
    """Compares what each id is called: of a stale tokenizer some texts alone are split otherwise.

    Args:
      ours: the model's; nothing is compared if it does not call its ids by names.
      theirs: the name of an id in the export.

    Raises:
      ExportError: an id is another token.
    """
    token: Callable[[int], str | None] | None = getattr(ours, "token", None)
    if token is None:
        return
    for number in range(ours.vocab_size):
        wanted, found = token(number), theirs(number)
        if wanted is not None and wanted != found:
            raise ExportError(
                f"what was written is not the model's tokenizer: id {number} is {found!r}, not "
                f"{wanted!r}; nothing was kept"
            )
