"""What the decoders of LLaMA's kind share: widths in `config.json`, names of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.interop.hf.config import REQUIRED, Keys
from llmasos_jax.interop.hf.families.rope import Rope, read_rope, write_rope
from llmasos_jax.interop.rows import (
    ALL_EXPERTS,
    OUT_OF_HEADS,
    PER_EXPERT,
    PRODUCT,
    SAME,
    VECTOR,
)
from llmasos_jax.interop.tables import Ignored, Row, row

LAYER = "model.layers.{i}."
OURS = "layers.{i}."

DROP = object()  # of a key that a family does not have
GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
    "relu": "reglu",
}

ENDS = (
    row("embed.table", "model.embed_tokens.weight", SAME),
    row("final_norm.scale", "model.norm.weight", VECTOR),
    row("head.w", "lm_head.weight", PRODUCT),
)
OUT = (
    row(f"{OURS}attn.o", f"{LAYER}self_attn.o_proj.weight", OUT_OF_HEADS),
    row(f"{OURS}attn.o_bias", f"{LAYER}self_attn.o_proj.bias", VECTOR),
)
ATTENTION = (
    *(row(f"{OURS}attn.{p}", f"{LAYER}self_attn.{p}_proj.weight", PRODUCT) for p in "qkv"),
    *(row(f"{OURS}attn.{p}_bias", f"{LAYER}self_attn.{p}_proj.bias", VECTOR) for p in "qkv"),
    *(row(f"{OURS}attn.{p}_norm.scale", f"{LAYER}self_attn.{p}_norm.weight", VECTOR) for p in "qk"),
    *OUT,
)
MLP = (
    *(
        row(f"{OURS}mlp.{p}", f"{LAYER}mlp.{p}_proj.weight", PRODUCT)
        for p in ("gate", "up", "down")
    ),
    *(
        row(f"{OURS}mlp.{p}_bias", f"{LAYER}mlp.{p}_proj.bias", VECTOR)
        for p in ("gate", "up", "down")
    ),
)
NORMS = (
    row(f"{OURS}attn_norm.scale", f"{LAYER}input_layernorm.weight", VECTOR),
    row(f"{OURS}mlp_norm.scale", f"{LAYER}post_attention_layernorm.weight", VECTOR),
)
OUTPUT_NORMS = (
    row(f"{OURS}attn_post_norm.scale", f"{LAYER}post_attention_layernorm.weight", VECTOR),
    row(f"{OURS}mlp_post_norm.scale", f"{LAYER}post_feedforward_layernorm.weight", VECTOR),
)
IGNORED = (
    Ignored(r".*\.rotary_emb\.inv_freq", "frequencies are computed from the config"),
    Ignored(
        r"lm_head\.weight",
        "and the config ties the head to the embedding (tie_word_embeddings)",
        equals="model.embed_tokens.weight",
    ),
)


def expert_rows(
    block: str = "mlp.",
    shared: str = "shared_experts.",
    names: Sequence[str] = ("gate_proj", "up_proj", "down_proj"),
) -> tuple[Row, ...]:
    """Rows of a mixture of experts.

    Args:
      block: what the names of a layer's mixture begin with, after the layer.
      shared: what the names of its shared expert begin with.
      names: of gate, up and down in one expert.
    """
    theirs, parts = LAYER + block, ("gate", "up", "down")
    return (
        row(f"{OURS}moe.router", f"{theirs}gate.weight", PRODUCT),
        row(f"{OURS}moe.router_bias", f"{theirs}gate.e_score_correction_bias", VECTOR),
        *(
            row(f"{OURS}moe.{part}", f"{theirs}experts.{{e}}.{name}.weight", PER_EXPERT)
            for part, name in zip(parts, names, strict=True)
        ),
        *fused_expert_rows(block),
        *(
            row(f"{OURS}moe.shared.{part}", f"{theirs}{shared}{part}_proj.weight", PRODUCT)
            for part in parts
        ),
        row(f"{OURS}moe.shared_gate", f"{theirs}shared_expert_gate.weight", PRODUCT),
    )


def fused_expert_rows(block: str = "mlp.") -> tuple[Row, ...]:
    """Experts as transformers 5 holds them, and writes when asked not to keep the older names."""
    theirs = f"{LAYER}{block}experts."
    return (
        row(f"{OURS}moe.gate {OURS}moe.up", f"{theirs}gate_up_proj", ALL_EXPERTS),
        row(f"{OURS}moe.down", f"{theirs}down_proj", ALL_EXPERTS),
    )


def read_widths(keys: Keys, defaults: Mapping[str, Any], act: str = "hidden_act") -> dict[str, Any]:
    """The fields that all these decoders have, and their rotary positions apart.

    Args:
      keys: of the whole file.
      defaults: of transformers' config class, by its own names.
      act: the key that names the activation function.
    """

    def integer(key: str, *, null: bool = False) -> Any:
        return keys.integer(key, defaults.get(key, REQUIRED), null=null)

    return {
        "vocab_size": integer("vocab_size"),
        "embedding_dim": integer("hidden_size"),
        "num_layers": integer("num_hidden_layers"),
        "context_length": integer("max_position_embeddings"),
        "num_heads": integer("num_attention_heads"),
        "num_kv_heads": integer("num_key_value_heads", null=True),
        "head_dim": integer("head_dim", null=True) if "head_dim" in defaults else None,
        "ffn_dim": integer("intermediate_size"),
        "norm_eps": keys.number("rms_norm_eps", defaults["rms_norm_eps"]),
        "mlp": keys.choice(act, GATED, defaults[act]),
        "tie_embeddings": keys.flag("tie_word_embeddings", defaults["tie_word_embeddings"]),
    }


def read_decoder(keys: Keys, defaults: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Widths and rotary positions as fields of a ModelConfig; `options` as in `read_rope`."""
    fields = read_widths(keys, defaults)
    rope: Rope = read_rope(keys, context=fields["context_length"], **options)
    return {**fields, **rope.fields}


