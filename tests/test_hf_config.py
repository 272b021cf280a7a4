"""config.json of Hugging Face folders is read strictly: every key is used, inert or an error."""

import logging
import math
from typing import Any

import numpy as np
import pytest
from small_hf import LLAMA, Json, read

from llmasos_jax.config.model import RopeScaling
from llmasos_jax.errors import FormatError
from llmasos_jax.format.names import expected


def test_defaults_are_those_of_the_class() -> None:
    cfg = read({"architectures": ["LlamaForCausalLM"]})
    assert (cfg.norm_eps, cfg.tie_embeddings, cfg.rope_theta) == (1e-6, False, 1e4)
    assert cfg.kv_heads == 32 and cfg.vocab_size == 32000
    assert read({"architectures": ["MixtralForCausalLM"]}).rope_theta == 1e6
    assert read({"architectures": ["MistralForCausalLM"]}).attention_windows == (4096,)
    gemma = read({"architectures": ["Gemma2ForCausalLM"]})
    assert gemma.tie_embeddings and gemma.attention_windows == (4096, None)
    assert (gemma.attention_soft_cap, gemma.logit_soft_cap) == (50.0, 30.0)
    qwen = {"use_sliding_window": True, "num_hidden_layers": 4, "max_window_layers": 3}
    windows = read({"architectures": ["Qwen2ForCausalLM"], **qwen}).attention_windows
    assert windows == (None, None, None, 4096)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"sliding_windows": 3}, '"sliding_windows" = 3: not known here'),
        ({"hidden_act": "mish"}, '"hidden_act" = "mish" is not computed here; known: gelu'),
        ({"hidden_act": None}, '"hidden_act" = null must not be null'),
        ({"hidden_size": "16"}, '"hidden_size" = "16" must be a whole number'),
        ({"hidden_size": 10**9}, '"hidden_size" = 1000000000 must be 1 to 262144'),
        ({"num_attention_heads": 2**62}, "must be 1 to 16384"),
        ({"num_hidden_layers": 0}, '"num_hidden_layers" = 0 must be 1 to 4096'),
        ({"num_key_value_heads": -2}, '"num_key_value_heads" = -2 must be 1 to 16384'),
        ({"hidden_size": True}, '"hidden_size" = true must be a whole number'),
        ({"rms_norm_eps": "x"}, '"rms_norm_eps" = "x" must be a number'),
        ({"attention_bias": 1}, '"attention_bias" = 1 must be true or false'),
        ({"is_encoder_decoder": True}, '"is_encoder_decoder" = true is not computed here'),
        ({"pruned_heads": {"0": [1]}}, '"pruned_heads"'),
        ({"partial_rotary_factor": 0.5}, '"partial_rotary_factor" = 0.5 is not computed here'),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, '"rope_scaling.type" = "dynamic"'),
        ({"rope_scaling": {"rope_type": "linear"}}, '"rope_scaling.factor" is missing'),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "x": 1}}, '"rope_scaling.x" = 1'),
        ({"rope_scaling": [1]}, '"rope_scaling" = [1] must be an object'),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}},
            '"rope_scaling.truncate" = false is not computed here',
        ),
        (
            {"rope_scaling": {"type": "linear"}, "rope_parameters": {"rope_theta": 1.0}},
            'stands beside "rope_parameters"',
        ),
    ],
)
def test_what_is_not_computed_is_an_error_that_names_key_and_value(change: Json, part: str) -> None:
    with pytest.raises(FormatError) as caught:
        read(LLAMA | change)
    assert part in str(caught.value)
    if "missing" not in part:
        assert "--ignore=" in str(caught.value)


def test_ignored_keys_are_taken_as_absent(caplog: pytest.LogCaptureFixture) -> None:
    scaled = LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "new_key": 1}
    with caplog.at_level(logging.WARNING):
        assert read(scaled, ("rope_scaling", "new_key")) == read(LLAMA)
    assert '"rope_scaling" = {' in caplog.text and '"new_key" = 1 is left out' in caplog.text
    part = LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0, "x": 1}}
    assert read(part, ("rope_scaling.x",)).rope_scaling == RopeScaling("linear", factor=2.0)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"factor": 4.0, "original_max_position_embeddings": 8}


