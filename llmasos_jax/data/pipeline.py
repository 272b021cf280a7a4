"""From a config to the data of a run: source, split, ids, rows, batches."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.config.schema import Config
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.batches import (
    HeldoutBatches,
    TrainBatches,
    heldout_batches,
    seed_for,
    stack,
    train_batches,
)
from llmasos_jax.data.corpus import Corpus, open_corpus
from llmasos_jax.data.examples import ExampleRows, Examples
from llmasos_jax.data.fitting import FittedRows
from llmasos_jax.data.mixture import MixedCorpus, open_mixture
from llmasos_jax.data.objectives import MakeRows, Prepare, ReadExamples, causal
from llmasos_jax.data.packing import PackedRows
from llmasos_jax.data.sources import documents
from llmasos_jax.data.streaming.batches import StreamBatches, StreamedText, open_streamed
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import ConfigError, DataError


@dataclass(frozen=True)
class Data:
    """All that a training run reads.

    Attributes:
      train: this process's rows of every training batch.
      heldout: this process's rows of the held-out batches.
      corpus: the token ids; for an objective that learns from records, its examples.
      num_train_rows: rows of one epoch; of a mixture, of one epoch of each part; of a
        stream it is not known.
      batch_size: rows of a batch over all processes.
      sequence_length: tokens of a row.
      num_rows_of: rows of one epoch of each part of a mixture.
    """

    train: TrainBatches | StreamBatches
    heldout: HeldoutBatches
    corpus: Corpus | MixedCorpus | StreamedText | Examples
    num_train_rows: int | None
    batch_size: int
    sequence_length: int
    num_rows_of: Mapping[str, int] = field(default_factory=dict)

    @property
    def text(self) -> Corpus:
        """The corpus of a run that reads one."""
        if not isinstance(self.corpus, Corpus):
            raise TypeError("this run does not read one corpus of text")
        return self.corpus

    @property
    def num_train_tokens(self) -> int:
        """Tokens of one epoch; with bos and eos, where the corpus has them. Not of a stream."""
        if isinstance(self.corpus, StreamedText):
            raise TypeError("nobody knows how many tokens a stream has")
        return self.corpus.train.num_tokens

    @property
    def num_heldout_tokens(self) -> int:
        """Tokens held out; with bos and eos, where the corpus has them."""
        return self.corpus.heldout.num_tokens

    @property
    def tokens_per_batch(self) -> int:
        """Tokens that the model reads in one step, over all processes."""
        return self.batch_size * self.sequence_length

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the position, and which corpus it is a position in."""
        return self.train.state() | {"corpus": self.corpus.digest}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken.

        Raises:
          DataError: the state belongs to another text or tokenizer.
        """
        self.train.restore(state)  # first: of a stream it says which files are others
        if state["corpus"] != self.corpus.digest:
            raise DataError(
                f"the run was made on a corpus with digest {state['corpus'][:12]}, this one has "
                f"{self.corpus.digest[:12]}; give back the text, the tokenizer and the Python it "
                "was made with (the standard library's source changes with its version), or start "
                "a new run"
            )

    def close(self) -> None:
        """Stops reading ahead."""
        self.train.close()


def open_data(
    cfg: Config,
    tokenizer: Tokenizer,
    cache: Path,
    *,
    process_index: int = 0,
    process_count: int = 1,
    own_rows: Sequence[int] | None = None,
    prepare: Prepare | None = None,
    rows: MakeRows = PackedRows,
    by_sentence: bool = False,
    examples: ReadExamples | None = None,
) -> Data:
    """Opens a run's data: documents, split, tokens, rows, batches.

    The batch of step n has rows n * batch_size to (n + 1) * batch_size - 1 of an endless sequence:
    one shuffled epoch after the other, each row once in each; of a mixture such a sequence for each
    part, mixed by the weights (`llmasos_jax.data.mixture`). Process p of P takes the p-th of P
    equal parts of it, or `own_rows`, so the whole batch is the same bytes for any P.

    Held-out batches are of one part each.

    Args:
      cfg: `data`, `train.batch_size` and `model.vocab_size` are read.
      tokenizer: from `build_tokenizer`.
      cache: folder for token ids; a second run finds them there.
      process_index: which host this is, from 0.
      process_count: how many there are.
      own_rows: which rows of a batch this process's devices hold (`parallel.place.own_rows`), where
        that is not a part for each: several processes may hold the same rows.
      prepare: the objective's NumPy side, `(row, Generator) -> Batch`; None is `causal`.
      rows: from the documents and `data.sequence_length` to their rows.
      by_sentence: whether the corpus keeps where sentences end, and has no bos and eos.
      examples: reads records in the place of documents; `rows` and `by_sentence` are then not used.

    Raises:
      ConfigError: `train.batch_size` is not divisible by `process_count`, or `data.heldout_path`
        is set where no records are read.
      DataError: what `documents` and `rows` raise, or fewer tokens than one batch.
    """
    if own_rows is None:
        count = _rows_per_process(cfg, process_count)
        own_rows = range(process_index * count, (process_index + 1) * count)
    prepare = prepare or causal
    if cfg.data.packing == "first_fit":
        _require_packed(cfg, rows, examples, "data.packing")
        rows = FittedRows
    if cfg.data.streaming:
        _require_packed(cfg, rows, examples, "data.streaming")
        return _open_stream(cfg, tokenizer, own_rows, prepare)
    if examples is not None:
        _require_no_mixture(cfg)
        corpus = examples(cfg, tokenizer, cache)
        _require_batch_of_rows(cfg, corpus.train)
        sides = {"": (corpus.train, corpus.heldout)}
    else:
        _require_one_path(cfg)
        corpus = _open_text(cfg, tokenizer, cache, by_sentence)
        _require_a_batch(cfg, corpus)
        parts = corpus.parts if isinstance(corpus, MixedCorpus) else {"": corpus}
        length = cfg.data.sequence_length
        sides = {n: (rows(p.train, length), rows(p.heldout, length)) for n, p in parts.items()}
    shares = list(corpus.shares.values()) if isinstance(corpus, MixedCorpus) else None
    train = {name: side[0] for name, side in sides.items()}
    heldout = {name: side[1] for name, side in sides.items()}
    return Data(
        train=train_batches(train, shares, cfg, own_rows, prepare),
        heldout=heldout_batches(heldout, cfg, own_rows, prepare),
        corpus=corpus,
        num_train_rows=sum(map(len, train.values())),
        batch_size=cfg.train.batch_size,
        sequence_length=cfg.data.sequence_length,
        num_rows_of={name: len(part) for name, part in train.items() if name},
    )


def _open_stream(cfg: Config, tokenizer: Tokenizer, own: Sequence[int], prepare: Prepare) -> Data:
    corpus, rows = open_streamed(cfg, tokenizer)
    seed, size = seed_for("objective", cfg.data.seed), cfg.train.batch_size

    def example(row: Any, number: int) -> Batch:
        return prepare(row, np.random.default_rng([seed, number]))

    heldout = PackedRows(corpus.heldout, cfg.data.sequence_length)
    return Data(
        train=StreamBatches(rows, size, own, example, stack),
        heldout=heldout_batches({"": heldout}, cfg, own, prepare),
        corpus=corpus,
        num_train_rows=None,
        batch_size=size,
        sequence_length=cfg.data.sequence_length,
    )


def _open_text(
    cfg: Config, tokenizer: Tokenizer, cache: Path, by_sentence: bool
) -> Corpus | MixedCorpus:
    if cfg.data.mixture:
        return open_mixture(cfg.data, tokenizer, cache, by_sentence=by_sentence)
    source = documents(cfg.data, cache)
    return open_corpus(source, tokenizer, cfg.data, cache, by_sentence=by_sentence)


def _rows_per_process(cfg: Config, process_count: int) -> int:
    rows, rest = divmod(cfg.train.batch_size, process_count)
    if rest:
        raise ConfigError(
            f"train.batch_size={cfg.train.batch_size} is not divisible by the {process_count} "
            f"processes; try {cfg.train.batch_size - rest or process_count} or "
            f"{cfg.train.batch_size - rest + process_count}"
        )
    return rows


def _require_one_path(cfg: Config) -> None:
    if cfg.data.heldout_path is not None:
        raise ConfigError(
            f"data.heldout_path={cfg.data.heldout_path} goes with objectives that learn from "
            f'records, and objective.name="{cfg.objective.name}" reads text; leave it out: '
            "data.heldout_fraction of the documents is held out"
        )


def _require_packed(cfg: Config, rows: MakeRows, examples: ReadExamples | None, field: str) -> None:
    if examples is not None or rows is not PackedRows:
        value = operator.attrgetter(field)(cfg)
        raise ConfigError(
            f"{field}={value} goes with objectives that read running text (causal, mlm, "
            f'prefix_lm), and objective.name="{cfg.objective.name}" makes its own rows; leave out '
            f"{field}"
        )


def _require_no_mixture(cfg: Config) -> None:
    if cfg.data.mixture:
        raise ConfigError(
            f'data.mixture is of texts, and objective.name="{cfg.objective.name}" learns from '
            "records; put the files in one folder and name it in data.path"
        )


def _require_a_batch(cfg: Config, corpus: Corpus | MixedCorpus) -> None:
    needed = cfg.train.batch_size * cfg.data.sequence_length
    if corpus.train.num_tokens < needed:
        raise DataError(
            f"the training documents have {corpus.train.num_tokens} tokens, one batch needs "
            f"{needed} (train.batch_size={cfg.train.batch_size} x "
            f"data.sequence_length={cfg.data.sequence_length}); give more text, or lower either"
        )


def _require_batch_of_rows(cfg: Config, train: ExampleRows) -> None:
    if len(train) < cfg.train.batch_size:
        raise DataError(
            f"the training examples make {len(train)} rows of data.sequence_length="
            f"{cfg.data.sequence_length} tokens, one batch needs train.batch_size="
            f"{cfg.train.batch_size}; give more examples, or lower either"
        )