def write_decoder(
    manifest: Manifest, saved_class: str, model_type: str, **more: Any
) -> dict[str, Any]:
    """What `read_decoder` reads, of a model of ours.

    Args:
      manifest: of the model.
      saved_class: of transformers.
      model_type: in `config.json`.
      more: what only this family has, or says in another way; DROP takes a key away.
    """
    cfg = manifest.parameters
    said = {
        "architectures": [saved_class],
        "model_type": model_type,
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.embedding_dim,
        "intermediate_size": cfg.ffn_width,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.query_heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_width,
        "hidden_act": next((n for n, mlp in GATED.items() if mlp == cfg.mlp), "silu"),
        "max_position_embeddings": cfg.context_length,
        "rms_norm_eps": cfg.norm_eps,
        "tie_word_embeddings": cfg.tie_embeddings,
        **write_rope(cfg),
    }
    return {key: value for key, value in (said | more).items() if value is not DROP}


def write_windows(cfg: ModelConfig) -> dict[str, Any]:
    """`layer_types`, and the window of those layers that have one."""
    each = [cfg.layer_window(layer) for layer in range(cfg.num_layers)]
    return {
        "layer_types": ["full_attention" if w is None else "sliding_attention" for w in each],
        "sliding_window": next((w for w in each if w is not None), None),
    }


def read_biases(keys: Keys) -> dict[str, Any]:
    """`attention_bias`: of queries, keys, values and of the output."""
    bias = keys.flag("attention_bias", False)
    return {"qkv_bias": bias, "attention_out_bias": bias}


def windows(
    keys: Keys, num_layers: int, window: int | None, default: Sequence[bool]
) -> tuple[int | None, ...]:
    """`layer_types` as our pattern of windows, in the shortest form.

    Args:
      keys: of the whole file.
      num_layers: of the model.
      window: tokens that a layer with a window sees; None where no layer has one.
      default: which layers have one where the file has no `layer_types`.

    Raises:
      FormatError: a kind of layer that is not known here, or too few of them.
    """
    types = keys.listed("layer_types", str)
    known = {"full_attention": False, "sliding_attention": True}
    if types is not None:
        if len(types) != num_layers or not set(types) <= set(known):
            raise keys.error(
                "layer_types",
                f"must name one of {', '.join(known)} for each of {num_layers} layers",
            )
        default = [known[kind] for kind in types]
    each = tuple(window if is_local else None for is_local in default)
    for period in range(1, len(each) + 1):
        if each[period:] == each[:-period]:
            return each[:period]
    return each
