"""DistilBERT: BERT without token types and pooler (Sanh et al., 2019, arXiv 1910.01108)."""

from __future__ import annotations

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
    with_heads,
)
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.hf.families.plain import GPT, OURS, PLAIN, norm, product
from llmasos_jax.interop.rows import OUT_OF_HEADS, PRODUCT, SAME, VECTOR
from llmasos_jax.interop.tables import Ignored, Table, row

_BODY = "distilbert."
_LAYER = _BODY + "transformer.layer.{i}."
_EMBEDDING = f"{_BODY}embeddings.word_embeddings.weight"
_EPS = 1e-12  # no key says another one

_TABLE = Table(
    (
        row("embed.table", _EMBEDDING, SAME),
        row("embed.positions", f"{_BODY}embeddings.position_embeddings.weight", SAME),
        *norm("embed.norm", f"{_BODY}embeddings.LayerNorm"),
        *(row(f"{OURS}attn.{p}", f"{_LAYER}attention.{p}_lin.weight", PRODUCT) for p in "qkv"),
        *(row(f"{OURS}attn.{p}_bias", f"{_LAYER}attention.{p}_lin.bias", VECTOR) for p in "qkv"),
        *product("attn.o", f"{_LAYER}attention.out_lin", OUT_OF_HEADS),
        *norm(f"{OURS}attn_post_norm", f"{_LAYER}sa_layer_norm"),
        *product("mlp.up", f"{_LAYER}ffn.lin1", PRODUCT),
        *product("mlp.down", f"{_LAYER}ffn.lin2", PRODUCT),
        *norm(f"{OURS}mlp_post_norm", f"{_LAYER}output_layer_norm"),
        *linear("head.transform", "vocab_transform"),
        *norm("head.norm", "vocab_layer_norm"),
        row("head.w", "vocab_projector.weight", PRODUCT),
        row("head.bias", "vocab_projector.bias", VECTOR),
        *linear("classifier", "classifier"),
    ),
    (
        Ignored(r"distilbert\.embeddings\.position_ids", "they count"),
        *output_ignored("vocab_projector", "vocab_projector.bias", _EMBEDDING),
    ),
)


def _read_distilbert(keys: Keys) -> ModelConfig:
    keys.inert("sinusoidal_pos_embds", why="it says how the table of positions began")
    keys.inert("qa_dropout", "seq_classif_dropout", why="it matters in training alone")
    keys.inert("tie_weights_", "output_past", why="of the first releases, and nothing reads it")
    trunk = ModelConfig(
        vocab_size=keys.integer("vocab_size", 30522),
        embedding_dim=keys.integer("dim", 768),
        num_layers=keys.integer("n_layers", 6),
        num_heads=keys.integer("n_heads", 12),
        context_length=keys.integer("max_position_embeddings", 512),
        ffn_dim=keys.integer("hidden_dim", 3072),
        causal=False,
        head=None,
        norm_eps=_EPS,
        norm_placement="post",
        final_norm=False,
        embedding_norm=True,
        position="learned",
        mlp=keys.choice("activation", PLAIN, "gelu"),
        **GPT,
    )
    return with_heads(trunk, keys, output="vocab_")


def _write_distilbert(manifest: Manifest) -> dict[str, Any]:
    cfg = manifest.parameters
    return {
        "architectures": [class_of(cfg, "DistilBert")],
        "model_type": "distilbert",
        "vocab_size": cfg.vocab_size,
        "dim": cfg.embedding_dim,
        "n_layers": cfg.num_layers,
        "n_heads": cfg.query_heads,
        "max_position_embeddings": cfg.context_length,
        "hidden_dim": cfg.ffn_width,
        "activation": name_in(PLAIN, cfg.mlp),
        "tie_word_embeddings": cfg.tie_embeddings,
        **label_keys(cfg),
    }


FAMILIES = (
    # Its classifier of a sequence has a relu in front, which is computed nowhere here.
    Family(
        "BERT",
        "distilbert",
        ("DistilBertForMaskedLM", "DistilBertForTokenClassification", "DistilBertModel"),
        _read_distilbert,
        lambda _: _TABLE,
        base_prefix=_BODY,
        outside=("vocab_", "classifier."),
        write_config=_write_distilbert,
    ),
)
