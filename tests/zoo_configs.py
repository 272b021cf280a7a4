"""The `config.json` values that were published with each preset's weights, for transformers.

Typed from the published files, not made from our presets: where the two disagree, a test fails.
"""

from typing import Any

from zoo_encoders import ENCODERS, Published


def _sizes(width: int, ffn: int, layers: int, heads: int, kv: int, vocab: int) -> dict[str, Any]:
    return dict(
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        vocab_size=vocab,
    )


def _rope(theta: float, **scaling: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": theta, "rope_type": "default", **scaling}}


def _llama(
    *sizes: int, length: int, tied: bool = False, eps: float = 1e-5, theta: float = 1e4, **rope: Any
) -> Published:
    return "LlamaConfig", dict(
        **_sizes(*sizes),
        max_position_embeddings=length,
        rms_norm_eps=eps,
        tie_word_embeddings=tied,
        hidden_act="silu",
        **_rope(theta, **rope),
    )


def _llama3(*sizes: int, length: int, factor: float = 0.0, tied: bool = False) -> Published:
    scaling = dict(
        rope_type="llama3",
        factor=factor,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    rope = scaling if factor else {}
    return _llama(*sizes, 128256, length=length, tied=tied, theta=500000.0, **rope)


def _gpt2(width: int, layers: int, heads: int) -> Published:
    return "GPT2Config", dict(
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_positions=1024,
        vocab_size=50257,
        activation_function="gelu_new",
        layer_norm_epsilon=1e-5,
    )


def _neox(width: int, layers: int, heads: int, vocab: int, act: str = "gelu") -> Published:
    return "GPTNeoXConfig", dict(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=vocab,
        max_position_embeddings=2048,
        hidden_act=act,
        layer_norm_eps=1e-5,
        use_parallel_residual=True,
        tie_word_embeddings=False,
        **_rope(10000.0, partial_rotary_factor=0.25),
    )


def _mistral(vocab: int, theta: float, window: int | None) -> Published:
    return "MistralConfig", dict(
        **_sizes(4096, 14336, 32, 32, 8, vocab),
        max_position_embeddings=32768,
        rms_norm_eps=1e-5,
        sliding_window=window,
        tie_word_embeddings=False,
        hidden_act="silu",
        **_rope(theta),
    )


def _mixtral(*sizes: int, length: int) -> Published:
    return "MixtralConfig", dict(
        **_sizes(*sizes, 8, 32000),
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        sliding_window=None,
        tie_word_embeddings=False,
        num_local_experts=8,
        num_experts_per_tok=2,
        **_rope(1e6),
    )


def _qwen2(*sizes: int, length: int, tied: bool) -> Published:
    return "Qwen2Config", dict(
        **_sizes(*sizes),
        max_position_embeddings=length,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        use_sliding_window=False,
        hidden_act="silu",
        **_rope(1e6),
    )


def _qwen3(*sizes: int, tied: bool = False, moe: int = 0) -> Published:
    experts = dict(
        num_experts=128, num_experts_per_tok=8, moe_intermediate_size=moe, norm_topk_prob=True
    )
    return "Qwen3MoeConfig" if moe else "Qwen3Config", dict(
        **_sizes(*sizes, 151936),
        head_dim=128,
        max_position_embeddings=40960,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        attention_bias=False,
        use_sliding_window=False,
        hidden_act="silu",
        **(experts if moe else {}),
        **_rope(1e6),
    )


def _gemma(*sizes: int) -> Published:
    return "GemmaConfig", dict(
        **_sizes(*sizes, 256000),
        head_dim=256,
        max_position_embeddings=8192,
        rms_norm_eps=1e-6,
        hidden_act="gelu_pytorch_tanh",
        **_rope(10000.0),
    )


def _gemma2(*sizes: int, head_dim: int = 256, scalar: int = 256) -> Published:
    return "Gemma2Config", dict(
        **_sizes(*sizes, 256000),
        head_dim=head_dim,
        query_pre_attn_scalar=scalar,
        max_position_embeddings=8192,
        rms_norm_eps=1e-6,
        hidden_activation="gelu_pytorch_tanh",
        sliding_window=4096,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        **_rope(10000.0),
    )


def _gemma3(*sizes: int, length: int, window: int, head_dim: int = 256, scalar: int = 256):
    scaling = dict(rope_type="linear", factor=8.0) if window == 1024 else dict(rope_type="default")
    layers = sizes[2]
    return "Gemma3TextConfig", dict(
        **_sizes(*sizes),
        head_dim=head_dim,
        query_pre_attn_scalar=scalar,
        max_position_embeddings=length,
        rms_norm_eps=1e-6,
        hidden_activation="gelu_pytorch_tanh",
        sliding_window=window,
        layer_types=[
            "full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)
        ],
        rope_parameters={
            "full_attention": {"rope_theta": 1e6, **scaling},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
    )


def _phi3(*sizes: int) -> Published:
    return "Phi3Config", dict(
        **_sizes(*sizes, 32064),
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        sliding_window=2047,
        tie_word_embeddings=False,
        hidden_act="silu",
        pad_token_id=32000,
        **_rope(10000.0),
    )


def _olmo2(*sizes: int) -> Published:
    return "Olmo2Config", dict(
        **_sizes(*sizes, 100352),
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        attention_bias=False,
        hidden_act="silu",
        **_rope(500000.0),
    )


def _deepseek(version: int, *sizes: int, vocab: int, mscale: float, **own: Any) -> Published:
    yarn = dict(
        rope_type="yarn",
        factor=40.0,
        original_max_position_embeddings=4096,
        beta_fast=32.0,
        beta_slow=1.0,
        mscale=mscale,
        mscale_all_dim=mscale,
    )
    return f"DeepseekV{version}Config", dict(
        **_sizes(*sizes, sizes[-1], vocab),
        max_position_embeddings=163840,
        rms_norm_eps=1e-6,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        hidden_act="silu",
        tie_word_embeddings=False,
        **own,
        **_rope(10000.0, **yarn),
    )


PUBLISHED: dict[str, Published] = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "pythia-70m": _neox(512, 6, 8, 50304),
    "pythia-160m": _neox(768, 12, 12, 50304),
    "pythia-410m": _neox(1024, 24, 16, 50304),
    "pythia-1b": _neox(2048, 16, 8, 50304),
    "pythia-1.4b": _neox(2048, 24, 16, 50304),
    "pythia-2.8b": _neox(2560, 32, 32, 50304),
    "pythia-6.9b": _neox(4096, 32, 32, 50432),
    "pythia-12b": _neox(5120, 36, 40, 50688),
    "gpt-neox-20b": _neox(6144, 44, 64, 50432, "gelu_fast"),
    "llama-7b": _llama(4096, 11008, 32, 32, 32, 32000, length=2048, eps=1e-6),
    "llama-13b": _llama(5120, 13824, 40, 40, 40, 32000, length=2048, eps=1e-6),
    "llama-30b": _llama(6656, 17920, 60, 52, 52, 32000, length=2048, eps=1e-6),
    "llama-65b": _llama(8192, 22016, 80, 64, 64, 32000, length=2048),
    "llama-2-7b": _llama(4096, 11008, 32, 32, 32, 32000, length=4096),
    "llama-2-13b": _llama(5120, 13824, 40, 40, 40, 32000, length=4096),
    "llama-2-70b": _llama(8192, 28672, 80, 64, 8, 32000, length=4096),
    "llama-3-8b": _llama3(4096, 14336, 32, 32, 8, length=8192),
    "llama-3-70b": _llama3(8192, 28672, 80, 64, 8, length=8192),
    "llama-3.1-8b": _llama3(4096, 14336, 32, 32, 8, length=131072, factor=8.0),
    "llama-3.1-70b": _llama3(8192, 28672, 80, 64, 8, length=131072, factor=8.0),
    "llama-3.1-405b": _llama3(16384, 53248, 126, 128, 8, length=131072, factor=8.0),
    "llama-3.2-1b": _llama3(2048, 8192, 16, 32, 8, length=131072, factor=32.0, tied=True),
    "llama-3.2-3b": _llama3(3072, 8192, 28, 24, 8, length=131072, factor=32.0, tied=True),
    "mistral-7b": _mistral(32000, 10000.0, 4096),
    "mistral-7b-instruct": _mistral(32000, 1e6, None),
    "mistral-7b-v0.3": _mistral(32768, 1e6, None),
    "mixtral-8x7b": _mixtral(4096, 14336, 32, 32, length=32768),
    "mixtral-8x22b": _mixtral(6144, 16384, 56, 48, length=65536),
    "phi-3-mini-4k": _phi3(3072, 8192, 32, 32, 32),
    "phi-3-medium-4k": _phi3(5120, 17920, 40, 40, 10),
    "olmo-2-1b": _olmo2(2048, 8192, 16, 16, 16),
    "olmo-2-7b": _olmo2(4096, 11008, 32, 32, 32),
    "olmo-2-13b": _olmo2(5120, 13824, 40, 40, 40),
    "olmo-2-32b": _olmo2(5120, 27648, 64, 40, 8),
    "smollm2-135m": _llama(576, 1536, 30, 9, 3, 49152, length=8192, tied=True, theta=1e5),
    "smollm2-360m": _llama(960, 2560, 32, 15, 5, 49152, length=8192, tied=True, theta=1e5),
    "smollm2-1.7b": _llama(2048, 8192, 24, 32, 32, 49152, length=8192, tied=True, theta=1.3e5),
    "gemma-2b": _gemma(2048, 16384, 18, 8, 1),
    "gemma-7b": _gemma(3072, 24576, 28, 16, 16),
    "gemma-2-2b": _gemma2(2304, 9216, 26, 8, 4),
    "gemma-2-9b": _gemma2(3584, 14336, 42, 16, 8),
    "gemma-2-27b": _gemma2(4608, 36864, 46, 32, 16, head_dim=128, scalar=144),
    "gemma-3-270m": _gemma3(640, 2048, 18, 4, 1, 262144, length=32768, window=512),
    "gemma-3-1b": _gemma3(1152, 6912, 26, 4, 1, 262144, length=32768, window=512),
    "gemma-3-4b": _gemma3(2560, 10240, 34, 8, 4, 262208, length=131072, window=1024),
    "gemma-3-12b": _gemma3(3840, 15360, 48, 16, 8, 262208, length=131072, window=1024),
    "gemma-3-27b": _gemma3(
        *(5376, 21504, 62, 32, 16, 262208), length=131072, window=1024, head_dim=128, scalar=168
    ),
    "qwen2-0.5b": _qwen2(896, 4864, 24, 14, 2, 151936, length=131072, tied=True),
    "qwen2-1.5b": _qwen2(1536, 8960, 28, 12, 2, 151936, length=131072, tied=True),
    "qwen2-7b": _qwen2(3584, 18944, 28, 28, 4, 152064, length=131072, tied=False),
    "qwen2-72b": _qwen2(8192, 29568, 80, 64, 8, 152064, length=131072, tied=False),
    "qwen2.5-0.5b": _qwen2(896, 4864, 24, 14, 2, 151936, length=32768, tied=True),
    "qwen2.5-1.5b": _qwen2(1536, 8960, 28, 12, 2, 151936, length=131072, tied=True),
    "qwen2.5-3b": _qwen2(2048, 11008, 36, 16, 2, 151936, length=32768, tied=True),
    "qwen2.5-7b": _qwen2(3584, 18944, 28, 28, 4, 152064, length=131072, tied=False),
    "qwen2.5-14b": _qwen2(5120, 13824, 48, 40, 8, 152064, length=131072, tied=False),
    "qwen2.5-32b": _qwen2(5120, 27648, 64, 40, 8, 152064, length=131072, tied=False),
    "qwen2.5-72b": _qwen2(8192, 29568, 80, 64, 8, 152064, length=131072, tied=False),
    "qwen2-57b-a14b": (
        "Qwen2MoeConfig",
        dict(
            **_sizes(3584, 18944, 28, 28, 4, 151936),
            max_position_embeddings=131072,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
            use_sliding_window=False,
            num_experts=64,
            num_experts_per_tok=8,
            moe_intermediate_size=2560,
            shared_expert_intermediate_size=20480,
            norm_topk_prob=False,
            hidden_act="silu",
            **_rope(1e6),
        ),
    ),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, 8, tied=True),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, 8, tied=True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, 8, tied=True),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, 8),
    "qwen3-14b": _qwen3(5120, 17408, 40, 40, 8),
    "qwen3-32b": _qwen3(5120, 25600, 64, 64, 8),
    "qwen3-30b-a3b": _qwen3(2048, 6144, 48, 32, 4, moe=768),
    "qwen3-235b-a22b": _qwen3(4096, 12288, 94, 64, 4, moe=1536),
    "deepseek-v2-lite": _deepseek(
        *(2, 2048, 10944, 27, 16),
        vocab=102400,
        mscale=0.707,
        q_lora_rank=None,
        n_routed_experts=64,
        num_experts_per_tok=6,
        moe_intermediate_size=1408,
        n_shared_experts=2,
        first_k_dense_replace=1,
        norm_topk_prob=False,
        routed_scaling_factor=1.0,
        topk_method="greedy",
        n_group=1,
        topk_group=1,
    ),
    "deepseek-v2": _deepseek(
        *(2, 5120, 12288, 60, 128),
        vocab=102400,
        mscale=0.707,
        q_lora_rank=1536,
        n_routed_experts=160,
        num_experts_per_tok=6,
        moe_intermediate_size=1536,
        n_shared_experts=2,
        first_k_dense_replace=1,
        norm_topk_prob=False,
        routed_scaling_factor=16.0,
        topk_method="group_limited_greedy",
        n_group=8,
        topk_group=3,
    ),
    "deepseek-v3": _deepseek(
        *(3, 7168, 18432, 61, 128),
        vocab=129280,
        mscale=1.0,
        q_lora_rank=1536,
        n_routed_experts=256,
        num_experts_per_tok=8,
        moe_intermediate_size=2048,
        n_shared_experts=1,
        first_k_dense_replace=3,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        n_group=8,
        topk_group=4,
    ),
    **ENCODERS,
}