@pytest.mark.parametrize(
    ("kind", "options", "wanted"),
    [
        ("default", {}, RopeScaling()),
        ("linear", {"factor": 2.0}, RopeScaling("linear", factor=2.0)),
        (
            "llama3",
            LLAMA3 | {"original_max_position_embeddings": 8},
            RopeScaling("llama3", factor=8.0, original_length=8),
        ),
        ("llama3", LLAMA3, RopeScaling("llama3", factor=8.0, original_length=32)),
        ("yarn", YARN, RopeScaling("yarn", factor=4.0, original_length=8)),
        ("yarn", YARN | {"factor": None}, RopeScaling("yarn", factor=4.0, original_length=8)),
        (
            "yarn",
            YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 16},
            RopeScaling(
                "yarn", factor=4.0, original_length=8, beta_fast=16.0, attention_factor=1.0
            ),
        ),
    ],
)
def test_both_spellings_of_rotary_positions(kind: str, options: Json, wanted: RopeScaling) -> None:
    for name in ("type", "rope_type"):
        older = {"rope_theta": 5e5, "rope_scaling": {name: kind, **options}}
        newer = {"rope_parameters": {"rope_theta": 5e5, name: kind, **options}}
        for spelled in (older, newer):
            cfg = read(LLAMA | spelled)
            assert (cfg.rope_theta, cfg.rope_scaling) == (5e5, wanted)


