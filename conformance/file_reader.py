"""Reads the files of an LLMasOS model of format 1: parameters with their defaults, and tensors.

The part of the second implementation (`numpy_reader.py`) that follows chapters 1 to 3 of
`docs/format.md`.
"""

import json
import math
from pathlib import Path

import numpy as np

DEFAULTS = {
    **{"context_length": 2048, "num_heads": None, "num_kv_heads": None, "head_dim": None},
    **{"ffn_dim": None, "causal": True, "norm": "rmsnorm", "norm_eps": 1e-5, "norm_bias": True},
    **{"norm_unit_offset": False, "norm_placement": "pre", "block": "sequential"},
    **{"final_norm": True, "embedding_norm": False, "position": "rope", "rope_theta": 10000.0},
    **{"rope_theta_local": None, "rope_fraction": 1.0, "rope_interleaved": False},
    **{"first_attn_norm": True, "prefix_lm": False, "encoder": {}, "pooling": "mean"},
    **{"relative_buckets": 32, "relative_max_distance": 128, "pooler": False},
    **{"next_sentence": False, "classifier": {}},
    **{"rope_scaling": {}, "attention": "dot_product", "attention_windows": [None]},
    **{"attention_scale": None, "attention_soft_cap": None, "qk_norm": None, "qkv_bias": False},
    **{"attention_out_bias": False, "mlp": "swiglu", "mlp_bias": False, "tie_embeddings": True},
    **{"head_bias": False, "head": "linear", "token_types": 0, "latent": {}},
    **{"embedding_scale": 1.0, "logit_scale": 1.0, "logit_soft_cap": None, "experts": {}},
}
SCALING = {
    **{"kind": None, "factor": 1.0, "original_length": None, "low_frequency": 1.0},
    **{"high_frequency": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None},
    **{"short_factors": [], "long_factors": []},
}
LATENT = {"kv_rank": 0, "q_rank": None, "rope_dim": 64, "value_dim": None, "norm_eps": 1e-6}
EXPERTS = {
    **{"count": 0, "per_token": 2, "ffn_dim": None, "dense_layers": [], "router": "softmax"},
    **{"normalize": True, "scale": 1.0, "router_bias": False, "groups": 1, "groups_per_token": 1},
    **{"group_score": "max", "shared_ffn_dim": 0, "shared_gate": False},
}
ENCODER, CLASSIFIER = {"num_layers": 0}, {"labels": [], "level": "sequence"}
GATED = ("swiglu", "geglu", "geglu_tanh", "reglu")
TYPES = {"F32": "<f4", "BF16": "<u2", "F16": "<f2"}


class RefusedError(Exception):
    """The model does not follow the format."""


def need(condition: bool, message: str) -> None:
    """Refuses the model unless the condition holds."""
    if not condition:
        raise RefusedError(message)


