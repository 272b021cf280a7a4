"""A tiny decoder with a tokenizer that every target of an export can say."""

import functools
import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, processors

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.names import expected
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.format.write import write_model
from llmasos_jax.interop.built import BuiltTokenizer

# Heads of their own keys, biases, an output layer; q and o are square, so that a transposed one has
# the right shape too.
CFG = ModelConfig(
    272, 32, 2, context_length=40, num_heads=4, num_kv_heads=2, head_dim=8, ffn_dim=48,
    qkv_bias=True, attention_out_bias=True, tie_embeddings=False, rope_theta=100.0,
)  # fmt: skip
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("r", "e")]


def tokenizer(folder: Path, *, bos: str = "<s>", merges: int = 4) -> BuiltTokenizer:
    """Byte-level BPE that begins a text with `bos` and knows the first few merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", *letters, *("".join(pair) for pair in MERGES[:merges])]
    vocab = {token: number for number, token in enumerate(tokens)}
    made = Library(models.BPE(vocab, MERGES[:merges]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, vocab[bos])]
    )
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(made.to_str())), encoding="utf-8")
    return BuiltTokenizer(functools.partial(HuggingFaceTokenizer.from_file, path))


def source(folder: Path, cfg: ModelConfig = CFG) -> Path:
    """A model folder: every tensor random, scales and biases too."""
    rng = np.random.default_rng(7)
    tensors = {}
    for name, spec in expected(cfg).items():
        centre = float(name.endswith("scale"))
        tensors[name] = stored((centre + 0.3 * rng.normal(size=spec.shape)).astype(np.float32))
    folder.mkdir(parents=True)
    beside = folder.with_name(f"{folder.name}-tokenizer")
    beside.mkdir()
    return write_model(folder, Manifest("tiny", cfg), tensors, tokenizer(beside))
