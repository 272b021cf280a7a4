"""Tiny random models as llama.cpp's converter writes them, one for each architecture and variant.

The layouts are written out here once more, in plain NumPy on [out, in] matrices as PyTorch has
them, so that reading is held against something that does not share its tables.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.latent import LatentAttention
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.rope import RopeScaling
from llmasos_jax.format.names import expected

GELU = 5e-3
V = 288  # 3 control tokens, 256 bytes, some letters
Params = dict[str, np.ndarray]


@dataclass(frozen=True)
class Twin:
    """A model and how a GGUF file says it.

    Attributes:
      arch: as "general.architecture" says.
      cfg: the model, as its folder would describe it.
      keys: metadata of this architecture alone, beside those that all have.
      tensors: extra tensors.
      differs: fields that are another way of saying the same once read.
      tolerance: of llama.cpp's logits, which look up GELU in a table of float16; None where it
        computes something else.
      is_older: whether each expert has tensors of its own.
    """

    arch: str
    cfg: ModelConfig
    keys: dict[str, Any] = field(default_factory=dict)
    tensors: Params = field(default_factory=dict)
    differs: dict[str, Any] = field(default_factory=dict)
    tolerance: float | None = 1e-4
    is_older: bool = False

    def read(self) -> ModelConfig:
        """The config that reading gives."""
        return dataclasses.replace(self.cfg, **self.differs)


def model(**changes: Any) -> ModelConfig:
    """A small model like LLaMA, with every width said."""
    fields: dict[str, Any] = {
        **{"vocab_size": V, "embedding_dim": 32, "num_layers": 2, "context_length": 64},
        **{"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "ffn_dim": 48},
    }
    return ModelConfig(**(fields | changes))


_LONG = tuple(round(1 + 0.7 * i, 2) for i in range(4))
_SHORT = tuple(round(1 + 0.1 * i, 2) for i in range(4))
_GEMMA = {
    "mlp": "geglu_tanh",
    "norm_unit_offset": True,
    "embedding_scale": math.sqrt(32),
    "norm_eps": 1e-6,
}
_PLAIN = {"norm_unit_offset": False}
_LAYER_NORM = {
    **{"norm": "layernorm", "qkv_bias": True, "attention_out_bias": True, "mlp_bias": True},
    "num_kv_heads": 4,
}
_LATENT: dict[str, Any] = {
    **{"num_layers": 3, "num_kv_heads": 4, "head_dim": 12, "rope_interleaved": True},
    **{"norm_eps": 1e-6, "tie_embeddings": False},
}
_V2_KEYS = {
    **{"attention.kv_lora_rank": 16, "attention.key_length": 20, "attention.value_length": 16},
    **{"attention.key_length_mla": 12, "attention.value_length_mla": 8, "rope.dimension_count": 4},
    **{"leading_dense_block_count": 1, "expert_feed_forward_length": 24, "expert_count": 8},
    **{"expert_used_count": 2, "expert_shared_count": 2, "attention.head_count_kv": 1},
}
_GATED = {"expert_feed_forward_length": 24, "expert_count": 6, "expert_used_count": 3}
_CFG_YARN = RopeScaling("yarn", 4.0, original_length=16, beta_fast=8.0)


def llama3_factors(theta: float, width: int) -> np.ndarray:
    """What llama.cpp's converter writes for Llama 3.2: factor 32, float32 throughout."""
    freqs = np.float32(1) / np.float32(theta) ** (np.arange(0, width, 2, dtype=np.float32) / width)
    found = []
    for freq in freqs:
        length = 2 * math.pi / float(freq)
        smooth = (8192 / length - 1.0) / 3.0
        blend = 1 / ((1 - smooth) / 32.0 + smooth) if 2048 <= length <= 8192 else 1.0
        found.append(32.0 if length > 8192 else blend)
    return np.array(found, np.float32)


