"""Tiny T5 models of transformers' classes, every tensor refilled at random, in a folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCAB = 64
SIZES = dict(
    **dict(vocab_size=VOCAB, d_model=32, d_ff=48, num_heads=4, num_layers=3, num_decoder_layers=2),
    **dict(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1),
)
# Heads together wider than the stream, as in t5-3b and t5-11b; far distances share few buckets.
RELATIVE = dict(d_kv=12, relative_attention_num_buckets=8, relative_attention_max_distance=20)
GATED = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False)
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5", {**SIZES, **RELATIVE}),
    "t5-v1_1": ("T5", {**SIZES, **GATED, "d_kv": 6}),
    "mt5": ("MT5", {**SIZES, **RELATIVE, **GATED, "num_decoder_layers": 4}),
    "mt5-tied": ("MT5", {**SIZES, **RELATIVE, "feed_forward_proj": "gated-gelu"}),
}


@dataclass(frozen=True)
class Twin:
    """A model of transformers and the folder that it was saved to."""

    model: Any
    folder: Path


def make(name: str, folder: Path, *, seed: int = 0, **changes: Any) -> Twin:
    """A model whose logits are about one, so that differences would show."""
    import torch
    import transformers

    kind, options = CONFIGS[name]
    config = getattr(transformers, f"{kind}Config")(**{**options, **changes})
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).float().eval()
    if options.get("tie_word_embeddings") is False:
        # transformers 5 ties every fresh T5, and unties where a file has two tables.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    refill(model, seed)
    model.save_pretrained(folder)
    return Twin(model, folder)


def refill(model: Any, seed: int = 0) -> None:
    """Draws every parameter anew, at scales that keep states and logits near 1."""
    import torch

    torch.manual_seed(seed)
    tied = model.config.d_model**0.5 if getattr(model.config, "scale_decoder_outputs", False) else 1
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.normal_(1.0, 0.3)
                if name == "decoder.final_layer_norm.weight":
                    weight *= tied
            elif "relative" in name:
                weight.normal_(0.0, 1.0)
            elif name == "shared.weight":
                weight.normal_(0.0, 0.3)  # a tied output layer would repeat what it reads
            elif name.endswith(("q.weight", "k.weight")):
                weight.normal_(0.0, 0.7 * weight.shape[1] ** -0.5)
            else:
                weight.normal_(0.0, 1.5 * weight.shape[1] ** -0.5)
