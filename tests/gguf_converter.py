"""Writes tiny models as llama.cpp's converter does.

The layouts are written out here once more, in plain NumPy on [out, in] matrices as PyTorch has
them, so that reading is held against something that does not share its tables.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from gguf_twins import Params, Twin, V

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.names import expected


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