def test_longrope_by_all_its_names() -> None:
    factors = {"short_factor": [1.0, 1.5], "long_factor": [2, 3.0]}
    phi = LLAMA | {"architectures": ["Phi3ForCausalLM"], "original_max_position_embeddings": 8}
    wanted = RopeScaling(
        "longrope",
        factor=4.0,
        original_length=8,
        short_factors=(1.0, 1.5),
        long_factors=(2.0, 3.0),
    )
    for kind in ("su", "yarn", "longrope"):
        assert read(phi | {"rope_scaling": {"type": kind, **factors}}).rope_scaling == wanted
    half = {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
    cfg = read(phi | {"rope_scaling": half, "partial_rotary_factor": 0.5})
    assert cfg.rope_fraction == 0.5 and cfg.rope_width == 2


# config.json as the hub has them, but for keys that are in all of them, with the number of
# parameters that the weights there have.
DATED: Json = {
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0",
    "use_cache": True,
}


def sized(name: str, sizes: str, **others: Any) -> Json:
    """Vocabulary, width, MLP, layers, heads, key heads, context."""
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    keys += ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    numbers = dict(zip(keys, map(int, sizes.split()), strict=True))
    return {**DATED, "architectures": [f"{name}ForCausalLM"], **numbers, **others}


DEEPSEEK: Json = {
    **dict(attention_bias=False, auto_map={"AutoConfig": "x"}, aux_loss_alpha=0.001, ep_size=1),
    **dict(hidden_act="silu", kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64),
    **dict(v_head_dim=128, moe_layer_freq=1, pretraining_tp=1, rms_norm_eps=1e-6, seq_aux=True),
    **dict(rope_theta=10000, tie_word_embeddings=False),
}
DEEPSEEK_ROPE: Json = {
    **dict(beta_fast=32, beta_slow=1, factor=40, original_max_position_embeddings=4096),
    "type": "yarn",
}
PUBLISHED: dict[str, tuple[Json, int]] = {
    "llama-7b": (
        {k: v for k, v in sized("Llama", "32000 4096 11008 32 32 32 1").items() if "kv" not in k}
        | {"rms_norm_eps": 1e-6, "max_sequence_length": 2048, "pad_token_id": 0},
        6_738_415_616,
    ),
    "llama-3.2-1b": (
        sized(
            *("Llama", "128256 2048 8192 16 32 8 131072"),
            **dict(attention_bias=False, mlp_bias=False, head_dim=64, pretraining_tp=1),
            rope_scaling=LLAMA3 | {"original_max_position_embeddings": 8192, "rope_type": "llama3"},
            rope_theta=500000.0,
            tie_word_embeddings=True,
        ),
        1_235_814_400,
    ),
    "smollm2-135m": (
        sized(
            *("Llama", "49152 576 1536 30 9 3 8192"),
            **{"is_llama_config": True, "rope_interleaved": False, "tie_word_embeddings": True},
            **{"transformers.js_config": {"kv_cache_dtype": {}}, "rope_scaling": None},
        ),
        134_515_008,
    ),
    "mistral-7b": (
        sized("Mistral", "32000 4096 14336 32 32 8 32768", sliding_window=4096, rope_theta=1e4),
        7_241_732_096,
    ),
    "mixtral-8x7b": (
        sized(
            *("Mixtral", "32000 4096 14336 32 32 8 32768"),
            **dict(num_experts_per_tok=2, num_local_experts=8, output_router_logits=False),
            **dict(router_aux_loss_coef=0.02, rope_theta=1e6, sliding_window=None),
        ),
        46_702_792_704,
    ),
    "qwen2.5-0.5b": (
        sized(
            *("Qwen2", "151936 896 4864 24 14 2 32768"),
            **dict(max_window_layers=24, sliding_window=32768, use_sliding_window=False),
            **dict(use_mrope=False, tie_word_embeddings=True),
        ),
        494_032_768,
    ),
    "qwen3-8b": (
        sized(
            *("Qwen3", "151936 4096 12288 36 32 8 40960"),
            **dict(attention_bias=False, head_dim=128, max_window_layers=36, rope_scaling=None),
            **dict(sliding_window=None, use_sliding_window=False, rope_theta=1000000),
        ),
        8_190_735_360,
    ),
    "qwen1.5-moe-a2.7b": (
        sized(
            *("Qwen2Moe", "151936 2048 5632 24 16 16 8192"),
            **dict(decoder_sparse_step=1, max_window_layers=21, moe_intermediate_size=1408),
            **dict(norm_topk_prob=False, num_experts=60, num_experts_per_tok=4),
            **dict(shared_expert_intermediate_size=5632, router_aux_loss_coef=0.001),
            **dict(sliding_window=32768, use_sliding_window=False),
        ),
        14_315_784_192,
    ),
    "qwen3-30b-a3b": (
        sized(
            *("Qwen3Moe", "151936 2048 6144 48 32 4 40960"),
            **dict(decoder_sparse_step=1, head_dim=128, max_window_layers=48, mlp_only_layers=[]),
            **dict(moe_intermediate_size=768, norm_topk_prob=True, num_experts=128),
            **dict(num_experts_per_tok=8, use_sliding_window=False, sliding_window=None),
        ),
        30_532_122_624,
    ),
    "gemma-2b": (
        sized(
            *("Gemma", "256000 2048 16384 18 8 1 8192"),
            **dict(head_dim=256, hidden_act="gelu", hidden_activation=None, rope_scaling=None),
        ),
        2_506_172_416,
    ),
    "gemma-2-9b": (
        sized(
            *("Gemma2", "256000 3584 14336 42 16 8 8192"),
            **dict(attn_logit_softcapping=50.0, final_logit_softcapping=30.0, head_dim=256),
            **dict(cache_implementation="hybrid", hidden_act="gelu_pytorch_tanh"),
            **dict(query_pre_attn_scalar=256, sliding_window=4096, sliding_window_size=4096),
        ),
        9_241_705_984,
    ),
    "gemma-3-1b": (
        sized(
            *("Gemma3", "262144 1152 6912 26 4 1 32768"),
            **dict(attn_logit_softcapping=None, cache_implementation="hybrid", head_dim=256),
            **dict(rope_local_base_freq=10000, rope_scaling=None, rope_theta=1000000),
            **dict(query_pre_attn_scalar=256, sliding_window=512, sliding_window_pattern=6),
        ),
        999_885_952,
    ),
    "phi-3-mini": (
        sized(
            *("Phi3", "32064 3072 8192 32 32 32 4096"),
            **dict(attention_bias=False, embd_pdrop=0.0, resid_pdrop=0.0, sliding_window=2047),
            **dict(original_max_position_embeddings=4096, rope_scaling=None, auto_map={}),
        ),
        3_821_079_552,
    ),
    "olmo-2-7b": (
        sized("Olmo2", "100352 4096 11008 32 32 32 4096", rms_norm_eps=1e-6, rope_theta=500000),
        7_298_617_344,
    ),
    "deepseek-v2-lite": (
        sized(
            *("DeepseekV2", "102400 2048 10944 27 16 16 163840"),
            **DEEPSEEK,
            **dict(first_k_dense_replace=1, moe_intermediate_size=1408, n_routed_experts=64),
            **dict(n_group=1, topk_group=1, n_shared_experts=2, num_experts_per_tok=6),
            **dict(norm_topk_prob=False, q_lora_rank=None, routed_scaling_factor=1.0),
            **dict(scoring_func="softmax", topk_method="greedy"),
            rope_scaling=DEEPSEEK_ROPE | {"mscale": 0.707, "mscale_all_dim": 0.707},
        ),
        15_706_484_224,
    ),
    "deepseek-v3": (
        sized(
            *("DeepseekV3", "129280 7168 18432 61 128 128 163840"),
            **DEEPSEEK,
            **dict(first_k_dense_replace=3, moe_intermediate_size=2048, n_routed_experts=256),
            **dict(n_group=8, topk_group=4, n_shared_experts=1, num_experts_per_tok=8),
            **dict(norm_topk_prob=True, q_lora_rank=1536, routed_scaling_factor=2.5),
            **dict(scoring_func="sigmoid", topk_method="noaux_tc", num_nextn_predict_layers=1),
            rope_scaling=DEEPSEEK_ROPE | {"mscale": 1.0, "mscale_all_dim": 1.0},
        ),
        671_026_419_200,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_of_the_hub(name: str) -> None:
    config, wanted = PUBLISHED[name]
    shapes = [spec.shape for spec in expected(read(config)).values()]
    assert sum(math.prod(shape) for shape in shapes) == wanted


def test_gemma_3_caps_logits_and_no_scores() -> None:
    """What transformers does: it keeps the key of Gemma 2 and computes without."""
    caps = dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
    third = read(PUBLISHED["gemma-3-1b"][0] | caps)
    assert (third.attention_soft_cap, third.logit_soft_cap) == (None, 3.0)
    second = read(PUBLISHED["gemma-2-9b"][0] | caps)
    assert (second.attention_soft_cap, second.logit_soft_cap) == (2.0, 3.0)


def test_lengths_that_would_shrink_name_the_keys_of_the_file() -> None:
    phi = LLAMA | {"architectures": ["Phi3ForCausalLM"], "original_max_position_embeddings": 64}
    halves = {"short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0]}
    for kind in ("longrope", "yarn"):
        with pytest.raises(FormatError) as caught:
            read(phi | {"rope_scaling": {"type": kind, **halves}})
        assert '"original_max_position_embeddings" = 64 is above' in str(caught.value)
        assert '"max_position_embeddings" = 32' in str(caught.value)


def test_deepseek_scales_its_scores_for_length() -> None:
    cfg = read(PUBLISHED["deepseek-v2-lite"][0])
    mscale = 0.1 * 0.707 * np.log(40) + 1
    assert cfg.attention_scale == pytest.approx(192**-0.5 * mscale**2, rel=1e-12)
    assert cfg.rope_scaling.attention_factor == 1.0 and cfg.rope_interleaved
    assert (cfg.head_width, cfg.value_width, cfg.rope_width) == (192, 128, 64)
