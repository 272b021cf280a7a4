"""The peer's side of the 135M LLaMA shape (SmolLM2): transformers' own class, random weights."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM


def llama_135m(**options: Any) -> LlamaForCausalLM:
    """A model in float32; `options` are further fields of its config (`use_cache=False`)."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
            max_position_embeddings=8192,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
            rms_norm_eps=1e-5,
            **options,
        )
    )
