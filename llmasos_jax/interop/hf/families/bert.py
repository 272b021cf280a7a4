"""BERT, RoBERTa and XLM-RoBERTa: the trunk."""

from __future__ import annotations

from functools import partial

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.hf.families.plain import GPT, OURS, PLAIN, norm, product
from llmasos_jax.interop.rows import OUT_OF_HEADS, PRODUCT, SAME, VECTOR, Same
from llmasos_jax.interop.tables import Ignored, Row, Table, row

_PARTS = {"q": "query", "k": "key", "v": "value"}
_CLS = (
    r"cls\.(seq_relationship\.(weight|bias)|predictions\.(bias|decoder\.(weight|bias)|"
    r"transform\.(dense|LayerNorm)\.(weight|bias|gamma|beta)))"
)
_LM_HEAD = r"lm_head\.(bias|(decoder|dense|layer_norm)\.(weight|bias))"
_HEAD = "heads of encoders are not part of the trunk, which is all that is read so far"


def _norm(ours: str, theirs: str) -> tuple[Row, ...]:
    """A LayerNorm, in today's names or in those of the checkpoints of 2018."""
    gamma = (
        row(f"{ours}.scale", f"{theirs}.gamma", VECTOR),
        row(f"{ours}.bias", f"{theirs}.beta", VECTOR),
    )
    return (*norm(ours, theirs), *gamma)


def _table(body: str, positions: Same, heads: tuple[str, ...]) -> Table:
    """The table of the trunk.

    Args:
      body: what its names begin with.
      positions: how rows of the position table count.
      heads: patterns of the names of heads.
    """
    layer = body + "encoder.layer.{i}."
    theirs = f"{layer}attention."
    rows = (
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
    start = body.replace(".", r"\.")
    ignored = (
        Ignored(rf"{start}embeddings\.(position|token_type)_ids", "they count, or are zero"),
        Ignored(rf"{start}pooler\.dense\.(weight|bias)", _HEAD),
        *(Ignored(head, _HEAD) for head in heads),
    )
    return Table(rows, ignored)


_BERT = _table("bert.", SAME, (_CLS,))
# Positions count from 2, after the id of padding; nothing reads the two rows before.
_ROBERTA = _table("roberta.", Same(dropped=2), (_LM_HEAD,))


def _read_bert(keys: Keys, vocab_size: int = 30522) -> ModelConfig:
    keys.inert(
        *(f"pooler_{key}" for key in ("fc_size", "num_attention_heads", "num_fc_layers", "type")),
        *("pooler_size_per_head", "tie_word_embeddings"),
        why="for heads",
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


def _read_roberta(keys: Keys, vocab_size: int) -> ModelConfig:
    keys.only("pad_token_id", 1, why="positions count from 2, the id of padding plus one")
    cfg = _read_bert(keys, vocab_size)
    if cfg.context_length < 3:
        raise keys.error("max_position_embeddings", "must be above 2: positions count from 2")
    return cfg.replace(context_length=cfg.context_length - 2)


FAMILIES = (
    Family(
        "BERT",
        "bert",
        ("BertForPreTraining", "BertForMaskedLM", "BertForNextSentencePrediction", "BertModel"),
        _read_bert,
        lambda _: _BERT,
        base_prefix="bert.",
        outside=("cls.",),
    ),
    Family(
        "RoBERTa",
        "roberta",
        ("RobertaForMaskedLM", "RobertaModel"),
        partial(_read_roberta, vocab_size=50265),
        lambda _: _ROBERTA,
        base_prefix="roberta.",
    ),
    Family(
        "RoBERTa",
        "xlm-roberta",
        ("XLMRobertaForMaskedLM", "XLMRobertaModel"),
        partial(_read_roberta, vocab_size=30522),
        lambda _: _ROBERTA,
        base_prefix="roberta.",
    ),
)
