"""Loading takes the model's bytes and little more, the pages of mapped files counted."""

import json
import os
import subprocess
import sys
import textwrap

import commands
import numpy as np
import pytest

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.names import expected
from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.format.write import write_model

LIMIT = 1.15
# 400 MB in float32, its largest tensor (head.w) a tenth of it.
CFG = ModelConfig(20_000, 512, 24, context_length=64, num_heads=8, num_kv_heads=8, head_dim=64,
                  ffn_dim=1536, tie_embeddings=False)  # fmt: skip

# What a process has before is measured with one array placed, so that XLA's own is not counted.
MEASURE = """
import json, sys, threading, time
import jax, numpy as np
from llmasos_jax.generate.load import load_model
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.config.schema import MeshConfig
import llmasos_jax.interop.hf

devices, source, small = int(sys.argv[1]), sys.argv[2], sys.argv[3]
def load(path):
    mesh = make_mesh(MeshConfig(tensor=devices)) if devices > 1 else None
    return load_model(path, mesh=mesh)

def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024

load(small)  # what is imported, traced and started by loading anything
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
model = load(source)
held = sum(a.nbytes for a in jax.tree.leaves(model._weights.params))
print(json.dumps({"peak": status("VmHWM") - before, "model": held}))
"""


def random_model(folder, cfg, dtype="float32"):
    """A model's folder with random weights, written one tensor at a time."""
    rng = np.random.default_rng(0)

    def tensor(shape):
        read = lambda: (0.02 * rng.standard_normal(shape, np.float32)).astype(dtype)
        return StoredTensor(tuple(shape), dtype, read)

    tensors = {name: tensor(spec.shape) for name, spec in expected(cfg).items()}
    write_model(folder, Manifest("random", cfg), tensors)
    return folder


def hugging_face_model(folder, cfg):
    """The same as a Hugging Face folder (a Llama's names and orders of axes)."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    d, f, h = cfg.embedding_dim, cfg.ffn_dim, cfg.head_dim
    wide, narrow = cfg.query_heads * h, cfg.num_kv_heads * h
    shapes = {"model.embed_tokens.weight": (cfg.vocab_size, d), "model.norm.weight": (d,),
              "lm_head.weight": (cfg.vocab_size, d)}  # fmt: skip
    for i in range(cfg.num_layers):
        layer = {
            "input_layernorm": (d,), "post_attention_layernorm": (d,),
            "self_attn.q_proj": (wide, d), "self_attn.k_proj": (narrow, d),
            "self_attn.v_proj": (narrow, d), "self_attn.o_proj": (d, wide),
            "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f),
        }  # fmt: skip
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    folder.mkdir()
    tensors = {n: 0.02 * rng.standard_normal(s, np.float32) for n, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "vocab_size": cfg.vocab_size, "hidden_size": d, "intermediate_size": f,
        "num_hidden_layers": cfg.num_layers, "num_attention_heads": cfg.query_heads,
        "num_key_value_heads": cfg.num_kv_heads, "head_dim": h, "rms_norm_eps": 1e-5,
        "max_position_embeddings": cfg.context_length, "tie_word_embeddings": False,
        "rope_theta": 10000.0, "dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The sources by kind, each beside a tiny one of the same kind."""
    home = tmp_path_factory.mktemp("memory")
    small = CFG.replace(vocab_size=64, num_layers=2)
    return {
        "ours": (random_model(home / "o", CFG), random_model(home / "os", small)),
        "huggingface": (hugging_face_model(home / "h", CFG),
                        hugging_face_model(home / "hs", small)),
        "bfloat16": (random_model(home / "b", CFG, "bfloat16"),
                     random_model(home / "bs", small, "bfloat16")),
    }  # fmt: skip


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("kind", "devices"), [("ours", 1), ("ours", 8), ("huggingface", 1), ("bfloat16", 1)]
)
def test_loading_takes_the_bytes_of_the_model(folders, tmp_path, kind, devices):
    env = commands.environment(tmp_path)
    env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    source, small = folders[kind]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(devices), source, small],
        env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["model"] > 350e6
    assert seen["peak"] <= LIMIT * seen["model"], (seen["peak"] / seen["model"], seen)
    assert seen["peak"] > 0.9 * seen["model"], "the measure itself is wrong"
