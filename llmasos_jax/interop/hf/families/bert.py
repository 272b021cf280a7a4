"""BERT, RoBERTa and XLM-RoBERTa, with their heads."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families.encoder import (
    class_of,
    label_keys,
    linear,
    name_in,
    output_ignored,
    output_rows,
    saved_class,
    untied_output_rows,
    with_heads,
)
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.hf.families.plain import GPT, OURS, PLAIN, norm, product
from llmasos_jax.interop.rows import OUT_OF_HEADS, PRODUCT, SAME, VECTOR, Same
from llmasos_jax.interop.tables import Ignored, Row, Table, row

_PARTS = {"q": "query", "k": "key", "v": "value"}


def _norm(ours: str, theirs: str) -> tuple[Row, ...]:
    """A LayerNorm, in today's names or in those of the checkpoints of 2018."""
    gamma = (
        row(f"{ours}.scale", f"{theirs}.gamma", VECTOR),
        row(f"{ours}.bias", f"{theirs}.beta", VECTOR),
    )
    return (*norm(ours, theirs), *gamma)


def _trunk(body: str, positions: Same) -> tuple[Row, ...]:
    """The rows of embeddings and blocks.

    Args:
      body: what their names begin with.
      positions: how rows of the position table count.
    """
    layer = body + "encoder.layer.{i}."
    theirs = f"{layer}attention."
    return (
        row("embed.table", f"{body}embeddings.word_embeddings.weight", SAME),
        row("embed.positions", f"{body}embeddings.position_embeddings.weight", positions),
        row("embed.types", f"{body}embeddings.token_type_embeddings.weight", SAME),
        *_norm("embed.norm", f"{body}embeddings.LayerNorm"),
        *(row(f"{OURS}attn.{p}", f"{theirs}self.{n}.weight", PRODUCT) for p, n in _PARTS.items()),
        *(row(f"{OURS}attn.{p}_bias", f"{theirs}self.{n}.bias", VECTOR) for p, n in _PARTS.items()),
        *product("attn.o", f"{theirs}output.dense", OUT_OF_HEADS),
        *_norm(f"{OURS}attn_post_norm", f"{theirs}output.LayerNorm"),
        *product("mlp.up", f"{layer}intermediate.dense", PRODUCT),
        *product("mlp.down", f"{layer}output.dense", PRODUCT),
        *_norm(f"{OURS}mlp_post_norm", f"{layer}output.LayerNorm"),
    )


def _counted(body: str) -> Ignored:
    start = body.replace(".", r"\.")
    return Ignored(rf"{start}embeddings\.(position|token_type)_ids", "they count, or are zero")


_CLS = ("cls.predictions.decoder", "cls.predictions.bias")
_LM_HEAD = ("lm_head.decoder", "lm_head.bias")
_TABLE_OF_BERT = "bert.embeddings.word_embeddings.weight"
_TABLE_OF_ROBERTA = "roberta.embeddings.word_embeddings.weight"
# The classifier of a sequence has a product and tanh of its own in front: what a pooler is.
_INSTEAD = Ignored(
    r"roberta\.pooler\.dense\.(weight|bias)", "the classifier reads classifier.dense in its place"
)


@functools.cache
def _bert_table(is_tied: bool) -> Table:
    output = output_rows if is_tied else untied_output_rows
    rows = (
        *_trunk("bert.", SAME),
        *linear("head.transform", "cls.predictions.transform.dense"),
        *_norm("head.norm", "cls.predictions.transform.LayerNorm"),
        *output(*_CLS),
        *linear("pooler", "bert.pooler.dense"),
        *linear("next_sentence", "cls.seq_relationship"),
        *linear("classifier", "classifier"),
    )
    return Table(rows, (_counted("bert."), *output_ignored(*_CLS, _TABLE_OF_BERT)))


@functools.cache
def _roberta_table(is_tied: bool, is_sequence: bool) -> Table:
    output = output_rows if is_tied else untied_output_rows
    pooler = "classifier.dense" if is_sequence else "roberta.pooler.dense"
    rows = (
        # Positions count from 2, after the id of padding; nothing reads the two rows before.
        *_trunk("roberta.", Same(dropped=2)),
        *linear("head.transform", "lm_head.dense"),
        *norm("head.norm", "lm_head.layer_norm"),
        *output(*_LM_HEAD),
        *linear("pooler", pooler),
        *linear("classifier", "classifier.out_proj" if is_sequence else "classifier"),
    )
    ignored = (_counted("roberta."), *output_ignored(*_LM_HEAD, _TABLE_OF_ROBERTA))
    return Table(rows, (*ignored, _INSTEAD) if is_sequence else ignored)


def _bert(cfg: ModelConfig) -> Table:
    return _bert_table(cfg.tie_embeddings)


