"""The tiny models of `test_families.py`: what transformers' own classes are asked for, by variant.

Options that are not given keep transformers' defaults for that family; windows and original lengths
are short, so that short sequences reach past them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WINDOW = 7
VOCAB = 64
CONTEXT = 64
Json = dict[str, Any]


@dataclass(frozen=True)
class Twin:
    """A tiny model of transformers.

    Attributes:
      config: name of its config class.
      options: arguments of the config class.
      model: name of its model class; None is what `AutoModelForCausalLM` takes.
      prompt: tokens before the 32 greedy ones; 0 for a model that writes none.
      gain: multiplies the scale of the last norm, where logits would be small.
      older: makes of its config.json one as earlier versions of transformers wrote it.
      ignored: parts of names of tensors that belong to what is not read (images).
      inert: ends of names of tensors that cannot change any result, with the reason.
    """

    config: str
    options: Json
    model: str | None = None
    prompt: int = 12
    gain: float = 1.0
    older: Callable[[Json], Json] | None = None
    ignored: tuple[str, ...] = ()
    inert: tuple[tuple[str, str], ...] = ()


def newer(config: str, older: Callable[[Json], Json] | None = None, **options: Any) -> Twin:
    """A model of the classes that call widths alike: two layers, four heads of 8."""
    widths = dict(vocab_size=VOCAB, hidden_size=32, num_attention_heads=4, intermediate_size=48)
    fields = {f: options.pop(f) for f in FIELDS if f in options}
    if config == "OPTConfig":
        widths["ffn_dim"] = widths.pop("intermediate_size")
    common = dict(num_hidden_layers=2, max_position_embeddings=CONTEXT, **NO_IDS)
    return Twin(config, {**widths, **common, **options}, older=older, **fields)


FIELDS = ("model", "prompt", "gain", "ignored", "inert")
NO_IDS: Json = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)


def rope_of_v4(found: Json) -> Json:
    """`rope_theta` and `rope_scaling`, as most repositories of the hub have them."""
    rope = dict(found.pop("rope_parameters"))
    found["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    partial = rope.pop("partial_rotary_factor", None)
    if partial is not None:
        found["partial_rotary_factor"] = partial
    found["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    return found


def neox_of_v4(found: Json) -> Json:
    """`rotary_pct` and `rotary_emb_base`."""
    rope = found.pop("rope_parameters")
    found["rotary_pct"], found["rotary_emb_base"] = rope["partial_rotary_factor"], 10000
    return found


def gemma3_of_v4(found: Json) -> Json:
    """One base for each kind of layer, and the pattern as a number."""
    rope = found.pop("rope_parameters")
    full = dict(rope["full_attention"])
    found["rope_theta"] = full.pop("rope_theta")
    found["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    found["rope_scaling"] = None if full["rope_type"] == "default" else full
    found["sliding_window_pattern"] = 1 + found.pop("layer_types").index("full_attention")
    return found


def without(*names: str) -> Callable[[Json], Json]:
    """A config.json that leaves some keys to their defaults."""
    return lambda found: {key: value for key, value in found.items() if key not in names}


def llama(rope: Json | None = None, **options: Any) -> Twin:
    rope = {"rope_type": "default", "rope_theta": 10000.0, **(rope or {})}
    return newer("LlamaConfig", rope_of_v4, rope_parameters=rope, **options)


def gemma3(**options: Any) -> Twin:
    return newer(
        "Gemma3TextConfig",
        gemma3_of_v4,
        **{
            **dict(num_hidden_layers=6, num_key_value_heads=2, head_dim=12, sliding_window=WINDOW),
            **options,
        },
    )


def phi3(rope: Json | None = None, **options: Any) -> Twin:
    rope = {"rope_type": "default", "rope_theta": 10000.0, **(rope or {})}
    return newer("Phi3Config", rope_of_v4, rope_parameters=rope, **options)


def longrope(original: int, **options: Any) -> Twin:
    rope = dict(
        rope_type="longrope",
        short_factor=[1.0, 1.1, 1.3, 1.2],
        long_factor=[1.0, 2.5, 3.5, 5.0],
        original_max_position_embeddings=original,
    )
    return phi3(rope, original_max_position_embeddings=original, **options)


def deepseek(config: str, rope: Json | None = None, **options: Any) -> Twin:
    rope = {"rope_type": "default", "rope_theta": 10000.0, **(rope or {})}
    widths = dict(
        num_key_value_heads=4,
        kv_lora_rank=16,
        q_lora_rank=12,
        qk_nope_head_dim=6,
        qk_rope_head_dim=8,
        v_head_dim=10,
        n_routed_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=12,
        first_k_dense_replace=1,
        rope_parameters=rope,
    )
    return newer(config, rope_of_v4, **{**widths, **options})


LOCAL_THEN_GLOBAL = ["sliding_attention", "full_attention"]
KEY_BIAS = (
    "adds the same to a query's scores of all keys where positions are not rotated: softmax is as "
    "it was"
)
ROBERTA: Json = dict(max_position_embeddings=CONTEXT + 2, type_vocab_size=1, pad_token_id=1)


def encoder(config: str, model: str, **options: Any) -> Twin:
    fixed = dict(model=model, prompt=0, inert=(("key.bias", KEY_BIAS),))
    return newer(config, **fixed, **options)


MSCALE: Json = dict(
    rope_type="yarn",
    factor=4.0,
    original_max_position_embeddings=10,
    beta_fast=32,
    beta_slow=1,
    mscale=1.0,
    mscale_all_dim=0.7,
)

TWINS: dict[str, Twin] = {
    "gpt2": Twin(
        "GPT2Config",
        dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, **NO_IDS),
        older=without("n_inner", "scale_attn_weights"),
    ),
    "gpt2-untied-unscaled": Twin(
        "GPT2Config",
        dict(
            **dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT),
            **dict(n_inner=48, tie_word_embeddings=False, scale_attn_weights=False, **NO_IDS),
        ),
    ),
    "llama-mha": llama(),
    "llama-gqa-tied": llama(num_key_value_heads=2, tie_word_embeddings=True),
    "llama-mqa-biases": llama(
        num_key_value_heads=1, head_dim=12, attention_bias=True, mlp_bias=True
    ),
    "llama-linear": llama(dict(rope_type="linear", factor=3.0), num_key_value_heads=2),
    "llama-yarn": llama(
        dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=10),
        num_key_value_heads=2,
    ),
    "llama-3.1": llama(
        dict(
            rope_type="llama3",
            rope_theta=500000.0,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
        num_key_value_heads=2,
    ),
    "smollm2": llama(
        dict(rope_theta=100000.0),
        num_key_value_heads=2,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
    ),
    "mistral-gqa": newer("MistralConfig", rope_of_v4, num_key_value_heads=2, sliding_window=WINDOW),
    "mistral-mqa-tied": newer(
        "MistralConfig",
        num_key_value_heads=1,
        sliding_window=None,
        head_dim=12,
        tie_word_embeddings=True,
    ),
    "mixtral": newer("MixtralConfig", rope_of_v4, num_key_value_heads=2, num_local_experts=4),
    "mixtral-window": newer(
        "MixtralConfig",
        num_key_value_heads=4,
        num_local_experts=3,
        num_experts_per_tok=1,
        sliding_window=WINDOW,
    ),
    "qwen2-tied": newer("Qwen2Config", rope_of_v4, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2-window": newer(
        "Qwen2Config",
        without("layer_types"),
        num_hidden_layers=3,
        num_key_value_heads=1,
        use_sliding_window=True,
        sliding_window=WINDOW,
        max_window_layers=1,
    ),
    "qwen3": newer("Qwen3Config", rope_of_v4, num_key_value_heads=2, head_dim=12),
    "qwen3-tied-biases": newer(
        "Qwen3Config",
        num_key_value_heads=4,
        head_dim=8,
        tie_word_embeddings=True,
        attention_bias=True,
    ),
    "qwen2-moe": newer(
        "Qwen2MoeConfig",
        rope_of_v4,
        num_hidden_layers=3,
        num_key_value_heads=2,
        num_experts=6,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
        shared_expert_intermediate_size=20,
        mlp_only_layers=[1],
    ),
    "qwen3-moe": newer(
        "Qwen3MoeConfig",
        rope_of_v4,
        num_key_value_heads=2,
        head_dim=12,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
    ),
    "qwen3-moe-normalized": newer(
        "Qwen3MoeConfig",
        num_hidden_layers=3,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
        norm_topk_prob=True,
        decoder_sparse_step=2,
        tie_word_embeddings=True,
    ),
    "gemma-mqa": newer("GemmaConfig", rope_of_v4, num_key_value_heads=1, head_dim=12),
    "gemma2": newer(
        "Gemma2Config",
        rope_of_v4,
        num_hidden_layers=4,
        num_key_value_heads=2,
        head_dim=12,
        sliding_window=WINDOW,
    ),
    "gemma2-low-caps": newer(
        "Gemma2Config",
        num_hidden_layers=3,
        num_key_value_heads=4,
        head_dim=8,
        sliding_window=WINDOW,
        query_pre_attn_scalar=9,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=4.0,
    ),
    "gemma3": gemma3(),
    "gemma3-scaled": gemma3(
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
        query_pre_attn_scalar=12,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
        },
    ),
    # The text part of a model that reads images too; its own names, and a config inside the config.
    "gemma3-in-whole": Twin(
        "Gemma3Config",
        dict(
            text_config={**gemma3(num_hidden_layers=2).options, "layer_types": LOCAL_THEN_GLOBAL},
            vision_config=dict(
                **dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1),
                **dict(num_attention_heads=2, image_size=28, patch_size=14),
            ),
            mm_tokens_per_image=4,
            **NO_IDS,
        ),
        model="Gemma3ForConditionalGeneration",
        ignored=("vision_tower", "multi_modal_projector"),
    ),
    "phi3": phi3(num_key_value_heads=2),
    "phi3-partial-rotary": phi3(dict(partial_rotary_factor=0.75), tie_word_embeddings=True),
    "phi3-window": phi3(num_key_value_heads=1, sliding_window=WINDOW),
    "phi3-longrope-short": longrope(40, prompt=4),
    "phi3-longrope-long": longrope(10, num_key_value_heads=2),
    "gpt-neox": newer("GPTNeoXConfig", neox_of_v4, rope_parameters=dict(partial_rotary_factor=0.5)),
    "gpt-neox-sequential-tied": newer(
        "GPTNeoXConfig",
        use_parallel_residual=False,
        tie_word_embeddings=True,
        rope_parameters=dict(rope_theta=500.0, partial_rotary_factor=1.0),
    ),
    # Its own rotary_pct of 0.25: one pair of each head of 8.
    "pythia": newer("GPTNeoXConfig", neox_of_v4),
    "gpt-neox-no-biases": newer("GPTNeoXConfig", attention_bias=False),
    "gptj": Twin(
        "GPTJConfig",
        dict(
            **dict(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT),
            **dict(rotary_dim=4, **NO_IDS),
        ),
    ),
    "bloom": Twin(
        "BloomConfig", dict(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, **NO_IDS)
    ),
    # Six heads: slopes for a number that is no power of two.
    "bloom-six-heads-untied": Twin(
        "BloomConfig",
        dict(
            **dict(vocab_size=VOCAB, hidden_size=48, n_layer=2, n_head=6),
            **dict(tie_word_embeddings=False, **NO_IDS),
        ),
    ),
    "mpt": Twin(
        "MptConfig",
        dict(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=4, max_seq_len=CONTEXT, **NO_IDS),
    ),
    "mpt-six-heads": Twin(
        "MptConfig",
        dict(
            **dict(vocab_size=VOCAB, d_model=48, n_layers=2, n_heads=6, max_seq_len=CONTEXT),
            **dict(attn_config={"softmax_scale": 0.3}, **NO_IDS),
        ),
    ),
    "opt": newer("OPTConfig", inert=(("k_proj.bias", KEY_BIAS),)),
    "opt-untied-no-biases": newer("OPTConfig", enable_bias=False, tie_word_embeddings=False),
    "cohere": newer("CohereConfig", rope_of_v4, num_key_value_heads=2, gain=8.0),
    "cohere-mqa-biases": newer(
        "CohereConfig",
        num_key_value_heads=1,
        attention_bias=True,
        logit_scale=0.25,
        tie_word_embeddings=False,
        gain=4.0,
    ),
    "olmo2-gqa": newer("Olmo2Config", rope_of_v4, num_key_value_heads=2),
    "olmo2-mha-tied": newer("Olmo2Config", tie_word_embeddings=True, attention_bias=True),
    "deepseek-v2": deepseek("DeepseekV2Config", n_shared_experts=2),
    "deepseek-v2-groups-no-q-rank": deepseek(
        "DeepseekV2Config",
        MSCALE,
        q_lora_rank=None,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        routed_scaling_factor=1.7,
    ),
    "deepseek-v3": deepseek("DeepseekV3Config", n_group=4, topk_group=2),
    "deepseek-v3-yarn-no-q-rank": deepseek(
        "DeepseekV3Config",
        MSCALE,
        q_lora_rank=None,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        norm_topk_prob=False,
        rope_interleave=False,
    ),
    "bert": encoder("BertConfig", "BertModel"),
    "bert-masked-lm": encoder("BertConfig", "BertForMaskedLM", hidden_act="gelu_new"),
    "roberta": encoder("RobertaConfig", "RobertaModel", **ROBERTA),
    "roberta-masked-lm": encoder("RobertaConfig", "RobertaForMaskedLM", **ROBERTA),
    "xlm-roberta": encoder(
        "XLMRobertaConfig",
        "XLMRobertaModel",
        **{**ROBERTA, "type_vocab_size": 2},
    ),
}
