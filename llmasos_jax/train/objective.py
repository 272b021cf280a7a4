"""What a model learns: how a batch is prepared (NumPy) and what loss it has (JAX)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from llmasos_jax.config.named import resolve
from llmasos_jax.config.schema import Config
from llmasos_jax.data import objectives
from llmasos_jax.data.packing import PackedRows
from llmasos_jax.data.records import labels as labelled_rows
from llmasos_jax.data.records.packed import next_scored
from llmasos_jax.data.records.preferences import pair_batch, read_preferences, stand_in_pairs
from llmasos_jax.data.records.sft import read_conversations, stand_in_rows
from llmasos_jax.data.tokenizers.vocabulary import Vocabulary, stand_in
from llmasos_jax.errors import ConfigError
from llmasos_jax.train.distill import distill_loss
from llmasos_jax.train.labels import LOSSES, check_labelled
from llmasos_jax.train.masked import masked_loss, row_weights
from llmasos_jax.train.preference import dpo_loss, pair_log_probs
from llmasos_jax.train.sequence import causal_loss, prefix_loss, span_corruption_loss
from llmasos_jax.train.sums import LossSum as LossSum
from llmasos_jax.train.sums import Term as Term

TOKENS = ("tokens", "targets", "loss_weights", "segment_ids", "positions")
# Targets and their weights stand at the masked places, [B, M].
_MASKED = ("tokens", "segment_ids", "positions", "extra.token_types")


@dataclass(frozen=True)
class Objective:
    """A training objective.

    Attributes:
      prepare: the NumPy side, from a row to a `Batch` (see `llmasos_jax.data.objectives`).
      loss: `(model, batch, runtime, dropout) -> LossSum`, where `model` is a bound Transformer,
        `batch` a `Batch` of arrays [B, T], `runtime` a `Runtime`, and `dropout` what
        `Transformer.hidden` takes (None: no dropout).
      rows: from a corpus and `data.sequence_length` to its rows; the default is `PackedRows`, which
        cuts it into rows of one length.
      examples: for an objective that learns from records, `(config, tokenizer, cache) -> Examples`
        reads them; `rows` then only has to give a row of the same shapes for any text. None: the
        run reads a corpus.
      reference: for an objective that stays near the base of a fine-tuning run: `(model, batch,
        runtime) -> float32 [B, 2]`, what the base says of each row of preferences; asked once,
        before the first step (`train/reference.py`).
      has_teacher: whether the loss takes `teacher=`, a `train.placed.Teacher`: the model that
        `finetune.teacher` names.
      by_sentence: whether the corpus keeps where sentences end, and has no special tokens.
      term_weights: for a loss that has `LossSum.terms`: `(batch) -> {term: weight}`, the same
        weights as the loss will give, from the batch alone. With them the gradient is that of the
        sum of all means over the global batch, on any mesh and in any number of parts; the weight
        of the tokens is then the sum of `batch.loss_weights`.
      token_fields: the arrays of the batch with an axis T after B, which `mesh.context` cuts; those
        of `extra` as "extra.NAME". All others are whole on each device that shares a row. The loss
        is then summed over devices that have parts of a row: it has to count what it does not cut
        on one of them alone (`llmasos_jax.nn.context.once`).

    Example:
      Kept outside the package and named `"my_module:objective"` in `config.objective.name`:

      >>> def loss(model, batch, runtime, dropout):
      ...     ...
      >>> objective = Objective(prepare=objectives.causal, loss=loss)
    """

    prepare: objectives.Prepare
    loss: Callable[..., LossSum]
    rows: objectives.MakeRows = PackedRows
    examples: objectives.ReadExamples | None = None
    reference: Callable[..., jax.Array] | None = None
    has_teacher: bool = False
    by_sentence: bool = False
    term_weights: Callable[[Any], Mapping[str, jax.Array]] | None = None
    token_fields: tuple[str, ...] = TOKENS


def causal(cfg: Config, vocabulary: Vocabulary) -> Objective:
    """Predicts each token from those before it."""
    del vocabulary
    _require_decoder(cfg)
    return Objective(prepare=objectives.causal, loss=causal_loss(cfg))


def mlm(cfg: Config, vocabulary: Vocabulary) -> Objective:
    """Predicts masked tokens from both sides."""
    _require_encoder(cfg)
    _require(
        not cfg.model.next_sentence,
        cfg,
        "does not train the scores of sentence pairs, and "
        + (
            'the base has them; set objective.name="mlm_nsp", which trains both'
            if cfg.finetune.base is not None
            else 'model.next_sentence=True; set objective.name="mlm_nsp", or '
            "model.next_sentence=False and model.pooler=False"
        ),
    )
    prepare = objectives.mlm(cfg, vocabulary)
    return Objective(prepare=prepare, loss=masked_loss(cfg), token_fields=_MASKED)


def mlm_nsp(cfg: Config, vocabulary: Vocabulary) -> Objective:
    """Masked tokens, and whether the second sentence follows the first or is from elsewhere."""
    return _with_pairs(cfg, vocabulary, "nsp")


def mlm_sop(cfg: Config, vocabulary: Vocabulary) -> Objective:
    """Masked tokens, and whether two neighbouring sentences stand in their order."""
    return _with_pairs(cfg, vocabulary, "sop")


def _with_pairs(cfg: Config, vocabulary: Vocabulary, term: str) -> Objective:
    _require_encoder(cfg)
    _require(
        cfg.model.next_sentence,
        cfg,
        "scores pairs of sentences, and model.next_sentence=False; set model.pooler=True and "
        'model.next_sentence=True, or objective.name="mlm"',
    )
    _require(
        cfg.model.token_types >= 2,
        cfg,
        "tells two sentences apart by token types 0 and 1, and model.token_types="
        f'{cfg.model.token_types}; set it to 2, or objective.name="mlm"',
    )
    rows, prepare = objectives.mlm_pairs(cfg, vocabulary, order=term == "sop")
    return Objective(
        prepare=prepare,
        loss=masked_loss(cfg, pairs=term),
        rows=rows,
        by_sentence=True,
        term_weights=lambda batch: {term: jnp.sum(row_weights(batch.segment_ids))},
        token_fields=_MASKED,
    )


def prefix_lm(cfg: Config, vocabulary: Vocabulary) -> Objective:
    """Predicts each token after a prefix, which is read in both directions."""
    _require(
        cfg.model.prefix_lm,
        cfg,
        "reads the first part of a text in both directions, and model.prefix_lm=False; set "
        'model.prefix_lm=True, or objective.name="causal"',
    )
    return Objective(
        prepare=objectives.prefix_lm(cfg, vocabulary),
        loss=prefix_loss(cfg),
        token_fields=(*TOKENS, "extra.prefix"),
    )


def span_corruption(cfg: Config, vocabulary: Vocabulary) -> Objective:
    """An encoder reads a text with holes, the decoder writes what was in them."""
    _require(
        cfg.model.encoder.num_layers > 0,
        cfg,
        "needs an encoder, and model.encoder.num_layers=0; set it, or "
        'objective.name="causal" for a decoder and "mlm" for an encoder alone',
    )
    rows, prepare = objectives.span_corruption(cfg, vocabulary)
    return Objective(prepare=prepare, loss=span_corruption_loss(cfg), rows=rows)


def labelled(cfg: Config, vocabulary: Vocabulary) -> Objective:
    """Learns the label of a text, of its words, a score, or which texts are alike."""
    del vocabulary
    check_labelled(cfg)
    by_word = ("targets", "loss_weights") if cfg.objective.name == "classify_tokens" else ()
    return Objective(
        prepare=labelled_rows.prepare(cfg),
        loss=LOSSES[cfg.objective.name](cfg),
        rows=labelled_rows.empty_rows,
        examples=labelled_rows.read_examples,
        token_fields=("tokens", "segment_ids", "positions", "extra.token_types", *by_word),
    )


def sft(cfg: Config, vocabulary: Vocabulary) -> Objective:
    """Predicts the assistant's tokens of conversations, each from all before it."""
    del vocabulary
    _require_decoder(cfg)
    return Objective(
        prepare=next_scored,
        loss=causal_loss(cfg),
        rows=stand_in_rows,
        examples=read_conversations,
    )


