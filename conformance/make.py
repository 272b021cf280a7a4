"""Makes the kit: tiny models with random weights and what they must give.

    python conformance/make.py [NAME...]

The expected values come from `numpy_reader.py`, in float64; `llmasos_jax` only writes the files.
The kit is a fixture: make only what is new, by its NAME; what is there shows that what a released
version wrote is still read.
"""

import json
import shutil
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import tokenizers

KIT = Path(__file__).resolve().parent
sys.path[:0] = [str(KIT), str(KIT.parent)]

import head_reader  # noqa: E402
from numpy_reader import Model, rows  # noqa: E402
from refusals import REFUSED  # noqa: E402
from text_reader import encode  # noqa: E402

from llmasos_jax.config.experts import Experts  # noqa: E402
from llmasos_jax.config.heads import Classifier, Encoder  # noqa: E402
from llmasos_jax.config.latent import LatentAttention  # noqa: E402
from llmasos_jax.config.model import ModelConfig, RopeScaling  # noqa: E402
from llmasos_jax.data.tokenizers.huggingface import HuggingFaceTokenizer  # noqa: E402
from llmasos_jax.data.tokenizers.sentencepiece import SentencePieceTokenizer, train_model  # noqa: E402
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer, encode_input, load_tokenizer  # noqa: E402
from llmasos_jax.format.manifest import Generation, Manifest  # noqa: E402
from llmasos_jax.format.names import expected  # noqa: E402
from llmasos_jax.format.tensorfile import stored  # noqa: E402
from llmasos_jax.format.write import write_model  # noqa: E402