def _roberta(cfg: ModelConfig) -> Table:
    is_sequence = bool(cfg.classifier.labels) and cfg.classifier.level == "sequence"
    return _roberta_table(cfg.tie_embeddings, is_sequence)


def _read_trunk(keys: Keys, vocab_size: int) -> ModelConfig:
    keys.inert(
        *(f"pooler_{key}" for key in ("fc_size", "num_attention_heads", "num_fc_layers", "type")),
        "pooler_size_per_head",
        why="of a pooler that no class of transformers has",
    )
    keys.inert("directionality", why="every BERT reads both ways")
    keys.only("is_decoder", False, why="it reads both ways")
    keys.only("position_embedding_type", "absolute", why="positions are learned")
    return ModelConfig(
        vocab_size=keys.integer("vocab_size", vocab_size),
        embedding_dim=keys.integer("hidden_size", 768),
        num_layers=keys.integer("num_hidden_layers", 12),
        num_heads=keys.integer("num_attention_heads", 12),
        context_length=keys.integer("max_position_embeddings", 512),
        ffn_dim=keys.integer("intermediate_size", 3072),
        causal=False,
        head=None,
        norm_eps=keys.number("layer_norm_eps", 1e-12),
        norm_placement="post",
        final_norm=False,
        embedding_norm=True,
        token_types=keys.integer("type_vocab_size", 2),
        position="learned",
        mlp=keys.choice("hidden_act", PLAIN, "gelu"),
        **GPT,
    )


def _read_bert(keys: Keys) -> ModelConfig:
    return with_heads(
        _read_trunk(keys, 30522),
        keys,
        output="cls.predictions.",
        pooler="bert.pooler.",
        next_sentence="cls.seq_relationship.",
    )


def _read_roberta(keys: Keys, vocab_size: int) -> ModelConfig:
    keys.only("pad_token_id", 1, why="positions count from 2, the id of padding plus one")
    trunk = _read_trunk(keys, vocab_size)
    if trunk.context_length < 3:
        raise keys.error("max_position_embeddings", "must be above 2: positions count from 2")
    trunk = trunk.replace(context_length=trunk.context_length - 2)
    cfg = with_heads(trunk, keys, output="lm_head.", pooler="roberta.pooler.")
    if cfg.head is not None and cfg.mlp != "gelu":
        raise keys.error("hidden_act", f"differs from the gelu of {saved_class(keys)}'s lm_head")
    return cfg


def _write_trunk(cfg: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.embedding_dim,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.query_heads,
        "max_position_embeddings": cfg.context_length,
        "intermediate_size": cfg.ffn_width,
        "layer_norm_eps": cfg.norm_eps,
        # A table without rows is no BERT's; what then reads back differently is refused.
        "type_vocab_size": max(1, cfg.token_types),
        "hidden_act": name_in(PLAIN, cfg.mlp),
        "tie_word_embeddings": cfg.tie_embeddings,
        **label_keys(cfg),
    }


def _write_bert(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    return {
        "architectures": [class_of(cfg, "Bert")],
        "model_type": "bert",
        **_write_trunk(cfg),
    }


def _write_roberta(manifest: Manifest, stem: str, model_type: str) -> dict[str, Any]:
    cfg = manifest.parameters
    return {
        "architectures": [class_of(cfg, stem)],
        "model_type": model_type,
        **_write_trunk(cfg),
        "max_position_embeddings": cfg.context_length + 2,
        "pad_token_id": 1,
    }


def _classes(name: str, *tasks: str) -> tuple[str, ...]:
    ends = (*(f"For{task}" for task in tasks), "Model")
    return tuple(name + end for end in ends)


_TASKS = ("MaskedLM", "SequenceClassification", "TokenClassification")
_HEADS = ("lm_head.", "classifier.")

FAMILIES = (
    Family(
        "BERT",
        "bert",
        _classes("Bert", "PreTraining", "NextSentencePrediction", *_TASKS),
        _read_bert,
        _bert,
        base_prefix="bert.",
        outside=("cls.", "classifier."),
        write_config=_write_bert,
    ),
    Family(
        "RoBERTa",
        "roberta",
        _classes("Roberta", *_TASKS),
        partial(_read_roberta, vocab_size=50265),
        _roberta,
        base_prefix="roberta.",
        outside=_HEADS,
        write_config=partial(_write_roberta, stem="Roberta", model_type="roberta"),
    ),
    Family(
        "RoBERTa",
        "xlm-roberta",
        _classes("XLMRoberta", *_TASKS),
        partial(_read_roberta, vocab_size=30522),
        _roberta,
        base_prefix="roberta.",
        outside=_HEADS,
        write_config=partial(_write_roberta, stem="XLMRoberta", model_type="xlm-roberta"),
    ),
)