def distill(cfg: Config, vocabulary: Vocabulary) -> Objective:
    """Predicts the assistant's tokens, and what a teacher makes of the ways to go on."""
    _require_decoder(cfg)
    _require(
        cfg.finetune.teacher is not None,
        cfg,
        "imitates a larger model, and finetune.teacher is not set; set it to one with the base's "
        'tokenizer, or objective.name="sft"',
    )
    num_tokens = vocabulary.num_tokens or vocabulary.size
    return Objective(
        prepare=next_scored,
        loss=distill_loss(cfg, num_tokens),
        rows=stand_in_rows,
        examples=read_conversations,
        has_teacher=True,
    )


def dpo(cfg: Config, vocabulary: Vocabulary) -> Objective:
    """Makes the better of two answers likelier than the other one, from where the model began."""
    del vocabulary
    _require_decoder(cfg)
    _require(
        cfg.mesh.context == 1,
        cfg,
        f"adds up each answer's tokens on one device, and mesh.context={cfg.mesh.context} splits "
        "them; set it to 1",
    )
    _require(
        cfg.objective.z_loss == 0,
        cfg,
        f"has no z-loss, and objective.z_loss={cfg.objective.z_loss}; set it to 0",
    )
    return Objective(
        prepare=pair_batch,
        loss=dpo_loss(cfg),
        rows=stand_in_pairs,
        examples=read_preferences,
        reference=partial(pair_log_probs, cfg),
    )


