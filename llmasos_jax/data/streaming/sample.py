"""The beginning of a stream, for a tokenizer that is trained on it."""

from __future__ import annotations

import itertools

from llmasos_jax.config.schema import Config
from llmasos_jax.data.streaming.rows import text_hash
from llmasos_jax.data.streaming.sources import open_stream


def sample_texts(cfg: Config) -> list[str]:
    """The first `tokenizer.train_chars` characters of a stream that are trained on, and to spare.

    Raises:
      ConfigError, DataError: as `open_streamed`.
    """
    texts = (text for text, _ in open_stream(cfg.data).read(None) if text.strip())
    kept = set(map(text_hash, itertools.islice(texts, cfg.data.heldout_documents)))
    found: list[str] = []
    chars = 0
    for text in texts:
        if text_hash(text) not in kept:
            found.append(text)
            chars += len(text)
        if chars > cfg.tokenizer.train_chars * 1.1:
            break
    return found
