"""The same with transformers + torch. A worker of cold_start.py; `--make OURS OUT` first.

As its documentation loads a model: AutoTokenizer and AutoModelForCausalLM, then `generate`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from cold_start_peak import peak_mb
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Writes one token, or makes the folder."""
    if sys.argv[1] == "--make":
        return make(Path(sys.argv[2]), Path(sys.argv[3]))
    folder, prompt = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=1, do_sample=False, pad_token_id=0)
    num = inputs.input_ids.shape[1]
    new = int(out[0, num])
    print("first token", flush=True)
    row = {"tokens": num, "id": new, "text": tokenizer.decode([new]), "peak_mb": peak_mb()}
    print(json.dumps(row), flush=True)
    os._exit(0)


def make(ours: Path, out: Path) -> None:
    """Writes the weights of an LLMasOS folder (a Llama's) with `save_pretrained`."""
    from safetensors.numpy import load_file
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    cfg = json.loads((ours / "model.json").read_text())["parameters"]
    d = cfg["embedding_dim"]
    config = LlamaConfig(
        vocab_size=cfg["vocab_size"],
        hidden_size=d,
        intermediate_size=cfg["ffn_dim"],
        num_hidden_layers=cfg["num_layers"],
        num_attention_heads=cfg["num_heads"],
        num_key_value_heads=cfg["num_kv_heads"],
        max_position_embeddings=cfg["context_length"],
        rope_parameters={"rope_type": "default", "rope_theta": cfg["rope_theta"]},
        rms_norm_eps=cfg.get("norm_eps", 1e-5),
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    held = load_file(ours / "model.safetensors")
    names = {
        "attn_norm.scale": "input_layernorm",
        "mlp_norm.scale": "post_attention_layernorm",
        **{f"attn.{x}": f"self_attn.{x}_proj" for x in "qkvo"},
        **{f"mlp.{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
    }
    state = {"model.embed_tokens.weight": held["embed.table"]}
    state |= {"model.norm.weight": held["final_norm.scale"]}
    for i in range(cfg["num_layers"]):
        for mine, theirs in names.items():
            array = held[f"layers.{i}.{mine}"]
            if array.ndim > 1:  # [in..., out...] -> [out, in]
                array = array.reshape(-1, d) if mine == "attn.o" else array.reshape(len(array), -1)
                array = array.T.copy()
            state[f"model.layers.{i}.{theirs}.weight"] = array
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise SystemExit(f"missing {missing}, unexpected {unexpected}")
    model.save_pretrained(out)
    PreTrainedTokenizerFast(tokenizer_file=str(ours / "tokenizer.json")).save_pretrained(out)


if __name__ == "__main__":
    main()
