"""The tiny twins of `test_parity_torch.py`: each family as transformers and as we configure it.

Each option of `ModelConfig` that changes a forward pass is switched on in at least one of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmasos_jax.config.model import ModelConfig, RopeScaling

WINDOW = 7
OURS = ModelConfig(64, 32, 2, 40, num_heads=4, ffn_dim=48)

# Names without `.weight` and `.bias`, "L" for a layer; or with what takes our part of theirs.
Take = Callable[[np.ndarray], np.ndarray]
Names = dict[str, str | tuple[str, Take]]


@dataclass(frozen=True)
class Family:
    """A tiny twin.

    Attributes:
      theirs: name of the config class in transformers, and its arguments.
      ours: what differs from `OURS`.
      layers: what "L" stands for in their names.
      names: ours -> theirs.
      zeroed: their weights that we have no counterpart for: zero here.
      is_in_first: whether their products are stored as ours, [in, out].
    """

    theirs: tuple[str, dict[str, Any]]
    ours: dict[str, Any]
    layers: str
    names: Names
    zeroed: tuple[str, ...] = ()
    is_in_first: bool = False


def hf(name: str, **options: Any) -> tuple[str, dict[str, Any]]:
    """A config of the newer classes, which call widths alike."""
    widths = dict(vocab_size=64, hidden_size=32, num_attention_heads=4, intermediate_size=48)
    return name, {**widths, "num_hidden_layers": 2, "max_position_embeddings": 40, **options}


def every(ours: str, theirs: str, parts: Any) -> Names:
    return {ours.format(part): theirs.format(part) for part in parts}


def fused(theirs: str, take: Callable[[int], Take]) -> Names:
    """Queries, keys and values in one product."""
    return {f"L.attn.{part}": (theirs, take(i)) for i, part in enumerate("qkv")}


def third(i: int, axis: int = 0) -> Take:
    return lambda w: np.split(w, 3, axis=axis)[i]


def third_of_each_head(i: int) -> Take:
    # [N, 3, H, ...], and H is 8 here.
    return lambda w: w.reshape(-1, 3, 8, *w.shape[1:])[:, i].reshape(-1, *w.shape[1:])


def ends(embed: str, norm: str) -> Names:
    return {"embed.table": embed, "final_norm": norm, "head.w": "lm_head"}


PRODUCTS = (
    ends("model.embed_tokens", "model.norm")
    | every("L.attn.{}", "L.self_attn.{}_proj", "qkvo")
    | every("L.attn.{}_norm", "L.self_attn.{}_norm", "qk")
    | every("L.mlp.{}", "L.mlp.{}_proj", ("gate", "up", "down"))
)
LLAMA = PRODUCTS | {"L.attn_norm": "L.input_layernorm", "L.mlp_norm": "L.post_attention_layernorm"}
OLMO = PRODUCTS | {
    "L.attn_post_norm": "L.post_attention_layernorm",
    "L.mlp_post_norm": "L.post_feedforward_layernorm",
}
GEMMA = OLMO | {
    "L.attn_norm": "L.input_layernorm",
    "L.mlp_norm": "L.pre_feedforward_layernorm",
}
GEMMA_OURS = dict(
    num_kv_heads=2,
    head_dim=12,
    norm_eps=1e-6,
    norm_placement="sandwich",
    norm_unit_offset=True,
    mlp="geglu_tanh",
    embedding_scale=32**0.5,
)
GPT_OURS = dict(norm="layernorm", qkv_bias=True, attention_out_bias=True, mlp_bias=True)


def llama(rope: dict[str, Any], **ours: Any) -> Family:
    rope = {"rope_theta": 10000.0, **rope}
    theirs = hf("LlamaConfig", num_key_value_heads=2, rms_norm_eps=1e-5, rope_parameters=rope)
    ours = dict(num_kv_heads=2, tie_embeddings=False, **ours)
    return Family(theirs, ours, "model.layers.{}", LLAMA)


FAMILIES: dict[str, Family] = {
    "llama": llama({"rope_type": "default"}),
    "llama-3": llama(
        dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
        rope_scaling=RopeScaling("llama3", factor=8.0, original_length=32),
    ),
    "yarn": llama(
        dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=10),
        rope_scaling=RopeScaling("yarn", factor=4.0, original_length=10),
    ),
    "mistral": Family(
        hf("MistralConfig", num_key_value_heads=1, sliding_window=WINDOW, rms_norm_eps=1e-5),
        dict(num_kv_heads=1, attention_windows=(WINDOW,), tie_embeddings=False),
        "model.layers.{}",
        LLAMA,
    ),
    "qwen2": Family(
        hf("Qwen2Config", num_key_value_heads=2, tie_word_embeddings=True),
        dict(num_kv_heads=2, qkv_bias=True, norm_eps=1e-6),
        "model.layers.{}",
        LLAMA,
    ),
    "qwen3": Family(
        hf("Qwen3Config", num_key_value_heads=2, head_dim=12),
        dict(num_kv_heads=2, head_dim=12, norm_eps=1e-6, qk_norm="head", tie_embeddings=False),
        "model.layers.{}",
        LLAMA,
    ),
    "olmo2": Family(
        hf("Olmo2Config", num_key_value_heads=2, eos_token_id=None),
        dict(num_kv_heads=2, norm_placement="output", qk_norm="full", tie_embeddings=False),
        "model.layers.{}",
        OLMO,
    ),
    "gemma2": Family(
        hf(
            "Gemma2Config",
            num_hidden_layers=4,
            num_key_value_heads=2,
            head_dim=12,
            sliding_window=WINDOW,
            query_pre_attn_scalar=9,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=4.0,
        ),
        dict(
            num_layers=4,
            attention_windows=(WINDOW, None),
            attention_scale=1 / 3,
            attention_soft_cap=3.0,
            logit_soft_cap=4.0,
            **GEMMA_OURS,
        ),
        "model.layers.{}",
        GEMMA,
    ),
    "gemma3": Family(
        hf(
            "Gemma3TextConfig",
            num_hidden_layers=6,
            num_key_value_heads=2,
            head_dim=12,
            sliding_window=WINDOW,
            query_pre_attn_scalar=12,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
            rope_parameters={
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
            },
        ),
        dict(
            num_layers=6,
            attention_windows=(WINDOW, WINDOW, None),
            qk_norm="head",
            rope_theta=1000.0,
            rope_theta_local=100.0,
            rope_scaling=RopeScaling("linear", factor=8.0),
            **GEMMA_OURS,
        ),
        "model.layers.{}",
        GEMMA,
    ),
    # PaLM's block: parallel with one norm, one key head, no biases, SwiGLU, tied.
    "cohere": Family(
        hf(
            "CohereConfig",
            num_key_value_heads=1,
            logit_scale=0.25,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
            eos_token_id=None,
        ),
        dict(
            num_kv_heads=1,
            norm="layernorm",
            norm_bias=False,
            block="parallel",
            rope_interleaved=True,
            rope_theta=500.0,
            logit_scale=0.25,
        ),
        "model.layers.{}",
        LLAMA,
    ),
    "gptj": Family(
        (
            "GPTJConfig",
            dict(vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_inner=48),
        ),
        dict(
            norm="layernorm",
            mlp="gelu_tanh",
            mlp_bias=True,
            block="parallel",
            rope_fraction=0.5,
            rope_interleaved=True,
            tie_embeddings=False,
        ),
        "transformer.h.{}",
        ends("transformer.wte", "transformer.ln_f")
        | every("L.attn.{}", "L.attn.{}_proj", "qkv")
        | {"L.attn_norm": "L.ln_1", "L.attn.o": "L.attn.out_proj"}
        | {"L.mlp.up": "L.mlp.fc_in", "L.mlp.down": "L.mlp.fc_out"},
        zeroed=("lm_head.bias",),
    ),
    "gpt2": Family(
        ("GPT2Config", dict(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=40)),
        dict(position="learned", mlp="gelu_tanh", ffn_dim=128, **GPT_OURS),
        "transformer.h.{}",
        ends("transformer.wte", "transformer.ln_f")
        | fused("L.attn.c_attn", lambda i: third(i, axis=-1))
        | {"embed.positions": "transformer.wpe", "L.attn.o": "L.attn.c_proj"}
        | {"L.attn_norm": "L.ln_1", "L.mlp_norm": "L.ln_2"}
        | {"L.mlp.up": "L.mlp.c_fc", "L.mlp.down": "L.mlp.c_proj"},
        is_in_first=True,
    ),
    "gpt-neox": Family(
        hf(
            "GPTNeoXConfig",
            rope_parameters=dict(
                rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5
            ),
        ),
        dict(
            mlp="gelu",
            block="parallel_two_norms",
            rope_fraction=0.5,
            tie_embeddings=False,
            **GPT_OURS,
        ),
        "gpt_neox.layers.{}",
        ends("gpt_neox.embed_in", "gpt_neox.final_layer_norm")
        | fused("L.attention.query_key_value", third_of_each_head)
        | {"L.attn_norm": "L.input_layernorm", "L.mlp_norm": "L.post_attention_layernorm"}
        | {"L.attn.o": "L.attention.dense"}
        | {"L.mlp.up": "L.mlp.dense_h_to_4h", "L.mlp.down": "L.mlp.dense_4h_to_h"},
    ),
    "bloom": Family(
        ("BloomConfig", dict(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)),
        dict(position="alibi", embedding_norm=True, mlp="gelu_tanh", ffn_dim=128, **GPT_OURS),
        "transformer.h.{}",
        ends("transformer.word_embeddings", "transformer.ln_f")
        | fused("L.self_attention.query_key_value", third_of_each_head)
        | {"embed.norm": "transformer.word_embeddings_layernorm"}
        | {"L.attn_norm": "L.input_layernorm", "L.mlp_norm": "L.post_attention_layernorm"}
        | {"L.attn.o": "L.self_attention.dense"}
        | {"L.mlp.up": "L.mlp.dense_h_to_4h", "L.mlp.down": "L.mlp.dense_4h_to_h"},
    ),
    # Six heads: slopes for a number that is no power of two.
    "mpt": Family(
        ("MptConfig", dict(vocab_size=64, d_model=48, n_layers=2, n_heads=6)),
        dict(
            embedding_dim=48,
            num_heads=6,
            ffn_dim=192,
            norm="layernorm",
            norm_bias=False,
            position="alibi",
            mlp="gelu",
        ),
        "transformer.blocks.{}",
        ends("transformer.wte", "transformer.norm_f")
        | fused("L.attn.Wqkv", third)
        | {"L.attn_norm": "L.norm_1", "L.mlp_norm": "L.norm_2", "L.attn.o": "L.attn.out_proj"}
        | every("L.mlp.{}", "L.ffn.{}_proj", ("up", "down")),
    ),
    "opt": Family(
        hf("OPTConfig", ffn_dim=48, word_embed_proj_dim=32),
        dict(position="learned", mlp="relu", **GPT_OURS),
        "model.decoder.layers.{}",
        ends("model.decoder.embed_tokens", "model.decoder.final_layer_norm")
        | every("L.attn.{}", "L.self_attn.{}_proj", "qkv")
        # Two rows of padding come first.
        | {"embed.positions": ("model.decoder.embed_positions", lambda w: w[2:])}
        | {"L.attn_norm": "L.self_attn_layer_norm", "L.mlp_norm": "L.final_layer_norm"}
        | {"L.attn.o": "L.self_attn.out_proj", "L.mlp.up": "L.fc1", "L.mlp.down": "L.fc2"},
    ),
    # Both ways, norms after the sum; compared at the last hidden state.
    "bert": Family(
        hf("BertConfig", layer_norm_eps=1e-5),
        dict(
            position="learned",
            mlp="gelu",
            causal=False,
            norm_placement="post",
            embedding_norm=True,
            final_norm=False,
            **GPT_OURS,
        ),
        "encoder.layer.{}",
        {"embed.table": "embeddings.word_embeddings", "embed.norm": "embeddings.LayerNorm"}
        | {"embed.positions": "embeddings.position_embeddings"}
        | {f"L.attn.{part[0]}": f"L.attention.self.{part}" for part in ("query", "key", "value")}
        | {"L.attn.o": "L.attention.output.dense"}
        | {"L.attn_post_norm": "L.attention.output.LayerNorm"}
        | {"L.mlp_post_norm": "L.output.LayerNorm"}
        | {"L.mlp.up": "L.intermediate.dense", "L.mlp.down": "L.output.dense"},
        zeroed=(
            "embeddings.token_type_embeddings.weight",
            "pooler.dense.weight",
            "pooler.dense.bias",
        ),
    ),
}