TWINS = {
    "llama": Twin("llama", model()),
    "llama-untied-biases": Twin(
        "llama",
        model(
            **{"tie_embeddings": False, "qkv_bias": True, "attention_out_bias": True},
            mlp_bias=True,
        ),
    ),
    "llama-3.2": Twin(
        "llama",
        model(
            head_dim=16,
            rope_theta=5e5,
            rope_scaling=RopeScaling("llama3", 32.0, original_length=8192),
        ),
        tensors={"rope_freqs.weight": llama3_factors(5e5, 16)},
    ),
    "llama-other-factors": Twin(
        "llama",
        model(
            rope_scaling=RopeScaling(
                "longrope",
                original_length=64,
                attention_factor=1.0,
                short_factors=_LONG,
                long_factors=_LONG,
            )
        ),
        tensors={"rope_freqs.weight": np.array(_LONG, np.float32)},
    ),
    "llama-linear": Twin(
        "llama",
        model(rope_scaling=RopeScaling("linear", 4.0)),
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "mixtral": Twin(
        "llama",
        model(
            num_layers=2,
            tie_embeddings=False,
            experts=Experts(count=4, per_token=2, ffn_dim=48, router="softmax_chosen"),
        ),
        {"expert_count": 4, "expert_used_count": 2},
    ),
    "mixtral-older": Twin(
        "llama",
        model(experts=Experts(count=4, per_token=2, ffn_dim=48, router="softmax_chosen")),
        {"expert_count": 4, "expert_used_count": 2},
        tolerance=None,  # llama.cpp reads it no more
        is_older=True,
    ),
    "qwen2": Twin("qwen2", model(qkv_bias=True, rope_theta=1e6, norm_eps=1e-6)),
    "qwen2-yarn": Twin(
        "qwen2",
        model(qkv_bias=True, tie_embeddings=False, rope_scaling=_CFG_YARN),
        {
            **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
            **{"rope.scaling.original_context_length": 16, "rope.scaling.yarn_beta_fast": 8.0},
        },
    ),
    "qwen3": Twin("qwen3", model(qk_norm="head", head_dim=16, rope_theta=1e6)),
    "qwen2moe": Twin(
        "qwen2moe",
        model(
            qkv_bias=True,
            tie_embeddings=False,
            experts=Experts(
                **{"count": 6, "per_token": 3, "ffn_dim": 24, "normalize": False},
                **{"shared_ffn_dim": 40, "shared_gate": True},
            ),
        ),
        {**_GATED, "expert_shared_feed_forward_length": 40},
    ),
    "qwen3moe": Twin(
        "qwen3moe",
        model(
            qk_norm="head",
            tie_embeddings=False,
            experts=Experts(count=6, per_token=3, ffn_dim=24),
        ),
        _GATED,
    ),
    "gemma": Twin("gemma", model(**_GEMMA, num_kv_heads=1), differs=_PLAIN, tolerance=GELU),
    "gemma2": Twin(
        "gemma2",
        model(
            **_GEMMA,
            norm_placement="sandwich",
            attention_windows=(4, None),
            attention_soft_cap=50.0,
            logit_soft_cap=30.0,
            attention_scale=8**-0.5,
        ),
        {
            **{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
            "attention.sliding_window": 4,
        },
        differs=_PLAIN,
        tolerance=GELU,
    ),
    "gemma3": Twin(
        "gemma3",
        model(
            **_GEMMA,
            num_layers=6,
            norm_placement="sandwich",
            qk_norm="head",
            attention_windows=(4,) * 5 + (None,),
            attention_scale=8**-0.5,
            rope_theta=1e6,
            rope_theta_local=1e4,
            rope_scaling=RopeScaling("linear", 8.0),
        ),
        {
            **{"attention.sliding_window": 4, "rope.scaling.type": "linear"},
            "rope.scaling.factor": 8.0,
        },
        differs=_PLAIN,
        tolerance=GELU,
    ),
    "phi3": Twin(
        "phi3",
        model(tie_embeddings=False),
        {"attention.sliding_window": 0, "rope.scaling.original_context_length": 64},
    ),
    "phi3-longrope": Twin(
        "phi3",
        model(
            tie_embeddings=False,
            rope_scaling=RopeScaling(
                "longrope", 8.0, original_length=8, short_factors=_SHORT, long_factors=_LONG
            ),
        ),
        {
            **{"attention.sliding_window": 0, "rope.scaling.original_context_length": 8},
            "rope.scaling.attn_factor": math.sqrt(1 + math.log(8) / math.log(8)),
        },
        tensors={
            "rope_factors_long.weight": np.array(_LONG, np.float32),
            "rope_factors_short.weight": np.array(_SHORT, np.float32),
        },
    ),
    "phi3-window": Twin(
        "phi3",
        model(tie_embeddings=False, attention_windows=(4,), rope_fraction=0.75),
        {"attention.sliding_window": 4, "rope.scaling.original_context_length": 64},
        tolerance=None,  # llama.cpp leaves the window out
    ),
    "gpt2": Twin(
        "gpt2",
        model(**_LAYER_NORM, position="learned", mlp="gelu_tanh"),
        tolerance=GELU,
    ),
    "gptneox": Twin(
        "gptneox",
        model(
            **_LAYER_NORM,
            block="parallel_two_norms",
            mlp="gelu",
            rope_fraction=0.5,
            tie_embeddings=False,
        ),
        {"use_parallel_residual": True},
        tolerance=None,  # llama.cpp takes the tanh form of GELU, the models were trained with erf
    ),
    "olmo2": Twin("olmo2", model(norm_placement="output", qk_norm="full", tie_embeddings=False)),
    "olmo3": Twin(
        "olmo2",
        model(
            num_layers=4,
            norm_placement="output",
            qk_norm="full",
            tie_embeddings=False,
            attention_windows=(4, 4, 4, None),
            rope_theta_local=1e4,
            rope_scaling=_CFG_YARN,
        ),
        {
            **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
            **{"rope.scaling.original_context_length": 16, "rope.scaling.yarn_beta_fast": 8.0},
            "attention.sliding_window": 4,
            "attention.sliding_window_pattern": [True, True, True, False],
        },
    ),
    "deepseek-v2-lite": Twin(
        "deepseek2",
        model(
            **_LATENT,
            latent=LatentAttention(kv_rank=16, rope_dim=4, value_dim=8),
            rope_scaling=RopeScaling("yarn", 4.0, original_length=16, attention_factor=1.0),
            attention_scale=(1 + 0.0707 * math.log(4)) ** 2 / math.sqrt(12),
            experts=Experts(
                **{"count": 8, "per_token": 2, "ffn_dim": 24, "dense_layers": (0,)},
                **{"normalize": False, "scale": 1.5, "shared_ffn_dim": 48},
            ),
        ),
        {
            **_V2_KEYS,
            **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
            **{"rope.scaling.original_context_length": 16, "expert_weights_scale": 1.5},
            "rope.scaling.yarn_log_multiplier": 0.0707,
        },
        tolerance=None,  # llama.cpp takes no other number of layers than the published one
    ),
    "deepseek-v2": Twin(
        "deepseek2",
        model(
            **_LATENT,
            latent=LatentAttention(kv_rank=16, q_rank=24, rope_dim=4, value_dim=8),
            rope_scaling=RopeScaling("yarn", 4.0, original_length=16, attention_factor=1.0),
            attention_scale=(1 + 0.0707 * math.log(4)) ** 2 / math.sqrt(12),
            experts=Experts(
                **{"count": 8, "per_token": 2, "ffn_dim": 24, "dense_layers": (0,)},
                **{"normalize": False, "scale": 1.5, "shared_ffn_dim": 48},
            ),
        ),
        {
            **_V2_KEYS,
            **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
            **{"rope.scaling.original_context_length": 16, "expert_weights_scale": 1.5},
            **{"rope.scaling.yarn_log_multiplier": 0.0707, "attention.q_lora_rank": 24},
        },
    ),
    "deepseek-v3": Twin(
        "deepseek2",
        model(
            **_LATENT,
            latent=LatentAttention(kv_rank=16, q_rank=24, rope_dim=4, value_dim=8),
            experts=Experts(
                **{"count": 8, "per_token": 2, "ffn_dim": 24, "dense_layers": (0,)},
                **{"router": "sigmoid", "scale": 2.5, "router_bias": True, "groups": 4},
                **{"groups_per_token": 2, "group_score": "top2", "shared_ffn_dim": 48},
            ),
        ),
        {
            **_V2_KEYS,
            **{"attention.q_lora_rank": 24, "expert_weights_scale": 2.5, "expert_gating_func": 2},
            **{"expert_weights_norm": True, "expert_group_count": 4, "expert_group_used_count": 2},
        },
    ),
    "bert": Twin(
        "bert",
        model(
            **_LAYER_NORM,
            position="learned",
            mlp="gelu",
            causal=False,
            norm_placement="post",
            embedding_norm=True,
            final_norm=False,
            token_types=2,
        ),
        {"attention.causal": False, "pooling_type": 1},
        tolerance=None,  # llama.cpp gives its embeddings alone
    ),
}


def random_params(cfg: ModelConfig) -> Params:
    """Weights by our names: products keep the size of what they read, scales are near 1."""
    rng = np.random.default_rng(5)
    found = {}
    for name, spec in expected(cfg).items():
        noise = rng.standard_normal(spec.shape).astype(np.float32)
        if name.endswith(".scale"):
            found[name] = 0.3 * noise + np.float32(not cfg.norm_unit_offset)
        elif name.endswith(("bias",)):
            found[name] = (0.1 if "router" in name else 0.3) * noise
        elif name.startswith("embed."):
            found[name] = 0.4 * noise
        else:
            fan_in = math.prod(spec.shape[:2]) if name.endswith("attn.o") else spec.shape[-2]
            fan_in = spec.shape[0] if len(spec.shape) == 3 and "moe" not in name else fan_in
            found[name] = noise * np.float32(1.5 / math.sqrt(fan_in))
    return found


def matrix(weight: np.ndarray, num_in: int = 1) -> np.ndarray:
    """[out, in], as PyTorch has it."""
    return weight.reshape(math.prod(weight.shape[:num_in]), -1).T


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """LLaMA's rows as the converter puts them: halves of each head become neighbours."""
    rows = weight.reshape(heads, 2, len(weight) // heads // 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def converted(twin: Twin, params: Params) -> Params:
    """The tensors of the file by their names there."""
    cfg, out = twin.cfg, dict(twin.tensors)
    plus = np.float32(cfg.norm_unit_offset)
    out["token_embd.weight"] = params["embed.table"]
    singles = {"embed.positions": "position_embd.weight", "embed.types": "token_types.weight"}
    out |= {theirs: params[ours] for ours, theirs in singles.items() if ours in params}
    if "head.w" in params:
        out["output.weight"] = params["head.w"].T
    _put_norm(out, params, "embed.norm", "token_embd_norm", plus)
    _put_norm(out, params, "final_norm", "output_norm", plus)
    after = ("post_attention_norm", "post_ffw_norm")
    if twin.arch == "bert":
        after = ("attn_output_norm", "layer_output_norm")
    for i in range(cfg.num_layers):
        a, b = f"layers.{i}.", f"blk.{i}."
        _put_norm(out, params, f"{a}attn_norm", f"{b}attn_norm", plus)
        _put_norm(out, params, f"{a}mlp_norm", f"{b}ffn_norm", plus)
        _put_norm(out, params, f"{a}attn_post_norm", f"{b}{after[0]}", plus)
        _put_norm(out, params, f"{a}mlp_post_norm", f"{b}{after[1]}", plus)
        _put_norm(out, params, f"{a}attn.q_norm", f"{b}attn_q_norm", plus)
        _put_norm(out, params, f"{a}attn.k_norm", f"{b}attn_k_norm", plus)
        layer = {n.removeprefix(a): w for n, w in params.items() if n.startswith(a)}
        attention = _latent if cfg.latent.kv_rank else _attention
        mlp = _experts if cfg.has_experts(i) else _mlp
        out |= {b + n: w for n, w in (attention(twin, layer) | mlp(twin, layer)).items()}
    return {name: np.ascontiguousarray(w) for name, w in out.items()}


def _put_norm(out: Params, params: Params, ours: str, theirs: str, plus: np.float32) -> None:
    if f"{ours}.scale" in params:
        out[f"{theirs}.weight"] = params[f"{ours}.scale"].reshape(-1) + plus
    if f"{ours}.bias" in params:
        out[f"{theirs}.bias"] = params[f"{ours}.bias"]


def _attention(twin: Twin, layer: Params) -> Params:
    cfg = twin.cfg
    weights = {n: matrix(layer[f"attn.{n}"]) for n in "qkv"}
    biases = {n: layer[f"attn.{n}_bias"].reshape(-1) for n in "qkv" if cfg.qkv_bias}
    if twin.arch == "llama":
        for parts in (weights, biases):
            for name, heads in (("q", cfg.query_heads), ("k", cfg.kv_heads)):
                if name in parts:
                    parts[name] = permuted(parts[name], heads)
    out = {"attn_output.weight": matrix(layer["attn.o"], 2)}
    if cfg.attention_out_bias:
        out["attn_output.bias"] = layer["attn.o_bias"]
    for parts, end in ((weights, "weight"), (biases, "bias")):
        if twin.arch in ("phi3", "gpt2", "gptneox"):
            out |= {f"attn_qkv.{end}": np.concatenate(list(parts.values()))} if parts else {}
        else:
            out |= {f"attn_{name}.{end}": part for name, part in parts.items()}
    return out


def _latent(twin: Twin, layer: Params) -> Params:
    cfg, out = twin.cfg, {"attn_output.weight": matrix(layer["attn.o"], 2)}
    if cfg.latent.q_rank:
        out["attn_q_a.weight"] = layer["attn.q_down"].T
        out["attn_q_a_norm.weight"] = layer["attn.q_down_norm.scale"]
        out["attn_q_b.weight"] = matrix(layer["attn.q"])
    else:
        out["attn_q.weight"] = matrix(layer["attn.q"])
    out["attn_kv_a_mqa.weight"] = np.concatenate([layer["attn.kv_down"].T, layer["attn.k_rope"].T])
    out["attn_kv_a_norm.weight"] = layer["attn.kv_norm.scale"]
    # kv_b_proj: of each head the rows of its key, then of its value.
    n, rank = cfg.query_heads, cfg.latent.kv_rank
    heads = [matrix(layer[f"attn.{name}"]).reshape(n, -1, rank) for name in "kv"]
    out["attn_k_b.weight"] = heads[0].swapaxes(1, 2)
    out["attn_v_b.weight"] = heads[1]
    return out


def _mlp(twin: Twin, layer: Params) -> Params:
    out = {}
    for name in ("gate", "up", "down"):
        if f"mlp.{name}" in layer:
            out[f"ffn_{name}.weight"] = layer[f"mlp.{name}"].T
        if f"mlp.{name}_bias" in layer:
            out[f"ffn_{name}.bias"] = layer[f"mlp.{name}_bias"]
    if twin.arch == "phi3":
        out["ffn_up.weight"] = np.concatenate([out.pop("ffn_gate.weight"), out["ffn_up.weight"]])
    return out


def _experts(twin: Twin, layer: Params) -> Params:
    out = {"ffn_gate_inp.weight": layer["moe.router"].T}
    for name in ("gate", "up", "down"):
        each = [layer[f"moe.{name}"][e].T for e in range(twin.cfg.experts.count)]
        if twin.is_older:
            out |= {f"ffn_{name}.{e}.weight": w for e, w in enumerate(each)}
        else:
            out[f"ffn_{name}_exps.weight"] = np.stack(each)
        if f"moe.shared.{name}" in layer:
            out[f"ffn_{name}_shexp.weight"] = layer[f"moe.shared.{name}"].T
    if "moe.shared_gate" in layer:
        out["ffn_gate_inp_shexp.weight"] = layer["moe.shared_gate"].reshape(-1)
    if "moe.router_bias" in layer:
        out["exp_probs_b.bias"] = layer["moe.router_bias"]
    return out


def metadata(twin: Twin) -> dict[str, Any]:
    """The keys that the converter writes for every architecture, and the twin's own."""
    cfg = twin.cfg
    rms = "attention.layer_norm_rms_epsilon"
    found: dict[str, Any] = {
        "context_length": cfg.context_length,
        "embedding_length": cfg.embedding_dim,
        "block_count": cfg.num_layers,
        "feed_forward_length": cfg.ffn_width,
        "attention.head_count": cfg.query_heads,
        rms if cfg.norm == "rmsnorm" else "attention.layer_norm_epsilon": float(cfg.norm_eps),
    }
    if twin.arch not in ("gpt2", "gptneox", "bert"):
        found["attention.head_count_kv"] = cfg.kv_heads
        found["rope.freq_base"] = float(cfg.rope_theta)
        if not twin.arch.startswith("phi3"):
            found["attention.key_length"] = found["attention.value_length"] = cfg.head_width
    if twin.arch in ("llama", "phi3", "gptneox"):
        found["rope.dimension_count"] = cfg.rope_width
    return found | twin.keys


def write_gguf(path: Path, twin: Twin, params: Params, **more: Any) -> None:
    """Writes the twin's file with the package gguf.

    Args:
      path: of the file.
      twin: what to write.
      params: its weights, by our names.
      more: keys to add or change, "__" for "."; None takes one out.
    """
    import gguf

    writer = gguf.GGUFWriter(path, twin.arch)
    keys = {f"{twin.arch}.{name}": v for name, v in metadata(twin).items()}
    keys |= vocabulary() | {name.replace("__", "."): v for name, v in more.items()}
    for name, item in keys.items():
        if item is not None:
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
            add |= {str: writer.add_string, list: writer.add_array}
            add[type(item)](name, item)
    for name, tensor in converted(twin, params).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def vocabulary() -> dict[str, Any]:
    """Metadata of a tokenizer of bytes."""
    letters = [f"▁{chr(97 + i)}" for i in range(V - 259)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(i) for i in range(V)],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(letters)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages }}",
        "general.name": "A twin",
        "general.license": "apache-2.0",
    }
