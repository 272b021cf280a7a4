"""The NumPy side of an objective: from a packed row to what the loss reads.

A `prepare` function takes `(row, rng)`: a row of what the objective's `rows` made of the corpus (a
`PackedRow`, if it says nothing) and a `numpy.random.Generator` that depends
on the seed and on the row's place in the run alone. It returns a `Batch` without the batch axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.config.schema import Config
from llmasos_jax.data import corruption, pairs
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.examples import Examples
from llmasos_jax.data.masking import Masker
from llmasos_jax.data.packing import PackedRow, TokenDocuments
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.data.tokenizers.vocabulary import Vocabulary
from llmasos_jax.errors import ConfigError

Prepare = Callable[[Any, np.random.Generator], Batch]
MakeRows = Callable[[TokenDocuments, int], Sequence[Any]]
ReadExamples = Callable[[Config, Tokenizer, Path], Examples]
_ENCODER_FIELDS = ("encoder_tokens", "encoder_segment_ids", "encoder_positions")


def causal(row: PackedRow, rng: np.random.Generator | None = None) -> Batch:
    """Each token predicts the next one of its own document.

        tokens    a b c | d e | .        the last token of a segment and padding weigh 0
        targets   b c 0 | e 0 | 0
        weights   1 1 0 | 1 0 | 0

    Args:
      row: arrays [..., T + 1].
      rng: not used; there is nothing random in it.

    Returns:
      A Batch of arrays [..., T].

    Example:
      >>> tokens, segments = np.array([7, 8, 9, 4, 0]), np.array([1, 1, 2, 2, 0])
      >>> batch = causal(PackedRow(tokens, segments, np.array([0, 1, 0, 1, 0])))
      >>> batch.targets.tolist(), batch.loss_weights.tolist()
      ([8, 0, 4, 0], [1.0, 0.0, 1.0, 0.0])
    """
    del rng
    here, after = row.segment_ids[..., :-1], row.segment_ids[..., 1:]
    is_scored = (here == after) & (here > 0)
    return Batch(
        tokens=row.tokens[..., :-1],
        targets=np.where(is_scored, row.tokens[..., 1:], 0),
        loss_weights=is_scored.astype(np.float32),
        segment_ids=here,
        positions=row.positions[..., :-1],
    )


def mlm(cfg: Config, vocabulary: Vocabulary) -> Prepare:
    """Masked tokens are found again from both sides (Devlin et al., 2018, arXiv 1810.04805).

    The model reads the first T of a packed row's T + 1 tokens; documents stay apart by their
    segments, as in a causal row. Special tokens and padding are never masked.

    Args:
      cfg: `objective` is read, see `llmasos_jax.data.masking`.
      vocabulary: of the tokenizer.

    Returns:
      `prepare(row, rng) -> Batch` with tokens, segment_ids, positions [T]; targets, loss_weights
      and extra["masked_positions"] (int32) [M], where M is `num_predictions(T, cfg.objective)`.

    Raises:
      ConfigError: the vocabulary has no mask.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> from llmasos_jax.data.packing import PackedRows
      >>> from llmasos_jax.data.tokenizers.vocabulary import stand_in
      >>> prepare = mlm(Config(ModelConfig(1000, 8, 1)), stand_in(1000))
      >>> row = PackedRows(TokenDocuments.from_lists([[1, 7, 8, 9, 2], [1, 5, 6, 2]]), 8)[0]
      >>> batch = prepare(row, np.random.default_rng(0))
      >>> batch.tokens.shape, batch.targets.shape, batch.loss_weights.tolist()
      ((8,), (2,), [1.0, 0.0])
    """
    masker = Masker(vocabulary, cfg.objective)
    is_special_v = vocabulary.is_special_v()

    def prepare(row: PackedRow, rng: np.random.Generator) -> Batch:
        segment_ids = row.segment_ids[:-1]
        tokens = np.where(segment_ids > 0, row.tokens[:-1], vocabulary.pad_id)
        begins = row.positions[:-1] == 0
        masked = masker(tokens, (segment_ids > 0) & ~is_special_v[tokens], rng, begins)
        return Batch(
            tokens=masked.tokens,
            targets=masked.targets,
            loss_weights=masked.weights,
            segment_ids=segment_ids,
            positions=row.positions[:-1],
            extra={"masked_positions": masked.positions},
        )

    return prepare


def mlm_pairs(cfg: Config, vocabulary: Vocabulary, order: bool) -> tuple[MakeRows, Prepare]:
    """Masked tokens in two texts, and whether the second follows the first.

        tokens       [CLS] a a [SEP] b b b [SEP] [PAD]      masked as in `mlm`
        token_types    0   0 0   0   1 1 1   1     0

    Args:
      cfg: `objective`, `data.sequence_length` and `data.seed` are read.
      vocabulary: of the tokenizer.
      order: False for next sentence prediction, True for sentence order prediction; see
        `llmasos_jax.data.pairs`.

    Returns:
      `rows` of a corpus by sentence, and `prepare(row, rng) -> Batch`, whose fields are those of
      `mlm` and extra["token_types"] (int32 [T]) and extra["next_sentence"] (int32 []: 0 where B
      follows A). A row of padding alone has segment_ids 0 throughout; its label is none.

    Raises:
      ConfigError: the vocabulary has no mask, no [CLS] or no [SEP], or the sequence is too short.
    """
    masker = Masker(vocabulary, cfg.objective)
    is_special_v = vocabulary.is_special_v()
    pick = pairs.sentence_order_pair if order else pairs.next_sentence_pair
    cls_id, sep_id = _pair_ids(cfg, vocabulary)
    pairs.require_length(cfg.data.sequence_length)

    def rows(documents: TokenDocuments, sequence_length: int) -> pairs.PairRows:
        fraction, seed = cfg.objective.short_fraction, cfg.data.seed
        made = pairs.PairRows(documents, sequence_length, short_fraction=fraction, seed=seed)
        if not order:
            pairs.require_other_documents(made)
        return made

    def prepare(row: pairs.PairRow, rng: np.random.Generator) -> Batch:
        pair = pick(row, rng)
        text = np.concatenate([[cls_id], pair.a, [sep_id], pair.b, [sep_id]])
        size = row.rows.max_tokens + pairs.SPECIALS
        tokens, segment_ids, positions = _filled(text, size, vocabulary.pad_id)
        types = np.zeros(size, dtype=np.int32)
        types[len(pair.a) + 2 : len(text)] = 1
        masked = masker(tokens, (segment_ids > 0) & ~is_special_v[tokens], rng)
        return Batch(
            tokens=masked.tokens,
            targets=masked.targets,
            loss_weights=masked.weights,
            segment_ids=segment_ids,
            positions=positions,
            extra={
                "masked_positions": masked.positions,
                "token_types": types,
                "next_sentence": np.array(pair.label, dtype=np.int32),
            },
        )

    return rows, prepare


def _pair_ids(cfg: Config, vocabulary: Vocabulary) -> tuple[int, int]:
    """What stands before a pair of texts, and after each of them."""
    cls_id, sep_id = vocabulary.cls_id, vocabulary.sep_id
    if cls_id is None or sep_id is None:
        missing = "[CLS] (or another that begins a text)" if cls_id is None else "[SEP] (or </s>)"
        raise ConfigError(
            f'objective.name="{cfg.objective.name}" takes a tokenizer with {missing}, this one has '
            'none; train one with tokenizer.kind="tokenizers" and model_type="wordpiece", or load '
            "one that has it"
        )
    return cls_id, sep_id


def prefix_lm(cfg: Config, vocabulary: Vocabulary) -> Prepare:
    """The rest of each text is predicted after a part that is read in both directions.

        tokens    a b c d | e f g        prefixes of 2 and 1 tokens, drawn for each segment
        prefix    1 1 0 0 | 1 0 0
        targets   0 c d 0 | f g 0        the last token of a prefix predicts the first after it

    A segment of n tokens of the row (its T + 1st counts) has a prefix of 1 to n - 1, each as
    likely as the others.

    Args:
      cfg: not read.
      vocabulary: not read.

    Returns:
      `prepare(row, rng) -> Batch` of arrays [T], with extra["prefix"] (int32, 1 on prefixes).

    References:
      Raffel et al., 2019, arXiv 1910.10683, section 3.2.1.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> from llmasos_jax.data.packing import PackedRows
      >>> from llmasos_jax.data.tokenizers.vocabulary import stand_in
      >>> prepare = prefix_lm(Config(ModelConfig(1000, 8, 1)), stand_in(1000))
      >>> row = PackedRows(TokenDocuments.from_lists([[7, 8], [4, 5]]), 4)[0]
      >>> batch = prepare(row, np.random.default_rng(0))
      >>> batch.extra["prefix"].tolist(), batch.targets.tolist()
      ([1, 0, 1, 0], [8, 0, 5, 0])
    """
    del cfg, vocabulary

    def prepare(row: PackedRow, rng: np.random.Generator) -> Batch:
        batch = causal(row)
        lengths = np.bincount(row.segment_ids)
        prefix_lengths = 1 + (rng.random(lengths.size) * np.maximum(lengths - 1, 0)).astype(int)
        is_prefix = row.positions < prefix_lengths[row.segment_ids]
        is_scored = (batch.loss_weights > 0) & ~is_prefix[1:]
        return Batch(
            tokens=batch.tokens,
            targets=np.where(is_scored, batch.targets, 0),
            loss_weights=is_scored.astype(np.float32),
            segment_ids=batch.segment_ids,
            positions=batch.positions,
            extra={"prefix": (is_prefix & (row.segment_ids > 0))[:-1].astype(np.int32)},
        )

    return prepare


def span_corruption(cfg: Config, vocabulary: Vocabulary) -> tuple[MakeRows, Prepare]:
    """An encoder-decoder writes what is missing (Raffel et al., 2019, arXiv 1910.10683).

    Args:
      cfg: `objective` (`mask_rate`, `span_length`) and `data.sequence_length` are read; see
        `llmasos_jax.data.corruption`.
      vocabulary: of the tokenizer.

    Returns:
      `rows`, and `prepare(row, rng) -> Batch`: tokens (the targets shifted right, after `pad_id`),
      targets, loss_weights, segment_ids, positions [T], where T is the decoder's length, and
      extra["encoder_tokens"], ["encoder_segment_ids"], ["encoder_positions"] (int32 [S]), where S
      is `data.sequence_length`.

    Raises:
      ConfigError: the vocabulary has no id that ends a text, or fewer sentinels than a row has
        spans; the sequence is too short, or the decoder's is longer than `model.context_length`.
    """
    lengths = corruption.corrupted_lengths(cfg.data.sequence_length, cfg.objective)
    if lengths.decoder > cfg.model.context_length:
        raise ConfigError(
            f"the decoder writes {lengths.decoder} tokens for data.sequence_length="
            f"{cfg.data.sequence_length} and objective.mask_rate={cfg.objective.mask_rate}, more "
            f"than model.context_length={cfg.model.context_length}; raise the context, shorten the "
            "sequence or lower the rate"
        )
    sentinels = np.array(vocabulary.sentinel_ids, dtype=np.int32)
    end_id = vocabulary.sep_id
    if end_id is None or len(sentinels) < lengths.spans:
        raise ConfigError(
            f'objective.name="{cfg.objective.name}" takes a tokenizer with an end token and, for '
            f"data.sequence_length={cfg.data.sequence_length}, {lengths.spans} sentinels "
            f"(<extra_id_0>, ...); this one has {'no' if end_id is None else 'an'} end and "
            f"{len(sentinels)} sentinels: load T5's, train one that has them, or shorten the row"
        )
    ends = tuple(i for i in (vocabulary.cls_id, end_id) if i is not None)

    def rows(documents: TokenDocuments, sequence_length: int) -> corruption.TextRows:
        text = corruption.corrupted_lengths(sequence_length, cfg.objective).text
        return corruption.TextRows(documents, text, ends)

    def prepare(row: np.ndarray, rng: np.random.Generator) -> Batch:
        is_noise = corruption.draw_spans(len(row), cfg.objective, rng)
        read, written = corruption.corrupt(row, is_noise, sentinels, end_id)
        encoder = _filled(read, lengths.encoder, vocabulary.pad_id)
        targets, segment_ids, positions = _filled(written, lengths.decoder, 0)
        tokens = np.full(lengths.decoder, vocabulary.pad_id, dtype=np.int32)
        tokens[1 : len(written)] = written[:-1]
        return Batch(
            tokens=tokens,
            targets=targets,
            loss_weights=segment_ids.astype(np.float32),
            segment_ids=segment_ids,
            positions=positions,
            extra=dict(zip(_ENCODER_FIELDS, encoder, strict=True)),
        )

    return rows, prepare


def _filled(tokens: np.ndarray, size: int, pad_id: int) -> tuple[np.ndarray, ...]:
    """Tokens with padding after them, their segment ids (1, then 0) and positions."""
    filled = np.full(size, pad_id, dtype=np.int32)
    segment_ids, positions = np.zeros((2, size), dtype=np.int32)
    count = len(tokens)
    filled[:count], segment_ids[:count], positions[:count] = tokens, 1, np.arange(count)
    return filled, segment_ids, positions