TABLE: Mapping[str, Callable[[Config, Vocabulary], Objective]] = {
    "causal": causal,
    "distill": distill,
    "dpo": dpo,
    "mlm": mlm,
    "mlm_nsp": mlm_nsp,
    "mlm_sop": mlm_sop,
    "prefix_lm": prefix_lm,
    "sft": sft,
    "span_corruption": span_corruption,
    **dict.fromkeys(LOSSES, labelled),
}


# Objectives whose targets are no single token or label, or that are made of more than those.
_UNSMOOTHED = ("distill", "dpo", "regress", "similarity")


def _check_smoothing(cfg: Config) -> None:
    name, smoothing = cfg.objective.name, cfg.objective.label_smoothing
    _require(
        smoothing == 0 or name not in _UNSMOOTHED,
        cfg,
        f"has no labels to smooth, and objective.label_smoothing={smoothing}; set it to 0",
    )


# Objectives that read what finetune.method="head" moves.
_OF_HEADS = ("classify", "classify_tokens", "regress", "mlm_nsp", "mlm_sop")


def _check_head(cfg: Config) -> None:
    """Refuses to move heads alone where the loss reads none, so that nothing would be learned."""
    name, is_head = cfg.objective.name, cfg.finetune.method == "head"
    if cfg.finetune.base is None or not is_head or name in _OF_HEADS:
        return
    if name in TABLE or not (cfg.model.classifier.labels or cfg.model.pooler):
        what = "reads neither" if name in TABLE else "has a model with neither"
        raise ConfigError(
            f'finetune.method="head" moves classifier and pooler alone, and objective.name="{name}"'
            f' {what}; set finetune.method="lora" or "full"'
        )


def _require_decoder(cfg: Config) -> None:
    model = cfg.model
    _require(
        model.causal,
        cfg,
        "predicts each token from those before it, and with model.causal=False it would see them "
        'all; set model.causal=True, or objective.name="mlm"',
    )
    _require(
        not model.encoder.num_layers,
        cfg,
        f"has no text for an encoder, and model.encoder.num_layers={model.encoder.num_layers}; set "
        'it to 0, or objective.name="span_corruption"',
    )
    _require(
        not model.prefix_lm,
        cfg,
        "never shows a prefix in both directions, as model.prefix_lm=True reads prompts; set "
        'objective.name="prefix_lm", or model.prefix_lm=False',
    )


def _require_encoder(cfg: Config) -> None:
    _require(
        not cfg.model.causal,
        cfg,
        "predicts masked tokens from both sides, and model.causal=True sees one; set "
        'model.causal=False, or objective.name="causal"',
    )
    _require(
        cfg.model.head is not None,
        cfg,
        "needs an output layer, and "
        + (
            "the base has none; take a base with one (transformers' ...ForMaskedLM), or learn from "
            'labelled texts or pairs (objective.name="classify", "similarity")'
            if cfg.finetune.base is not None
            else 'model.head=None; set model.head="mlm" or "linear"'
        ),
    )


def _require(is_met: bool, cfg: Config, what: str) -> None:
    if not is_met:
        raise ConfigError(f'objective.name="{cfg.objective.name}" {what}')


def build_objective(cfg: Config, vocabulary: Vocabulary | None = None) -> Objective:
    """Returns the objective that a config names.

    Args:
      cfg: `objective.name` is a key of `TABLE`, or `"package.module:name"` of an `Objective`, or
        of a function `(Config, Vocabulary) -> Objective`.
      vocabulary: what the tokenizer's ids are; None is a stand-in of `model.vocab_size` ids, enough
        to compile the loss, whose shapes do not depend on it.

    Raises:
      ConfigError: no such objective, the name points to something else, it does not learn from a
        teacher, and there is one, or it reads no head, and heads alone move.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> build_objective(Config(ModelConfig(100, 64, 1))).loss.__name__
      'loss'
    """
    vocabulary = stand_in(cfg.model.vocab_size) if vocabulary is None else vocabulary
    found: Any = resolve(cfg.objective.name, TABLE, "objective.name")
    if callable(found) and not isinstance(found, Objective):
        found = found(cfg, vocabulary)
    if not isinstance(found, Objective):
        raise ConfigError(
            f'objective.name="{cfg.objective.name}" gives a {type(found).__name__}; it has to '
            "be a llmasos_jax.train.objective.Objective, or a function (Config, Vocabulary) to one"
        )
    _check_head(cfg)
    _check_smoothing(cfg)
    if cfg.finetune.teacher is not None and not found.has_teacher:
        raise ConfigError(
            f'finetune.teacher="{cfg.finetune.teacher}" is not asked anything by objective.name='
            f'"{cfg.objective.name}"; set objective.name="distill", or leave out the teacher'
        )
    return found
