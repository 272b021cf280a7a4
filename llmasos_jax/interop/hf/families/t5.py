"""T5, Flan-T5 and mT5, whole or their encoder alone."""

from __future__ import annotations

from functools import partial
from typing import Any

from llmasos_jax.config.heads import Encoder
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import Keys
from llmasos_jax.interop.hf.families.encoder import TIED, name_in, saved_class
from llmasos_jax.interop.hf.families.family import Family
from llmasos_jax.interop.rows import OUT_OF_HEADS, PRODUCT, SAME, VECTOR
from llmasos_jax.interop.tables import Ignored, Row, Table, row

# By `feed_forward_proj`; "gated-gelu" is the approximation since the first release of version 1.1.
_MLPS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
    "gated-relu": "reglu",
    "gated-gelu": "geglu_tanh",
    "gated-gelu_new": "geglu_tanh",
    "gated-silu": "swiglu",
}
_HEAD = "lm_head."
_SHARED = "shared.weight"


def _attention(ours: str, theirs: str) -> tuple[Row, ...]:
    return (
        *(row(f"{ours}.{part}", f"{theirs}.{part}.weight", PRODUCT) for part in "qkv"),
        row(f"{ours}.o", f"{theirs}.o.weight", OUT_OF_HEADS),
    )


def _stack(ours: str, theirs: str, *, is_decoder: bool) -> tuple[Row, ...]:
    """The rows of one stack: what the names begin with in our files and in theirs."""
    layer, block = f"{ours}layers.{{i}}.", f"{theirs}.block.{{i}}.layer."
    mlp = f"{block}{2 if is_decoder else 1}."
    cross = (
        row(f"{layer}cross_attn_norm.scale", f"{block}1.layer_norm.weight", VECTOR),
        *_attention(f"{layer}cross_attn", f"{block}1.EncDecAttention"),
    )
    table = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return (
        row(f"{ours}relative.buckets", table, SAME),
        row(f"{layer}attn_norm.scale", f"{block}0.layer_norm.weight", VECTOR),
        *_attention(f"{layer}attn", f"{block}0.SelfAttention"),
        *(cross if is_decoder else ()),
        row(f"{layer}mlp_norm.scale", f"{mlp}layer_norm.weight", VECTOR),
        row(f"{layer}mlp.gate", f"{mlp}DenseReluDense.wi_0.weight", PRODUCT),
        row(f"{layer}mlp.up", f"{mlp}DenseReluDense.wi_1.weight", PRODUCT),
        row(f"{layer}mlp.down", f"{mlp}DenseReluDense.wo.weight", PRODUCT),
        row(f"{ours}final_norm.scale", f"{theirs}.final_layer_norm.weight", VECTOR),
    )


def _table(cfg: ModelConfig) -> Table:
    is_pair = cfg.encoder.num_layers > 0
    stacks = _stack("encoder." if is_pair else "", "encoder", is_decoder=False)
    stacks += _stack("", "decoder", is_decoder=True) if is_pair else ()
    if not cfg.is_gated:
        stacks = tuple(
            row(r.ours[0], r.theirs[0].replace("wi_1", "wi"), r.arrangement) for r in stacks
        )
    ends = (row("embed.table", _SHARED, SAME), row("head.w", f"{_HEAD}weight", PRODUCT))
    ignored = (
        Ignored(r"(encoder|decoder)\.embed_tokens\.weight", "one table is shared", equals=_SHARED),
        Ignored(r"lm_head\.weight", TIED, equals=_SHARED),
        Ignored(
            r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
            "cross-attention has no positions; early releases stored a table that nothing reads",
        ),
        *((Ignored(r"decoder\..*", "the encoder is taken alone"),) if not is_pair else ()),
    )
    return Table((*ends, *stacks), ignored)