SMALL = {
    "vocab_size": 32,
    "embedding_dim": 16,
    "num_layers": 2,
    "context_length": 32,
    "ffn_dim": 24,
}
MODELS = {
    "llama": {
        **{"num_heads": 4, "num_kv_heads": 2, "tie_embeddings": False},
        "rope_scaling": RopeScaling("llama3", 8.0, 16, low_frequency=1.5, high_frequency=3.0),
    },
    "gpt2": {
        **{"num_heads": 2, "position": "learned", "norm": "layernorm", "mlp": "gelu_tanh"},
        **{"qkv_bias": True, "attention_out_bias": True, "mlp_bias": True},
    },
    "alibi-parallel": {
        **{"num_heads": 3, "head_dim": 6, "num_kv_heads": 1, "position": "alibi", "mlp": "relu"},
        **{"block": "parallel", "norm": "layernorm", "norm_bias": False, "logit_scale": 0.5},
    },
    "gemma": {
        **{"num_heads": 2, "head_dim": 12, "norm_unit_offset": True, "norm_placement": "sandwich"},
        **{"attention_windows": (4, None), "rope_theta_local": 100.0, "rope_theta": 1e6},
        **{"attention_scale": 0.3, "attention_soft_cap": 5.0, "logit_soft_cap": 8.0},
        **{"mlp": "geglu_tanh", "embedding_scale": 4.0, "qk_norm": "head"},
        "rope_scaling": RopeScaling("linear", 4.0),
    },
    "neox": {
        **{"num_heads": 2, "block": "parallel_two_norms", "rope_fraction": 0.5, "mlp": "gelu"},
        "head_dim": 16,
        **{"norm": "layernorm", "qkv_bias": True, "mlp_bias": True, "tie_embeddings": False},
        "rope_scaling": RopeScaling("yarn", 4.0, 16, beta_fast=0.2, beta_slow=0.005),
    },
    "olmo2-interleaved": {
        **{"num_heads": 2, "norm_placement": "output", "qk_norm": "full", "mlp": "reglu"},
        **{"rope_interleaved": True, "final_norm": False, "mlp_bias": True},
    },
    "encoder": {
        **{"num_heads": 2, "causal": False, "norm": "layernorm", "norm_placement": "post"},
        **{"position": "learned", "embedding_norm": True, "final_norm": False, "mlp": "silu"},
        **{"attention_windows": (None, 3), "qkv_bias": True, "mlp_bias": True},
    },
    "no-positions": {
        **{"num_heads": 2, "num_kv_heads": 1, "position": "none", "mlp": "geglu", "norm_eps": 0.1},
    },
    "defaults": {"vocab_size": 259, "embedding_dim": 8, "num_layers": 1, "ffn_dim": None},
    "latent": {
        **{"num_heads": 3, "head_dim": 10, "rope_interleaved": True, "tie_embeddings": False},
        **{
            "latent": LatentAttention(12, 8, 4, 6, 0.05),
            "head_bias": True,
            "attention_out_bias": True,
        },
    },
    "longrope": {
        **{"num_heads": 2, "head_dim": 12, "rope_fraction": 0.5},
        "rope_scaling": RopeScaling(
            "longrope",
            4.0,
            10,
            attention_factor=1.3,
            short_factors=(1.0, 1.2, 1.5),
            long_factors=(2.0, 3.0, 5.0),
        ),
    },
    "trunk": {
        **{"num_heads": 2, "causal": False, "norm": "layernorm", "norm_placement": "post"},
        **{"position": "learned", "embedding_norm": True, "final_norm": False, "mlp": "gelu"},
        **{"qkv_bias": True, "mlp_bias": True, "token_types": 3, "head": None},
    },
    "mixtral": {
        **{"num_heads": 4, "num_kv_heads": 2, "tie_embeddings": False, "num_layers": 3},
        "experts": Experts(5, 2, 10, (0,), "softmax_chosen", shared_ffn_dim=12, shared_gate=True),
    },
    "experts-in-groups": {
        **{"num_heads": 2, "mlp": "gelu_tanh", "mlp_bias": True},
        "experts": Experts(
            8, 3, None, (1,), normalize=False, scale=2.0, groups=4, groups_per_token=2
        ),
    },
    "experts-sigmoid": {
        "num_heads": 2,
        "experts": Experts(8, 3, 12, (), "sigmoid", True, 1.5, True, 4, 2, "top2", 10),
    },
    "modernbert": {
        **{"num_heads": 2, "num_layers": 4, "causal": False, "first_attn_norm": False},
        **{"embedding_norm": True, "norm": "layernorm", "norm_bias": False, "mlp": "geglu"},
        **{"attention_windows": (None, 3, 3), "rope_theta": 1e5, "rope_theta_local": 100.0},
    },
    "bert": {
        **{"vocab_size": 259, "embedding_dim": 8, "num_heads": 2, "context_length": 48},
        **{"causal": False, "norm": "layernorm", "norm_placement": "post", "mlp": "gelu"},
        **{"position": "learned", "embedding_norm": True, "final_norm": False, "token_types": 2},
        **{"qkv_bias": True, "attention_out_bias": True, "mlp_bias": True, "head": "mlm"},
        **{"pooling": "cls", "pooler": True, "next_sentence": True},
        "classifier": Classifier(("bad", "fair", "good")),
    },
    "mlm-untied": {
        **{"vocab_size": 259, "embedding_dim": 8, "num_layers": 1, "num_heads": 2, "head": "mlm"},
        **{"causal": False, "tie_embeddings": False, "mlp": "geglu", "logit_soft_cap": 5.0},
        **{"norm": "layernorm", "norm_bias": False, "classifier": Classifier(("x", "y"), "token")},
    },
    "sentencepiece": {"vocab_size": 320, "num_heads": 2, "num_layers": 1},
    "tokenizers": {"vocab_size": 320, "num_heads": 2, "num_layers": 1},
    "t5": {
        **{"num_heads": 4, "num_kv_heads": 2, "mlp": "relu", "attention_scale": 1.0},
        **{"encoder": Encoder(3), "position": "relative", "relative_buckets": 8},
        **{"relative_max_distance": 8, "attention_windows": (None, 4), "qk_norm": "head"},
    },
    "bart": {
        **{"num_heads": 2, "norm": "layernorm", "norm_placement": "post", "mlp": "gelu"},
        **{"encoder": Encoder(1), "position": "learned", "embedding_norm": True},
        **{"final_norm": False, "qkv_bias": True, "attention_out_bias": True, "mlp_bias": True},
    },
    "prefix-lm": {"num_heads": 2, "prefix_lm": True, "attention_windows": (None, 6)},
}
TEXTS = [
    *(
        "",
        "hello",
        "你好，世界！",
        "a\u0301 🙂\n",
        "the whole world, the other 2026 worlds",
        "  two  spaces",
    ),
    *("</s><s>", "tab\there\r\n\r\n", "ab<|end|>the world<|end|", "ÀÉ½ 1234"),
]