def read(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """The parameters with their defaults, and the tensors as float64."""
    model = json.loads((folder / "model.json").read_bytes(), object_pairs_hook=unique)
    version = model.get("format_version", "1")
    need(version.split(".")[0] == "1", f"format {version}")
    known = {"format_version", "name", "version", "architecture", "parameters", "weights"}
    known |= {"tokenizer", "generation", "metadata"}
    need(not model.keys() - known, f"unknown keys {model.keys() - known}")
    p = {**DEFAULTS, **model["parameters"]}
    limits = {"vocab_size": 2**24, "embedding_dim": 2**18, "num_layers": 4096}
    need(not p.keys() - DEFAULTS.keys() - limits.keys(), "unknown parameters")
    for name, limit in limits.items():
        need(type(p.get(name)) is int and 1 <= p[name] <= limit, f"{name} is out of range")
    groups = {"rope_scaling": SCALING, "latent": LATENT, "experts": EXPERTS}
    for name, defaults in {**groups, "encoder": ENCODER, "classifier": CLASSIFIER}.items():
        p[name] = {**defaults, **p[name]}
        need(p[name].keys() == defaults.keys(), f"unknown keys in {name}")
    o, latent, scaling = p["experts"], p["latent"], p["rope_scaling"]
    need(len(scaling["short_factors"]) == len(scaling["long_factors"]), "longrope factors")
    need(latent["kv_rank"] or latent == LATENT, "latent without kv_rank")
    need(not latent["kv_rank"] or not (p["qk_norm"] or p["qkv_bias"]), "does not go with latent")
    need(o["count"] or o == EXPERTS, "experts without a count")
    need(all(0 <= i < p["num_layers"] for i in o["dense_layers"]), "dense_layers")
    reached = o["count"] // o["groups"] * o["groups_per_token"]
    need(not o["count"] or o["per_token"] <= reached, "per_token is above what a token reaches")
    need(p["head"] or (p["tie_embeddings"] and not p["causal"]), "head")
    need(not p["causal"] or not (p["head"] == "mlm" or p["pooler"]), "encoders only")
    need(not p["next_sentence"] or p["pooler"], "next_sentence without pooler")
    labels, level = p["classifier"]["labels"], p["classifier"]["level"]
    need(len(set(labels)) == len(labels), "a label twice")
    need(labels or level == "sequence", "classifier.level without labels")
    layers, generation = p["encoder"]["num_layers"], model.get("generation", {})
    p["decoder_start_id"] = generation.get("decoder_start_id")
    need(0 <= layers <= 4096 and (not layers or p["causal"]), "an encoder's decoder is causal")
    need((p["decoder_start_id"] is not None) == (layers > 0), "decoder_start_id")
    need(not p["prefix_lm"] or (p["causal"] and not layers), "prefix_lm")
    plain = (p["block"], p["token_types"], o["count"], latent["kv_rank"], labels)
    need(not layers or plain == ("sequential", 0, 0, 0, []), "does not go with an encoder")
    exact = p["relative_buckets"] // 2
    if p["position"] == "relative":
        need(exact % 2 == 0 and p["relative_buckets"] == 2 * exact, "relative_buckets")
        need(p["relative_max_distance"] > exact and not latent["kv_rank"], "relative positions")
    p["num_heads"] = p["num_heads"] or max(1, p["embedding_dim"] // 64)
    p["num_kv_heads"] = p["num_kv_heads"] or p["num_heads"]
    need(p["num_heads"] % p["num_kv_heads"] == 0, "num_heads is not divisible by num_kv_heads")
    p["head_dim"] = p["head_dim"] or p["embedding_dim"] // p["num_heads"]
    p["value_width"] = p["latent"]["value_dim"] or p["head_dim"]
    files = [entry["file"] for entry in (model.get("weights") or {}).get("files", [])]
    tensors: dict[str, np.ndarray] = {}
    for name in files or ["model.safetensors"]:
        path = (folder / name).resolve()
        need(path.parent == folder.resolve() and path.is_file(), f"{name} is not in the folder")
        tensors |= read_safetensors(path.read_bytes())
    return p, tensors


def unique(pairs: list) -> dict:
    """A JSON object whose keys differ."""
    need(len(dict(pairs)) == len(pairs), "a key stands twice")
    return dict(pairs)


def read_safetensors(raw: bytes) -> dict[str, np.ndarray]:
    """The tensors of one file (3.1)."""
    length = int.from_bytes(raw[:8], "little")
    need(len(raw) >= 8 and length <= min(len(raw) - 8, 2**25), "header longer than the file")
    header = json.loads(raw[8 : 8 + length], object_pairs_hook=unique)
    header.pop("__metadata__", None)
    data, end, tensors = raw[8 + length :], 0, {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        need(entry["dtype"] in TYPES and start == end, f"{name}: dtype, gap or overlap")
        width = int(TYPES[entry["dtype"]][-1])
        need(stop - start == math.prod(entry["shape"]) * width, f"{name}: length")
        need(all(n >= 0 for n in entry["shape"]) and stop <= len(data), f"{name}: shape or end")
        bits = np.frombuffer(data[start:stop], TYPES[entry["dtype"]])
        if entry["dtype"] == "BF16":
            bits = (bits.astype("<u4") << 16).view("<f4")
        tensors[name], end = bits.astype(np.float64).reshape(entry["shape"]), stop
    need(end == len(data), "bytes after the last tensor")
    return tensors