def _read(keys: Keys, *, vocab_size: int, ffn_dim: int, layers: int, heads: int) -> ModelConfig:
    """What T5 and mT5 share, but for the output layer."""
    kind = keys.text("feed_forward_proj", "relu" if layers == 6 else "gated-gelu")
    mlp = keys.choice("feed_forward_proj", _MLPS, kind)
    function = "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")
    keys.only("dense_act_fn", function, why='"feed_forward_proj" says it')
    keys.only("is_gated_act", kind.startswith("gated-"), why='"feed_forward_proj" says it')
    keys.inert("dropout_rate", why="it matters in training alone")
    keys.inert("output_past", why="it says what a call returns")
    keys.only("is_decoder", False, why="of the two stacks one is a decoder")
    num_layers = keys.integer("num_layers", layers)
    num_decoder_layers = keys.integer("num_decoder_layers", None, null=True)
    trunk = ModelConfig(
        vocab_size=keys.integer("vocab_size", vocab_size),
        embedding_dim=keys.integer("d_model", 512),
        num_layers=num_layers,
        num_heads=keys.integer("num_heads", heads),
        head_dim=keys.integer("d_kv", 64),
        ffn_dim=keys.integer("d_ff", ffn_dim),
        # What it was trained on; the positions have no limit.
        context_length=keys.integer("n_positions", 512 if layers == 6 else 1024),
        norm_eps=keys.number("layer_norm_epsilon", 1e-6),
        position="relative",
        relative_buckets=keys.integer("relative_attention_num_buckets", 32),
        relative_max_distance=keys.integer("relative_attention_max_distance", 128),
        attention_scale=1.0,
        mlp=mlp,
    )
    if saved_class(keys).endswith("EncoderModel"):
        keys.only("is_encoder_decoder", True, False, why="the encoder is taken alone")
        return trunk.replace(causal=False, head=None)
    keys.only("is_encoder_decoder", True, why="it has two stacks")
    decoder_layers = num_layers if num_decoder_layers is None else num_decoder_layers
    return trunk.replace(num_layers=decoder_layers, encoder=Encoder(num_layers))


def _read_t5(keys: Keys) -> ModelConfig:
    cfg = _read(keys, vocab_size=32128, ffn_dim=2048, layers=6, heads=8)
    # Version 1.0 ties its output layer and scales; 1.1 does neither, and says so by one key.
    # transformers 5 writes two, and `tie_word_embeddings` is true in every file that it writes.
    is_tied = keys.flag("tie_word_embeddings", True)
    is_scaled = keys.flag("scale_decoder_outputs", is_tied)
    if cfg.head is None:
        return cfg
    if not is_scaled and is_tied:
        is_tied = not keys.has_tensors(_HEAD)
    scale = cfg.embedding_dim**-0.5 if is_scaled else 1.0
    return cfg.replace(tie_embeddings=is_tied, logit_scale=scale)


def _read_mt5(keys: Keys) -> ModelConfig:
    cfg = _read(keys, vocab_size=250112, ffn_dim=1024, layers=8, heads=6)
    is_tied = keys.flag("tie_word_embeddings", True)
    if cfg.head is None:
        return cfg
    return cfg.replace(tie_embeddings=is_tied and not keys.has_tensors(_HEAD))


def _write(manifest: Manifest, stem: str, model_type: str) -> dict[str, Any]:
    """The keys of today's transformers and, of `tie_word_embeddings`, what older ones go by."""
    cfg = manifest.parameters
    is_pair = cfg.encoder.num_layers > 0
    num_layers = cfg.encoder.num_layers if is_pair else cfg.num_layers
    kind = name_in(_MLPS, cfg.mlp)
    config: dict[str, Any] = {
        "architectures": [f"{stem}{'ForConditionalGeneration' if is_pair else 'EncoderModel'}"],
        "model_type": model_type,
        "is_encoder_decoder": is_pair,
        "vocab_size": cfg.vocab_size,
        "d_model": cfg.embedding_dim,
        "d_kv": cfg.head_width,
        "d_ff": cfg.ffn_width,
        "num_layers": num_layers,
        "num_decoder_layers": cfg.num_layers,
        "num_heads": cfg.query_heads,
        "n_positions": cfg.context_length,
        "relative_attention_num_buckets": cfg.relative_buckets,
        "relative_attention_max_distance": cfg.relative_max_distance,
        "layer_norm_epsilon": cfg.norm_eps,
        "feed_forward_proj": kind,
        "tie_word_embeddings": cfg.tie_embeddings,
    }
    if model_type == "t5":
        config["scale_decoder_outputs"] = cfg.logit_scale != 1.0
    return config


_family = partial(Family, table=_table, base_prefix="", outside=(_HEAD,))

FAMILIES = (
    _family(
        "T5",
        "t5",
        ("T5ForConditionalGeneration", "T5WithLMHeadModel", "T5Model", "T5EncoderModel"),
        _read_t5,
        write_config=partial(_write, stem="T5", model_type="t5"),
    ),
    _family(
        "T5",
        "mt5",
        ("MT5ForConditionalGeneration", "MT5Model", "MT5EncoderModel"),
        _read_mt5,
        write_config=partial(_write, stem="MT5", model_type="mt5"),
    ),
)