def some_text() -> list[str]:
    """What the tokenizers of the kit are trained on."""
    rng = np.random.default_rng(0)
    words = [
        "the",
        "whole",
        "world",
        "worlds",
        "other",
        "hello",
        "two",
        "here",
        "你好",
        "世界",
        "20",
    ]
    return [" ".join(rng.choice(words, size=9)) for _ in range(200)]


def train_tokenizers() -> HuggingFaceTokenizer:
    """Byte-level BPE that cuts by a regular expression, with two special tokens."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    cut = tokenizers.pre_tokenizers.Split(tokenizers.Regex(" ?[a-z]+|[0-9]|\\s+"), "isolated")
    to_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([cut, to_bytes])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=310,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(some_text(), trainer)
    return HuggingFaceTokenizer(tokenizer.to_str(), bos_id=0, eos_id=1, adds_bos=True)


TOKENIZERS = {
    "defaults": ByteTokenizer,
    "bert": ByteTokenizer,
    "mlm-untied": ByteTokenizer,
    "sentencepiece": lambda: SentencePieceTokenizer(train_model(some_text(), 300)),
    "tokenizers": train_tokenizers,
}
BFLOAT16 = ("gemma",)  # stored so, and in several files
COUNT = 6
MARGIN = 0.02  # between the best score and the next, so that rounding cannot change a greedy id
NOISE = 1e-5  # of each weight: rounding is smaller, and must not change a choice of experts


def write(name: str, changes: dict, seed: int) -> Path:
    """Writes one model; returns its folder."""
    cfg = ModelConfig(**{**SMALL, **changes})
    rng, tensors = np.random.default_rng(seed), {}
    for tensor, spec in expected(cfg).items():
        centre = 1.0 if tensor.endswith("scale") and not cfg.norm_unit_offset else 0.0
        array = centre + rng.normal(size=spec.shape) * (0.5 if len(spec.shape) > 1 else 0.2)
        dtype = ml_dtypes.bfloat16 if name in BFLOAT16 else np.float32
        tensors[tensor] = stored(array.astype(dtype))
    folder = KIT / "models" / name
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = TOKENIZERS[name]() if name in TOKENIZERS else None
    shard_bytes = 4000 if name in BFLOAT16 else 10**9
    generation = Generation(decoder_start_id=5 if cfg.encoder.num_layers else None)
    manifest = Manifest(f"conformance-{name}", cfg, generation=generation)
    write_model(folder, manifest, tensors, tokenizer, shard_bytes=shard_bytes)
    return folder


def case_of(name: str, model: Model, seed: int) -> dict | None:
    """What the model must give; None if a greedy step is too close to call."""
    rng, vocab = np.random.default_rng(seed), model.p["vocab_size"]
    sequences = [rng.integers(vocab, size=size).tolist() for size in (11, 1)]
    request: dict = {"sequences": sequences}
    if types := model.p["token_types"]:
        request["token_types"] = [rng.integers(types, size=len(ids)).tolist() for ids in sequences]
    if model.p["head"] is None:
        pairs = zip(sequences, request["token_types"], strict=True)
        hidden = [np.round(model.hidden(*pair), 7).tolist() for pair in pairs]
        return {"model": name, "request": request, "expected": {"hidden": hidden}}
    if model.p["encoder"]["num_layers"]:
        request["decoder"] = [rng.integers(vocab, size=size).tolist() for size in (7, 3)]
    if model.p["prefix_lm"]:
        request["prefixes"] = [6, 0]
    found = [np.round(model.logits(*row), 7).tolist() for row in rows(request)]
    expected_values: dict = {"logits": found}
    if model.p["experts"]["count"] and is_at_an_edge(model, sequences, rng):
        return None
    if model.p["causal"]:
        request |= {"prompt": sequences[0][:4], "count": COUNT}
        expected_values["greedy"] = model.greedy(request["prompt"], COUNT)
        best = np.sort(scores_of(model, request["prompt"], expected_values["greedy"]), axis=-1)
        if (best[:, -1] - best[:, -2]).min() < MARGIN:
            return None
    if name in TOKENIZERS and not model.p["causal"]:
        request["texts"] = TEXTS[:4]
        if model.p["next_sentence"]:
            request["pairs"] = [
                ["hello", "world"],
                [
                    "你好",
                    "",
                ],
            ]
        expected_values |= of_texts(model, request)
    elif name in TOKENIZERS:
        folder = KIT / "models" / name
        entry = json.loads((folder / "model.json").read_text())["tokenizer"]
        library = load_tokenizer(entry, folder)
        request["texts"] = TEXTS[: 4 if name == "defaults" else None]
        expected_values["ids"] = [encode(folder, text) for text in request["texts"]]
        if expected_values["ids"] != [library.encode(text) for text in request["texts"]]:
            sys.exit(f"{name}: text_reader.py and the library give different ids")
    return {"model": name, "request": request, "expected": expected_values}


def scores_of(model: Model, prompt: list[int], written: list[int]) -> np.ndarray:
    """The scores from which each id that was written came."""
    if model.p["encoder"]["num_layers"]:
        return model.logits(prompt, None, [model.p["decoder_start_id"], *written[:-1]])
    prefix = len(prompt) if model.p["prefix_lm"] else 0
    return model.logits(prompt + written, prefix=prefix)[len(prompt) - 1 : -1]


def of_texts(model: Model, request: dict) -> dict:
    """What an encoder of bytes must say of texts and pairs."""

    def read(text: str, pair: str | None = None) -> tuple[list[int], list[int]]:
        return encode_input(ByteTokenizer(), text, pair)

    found = head_reader.answers(model, request, read)
    rounded = {key: np.round(value, 7).tolist() for key, value in found.items() if key != "labels"}
    if "labels" in found:
        rounded["labels"] = [np.round(value, 7).tolist() for value in found["labels"]]
    return {"ids": [read(text)[0] for text in request["texts"]], **rounded}


def is_at_an_edge(model: Model, sequences: list[list[int]], rng: np.random.Generator) -> bool:
    """Whether rounding may send a token to another expert, which changes its result as a whole."""
    exact, before = model.tensors, [model.logits(ids) for ids in sequences]
    worst = 0.0
    for _ in range(20):
        model.tensors = {n: a * (1 + NOISE * rng.normal(size=a.shape)) for n, a in exact.items()}
        after = [model.logits(ids) for ids in sequences]
        worst = max(worst, *(abs(a - b).max() for a, b in zip(after, before, strict=True)))
    model.tensors = exact
    return worst > 1e-3


def main(*names: str) -> None:
    """Writes models and cases, of these names or all; refusals with `plain`."""
    wanted = names or (*MODELS, "plain")
    for number, (name, changes) in enumerate(MODELS.items()):
        if name not in wanted:
            continue
        case = None
        for seed in range(100 * number, 100 * number + 100):
            case = case or case_of(name, Model(write(name, changes, seed)), seed)
            if case:
                break
        if case is None:
            sys.exit(f"{name}: no seed with a clear greedy continuation")
        (KIT / "cases").mkdir(exist_ok=True)
        (KIT / "cases" / f"{name}.json").write_text(json.dumps(case) + "\n")
        print(name, "seed", seed, case["expected"].get("greedy"))
    if "plain" in wanted:
        write("plain", {"num_heads": 4, "num_kv_heads": 2}, 1)
        (KIT / "refused.json").write_text(json.dumps(REFUSED, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
