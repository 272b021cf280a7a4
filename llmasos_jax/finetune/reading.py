"""With which config and tokenizer a run would read its data."""

from __future__ import annotations

from pathlib import Path

from llmasos_jax.config.build import Source, build, finetune_of, read_config
from llmasos_jax.config.schema import Config
from llmasos_jax.data.tokenizers.load import tokenizer_of_run
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.train.objective import build_objective


def reading_of(source: Source, cache: Path) -> tuple[Config, Tokenizer]:
    """The whole config, and the tokenizer that a run of it would read with.

    Args:
      source: the config, in which a base (`finetune.base`) may stand for the model.
      cache: folder for a tokenizer that is trained.

    Raises:
      ConfigError: the config is wrong.
      TokenizerError, DataError: as in `build_tokenizer` and `data.sources.documents`.
    """
    if finetune_of(source).base is not None:
        from llmasos_jax.finetune.resolve import resolve

        config, base = resolve(source)
        return config, base.tokenizer
    config = build(read_config(source))
    has_records = build_objective(config).examples is not None
    return config, tokenizer_of_run(config, cache, has_records=has_records)
