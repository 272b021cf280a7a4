"""Counts in closed form against shapes of weights, published figures and traced products."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.model import GATED_MLPS, ModelConfig
from llmasos_jax.models.count import (
    count_active_parameters,
    count_matmul_parameters,
    count_parameters,
    flops_per_token,
    forward_flops_per_token,
    layer_parameters,
    visible_keys,
)
from llmasos_jax.models.definition import ModelDef, file_def
from llmasos_jax.models.layout import scan_layout
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.runtime import Runtime

SMALL = ModelConfig(
    vocab_size=48,
    embedding_dim=24,
    num_layers=3,
    context_length=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_dim=40,
)
GPT = {
    "norm": "layernorm",
    "position": "learned",
    "qkv_bias": True,
    "attention_out_bias": True,
    "mlp": "gelu_tanh",
    "mlp_bias": True,
}
LLAMA = {"tie_embeddings": False}

# What the models' papers, cards or released weights say, to their last digit.
PUBLISHED = {
    # Radford et al., 2019; released weights.
    "gpt2": (124_439_808, ModelConfig(50257, 768, 12, 1024, **GPT)),
    # Touvron et al., 2023, arXiv 2302.13971; released weights.
    "llama-7b": (6_738_415_616, ModelConfig(32000, 4096, 32, 2048, 32, ffn_dim=11008, **LLAMA)),
    # Llama Team, 2024, arXiv 2407.21783; released weights.
    "llama-3-8b": (
        8_030_261_248,
        ModelConfig(128256, 4096, 32, 8192, 32, 8, ffn_dim=14336, **LLAMA),
    ),
    # Jiang et al., 2023, arXiv 2310.06825; released weights.
    "mistral-7b": (
        7_241_732_096,
        ModelConfig(
            32000, 4096, 32, 32768, 32, 8, ffn_dim=14336, attention_windows=(4096,), **LLAMA
        ),
    ),
    # Allal et al., 2025, arXiv 2502.02737; released weights.
    "smollm2-135m": (134_515_008, ModelConfig(49152, 576, 30, 8192, 9, 3, ffn_dim=1536)),
    # Black et al., 2022, arXiv 2204.06745, table 1.
    "gpt-neox-20b": (
        20_554_567_680,
        ModelConfig(
            50432,
            6144,
            44,
            2048,
            64,
            block="parallel_two_norms",
            rope_fraction=0.25,
            tie_embeddings=False,
            **{**GPT, "position": "rope"},
        ),
    ),
    # Gemma Team, 2024, arXiv 2408.00118, table 2: 2,024,517,888 beside the embedding; of that the
    # released weights have 256,000 rows, the table 256,128.
    "gemma-2-2b": (
        2_024_517_888 + 256_000 * 2304,
        ModelConfig(
            256000,
            2304,
            26,
            8192,
            8,
            4,
            256,
            9216,
            norm_placement="sandwich",
            norm_unit_offset=True,
            mlp="geglu_tanh",
            attention_windows=(4096, None),
        ),
    ),
    # BigScience, 2022, arXiv 2211.05100, table 3: 559M; released weights.
    "bloom-560m": (
        559_214_592,
        ModelConfig(
            250880, 1024, 24, 2048, 16, embedding_norm=True, **{**GPT, "position": "alibi"}
        ),
    ),
    # Yang et al., 2025, arXiv 2505.09388; released weights.
    "qwen3-0.6b": (
        596_049_920,
        ModelConfig(151936, 1024, 28, 40960, 16, 8, 128, 3072, qk_norm="head"),
    ),
}
PALM = {"num_kv_heads": 1, "head_dim": 256, "block": "parallel", "mlp": "swiglu"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name: str) -> None:
    count, cfg = PUBLISHED[name]
    assert count_parameters(cfg) == count


def test_active_parameters_to_their_printed_digits() -> None:
    """Jiang et al., 2024, arXiv 2401.04088, section 1: 47B, of which a token uses 13B."""
    experts = Experts(8, 2, router="softmax_chosen")
    options = {"ffn_dim": 14336, "tie_embeddings": False, "experts": experts}
    cfg = ModelConfig(32000, 4096, 32, 32768, 32, 8, **options)
    assert count_parameters(cfg) == 46_702_792_704  # of the released weights
    assert round(count_active_parameters(cfg) / 1e9) == 13


@pytest.mark.parametrize(
    ("printed", "width", "layers", "heads"),
    [(8.63, 4096, 32, 16), (62.50, 8192, 64, 32), (540.35, 18432, 118, 48)],
)
def test_palm_to_its_printed_digits(printed: float, width: int, layers: int, heads: int) -> None:
    """Chowdhery et al., 2022, arXiv 2204.02311, table 1, in 1e9 parameters."""
    cfg = ModelConfig(256_000, width, layers, num_heads=heads, ffn_dim=4 * width, **PALM)
    assert abs(count_parameters(cfg) / 1e9 - printed) <= 0.01


def test_gpt3_to_its_printed_digits() -> None:
    """Brown et al., 2020, arXiv 2005.14165, table 2.1: 175.0e9; windows add no parameters."""
    cfg = ModelConfig(
        50257, 12288, 96, 2048, 96, head_dim=128, attention_windows=(None, 256), **GPT
    )
    assert round(count_parameters(cfg) / 1e9) == 175
    assert count_parameters(cfg) == count_parameters(
        dataclasses.replace(cfg, attention_windows=(None,))
    )


OPTIONS: dict[str, list[Any]] = {
    "norm": ["rmsnorm", "layernorm"],
    "norm_bias": [True, False],
    "norm_unit_offset": [False, True],
    "position": ["rope", "learned", "alibi", "none"],
    "qk_norm": [None, "head", "full"],
    "qkv_bias": [False, True],
    "attention_out_bias": [False, True],
    "mlp": ["swiglu", "geglu", "gelu", "relu"],
    "mlp_bias": [False, True],
    "tie_embeddings": [True, False],
    "final_norm": [True, False],
    "embedding_norm": [False, True],
    "num_kv_heads": [None, 1, 2],
    "head_dim": [None, 8, 10],
    "ffn_dim": [None, 40],
    "attention_windows": [(None,), (5, None)],
    "experts": [
        *[Experts()] * 3,
        Experts(4, 2),
        Experts(6, 1, 12, (0,), router_bias=True, shared_ffn_dim=20, shared_gate=True),
    ],
}
SHAPES = [
    {"norm_placement": "pre", "block": "sequential"},
    {"norm_placement": "post", "block": "sequential"},
    {"norm_placement": "sandwich", "block": "sequential"},
    {"norm_placement": "output", "block": "sequential"},
    {"norm_placement": "pre", "block": "parallel"},
    {"norm_placement": "pre", "block": "parallel_two_norms"},
]


@st.composite
def model_configs(draw: st.DrawFn) -> ModelConfig:
    options = {name: draw(st.sampled_from(values)) for name, values in OPTIONS.items()}
    options["head_bias"] = not options["tie_embeddings"] and draw(st.booleans())
    return dataclasses.replace(SMALL, **options, **draw(st.sampled_from(SHAPES)))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(model_configs())
def test_closed_form_equals_the_weights(cfg: ModelConfig) -> None:
    definition = file_def(cfg)
    sizes = jax.tree.map(lambda leaf: math.prod(leaf.shape), definition.shapes)
    assert count_parameters(cfg) == sum(jax.tree.leaves(sizes))
    assert layer_parameters(cfg) == sum(jax.tree.leaves(sizes["prefix"]["0"]))
    share = cfg.experts.per_token / max(cfg.experts.count, 1)
    in_products = jax.tree.map(
        lambda n, num_in, num_lead: n * (num_in > 0) * (share if num_lead else 1),
        *(sizes, definition.contractions, definition.leads),
    )
    look_up = sizes["embed"]["table"] if cfg.tie_embeddings else 0
    assert count_matmul_parameters(cfg) == sum(jax.tree.leaves(in_products)) + look_up
    idle = jax.tree.map(lambda n, lead: n * (1 - share) * lead, sizes, definition.leads)
    active = count_parameters(cfg) - sum(jax.tree.leaves(idle))
    assert count_active_parameters(cfg) == pytest.approx(active)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 4, 9, 40])
def test_visible_keys_equal_the_mask(window: int | None, causal: bool) -> None:
    cfg = dataclasses.replace(SMALL, attention_windows=(window,), causal=causal)
    index = jnp.arange(9, dtype=jnp.int32)[None]
    mask = Visibility(index, index, None, None, causal=causal, window=window).mask()
    assert visible_keys(cfg, 0, 9) == np.asarray(mask).sum() / 9


def product_flops(jaxpr: Any) -> int:
    """Operations of every dot_general of a traced function that has no loops."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += (
                2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
            )
        assert eqn.primitive.name not in ("scan", "while")
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            total += product_flops(inner) if hasattr(inner, "eqns") else 0
    return total


@pytest.mark.parametrize("options", [{}, {"mlp": "relu", "tie_embeddings": False, "head_dim": 10}])
def test_flops_equal_the_traced_products(options: dict[str, Any]) -> None:
    """Where every token sees every other, nothing is masked away, so the program does just that."""
    cfg = dataclasses.replace(SMALL, causal=False, **options)
    definition = file_def(cfg)
    tokens = jnp.zeros((2, 6), jnp.int32)

    def loss(params: Any) -> jax.Array:
        model = definition.bind(params)
        return model.logits(model.hidden(tokens, runtime=Runtime()).x_btd, Runtime()).sum()

    forward = product_flops(jax.make_jaxpr(loss)(definition.shapes).jaxpr)
    training = product_flops(jax.make_jaxpr(jax.value_and_grad(loss))(definition.shapes).jaxpr)
    assert forward == tokens.size * forward_flops_per_token(cfg, 6)
    assert training == tokens.size * flops_per_token(cfg, 6)


def test_flops_of_llama_7b_at_4096() -> None:
    """By hand: 6 x (6,738,415,616 - look-up - norms) + 32 x 12 x 4096 x 4097 / 2."""
    cfg = PUBLISHED["llama-7b"][1]
    products = 6_738_415_616 - 32000 * 4096 - 65 * 4096
    assert flops_per_token(cfg, 4096) == 6 * products + 32 * 12 * 4096 * 4097 / 2


def test_gated_kinds_are_the_ones_that_the_block_gates() -> None:
    for mlp in GATED_MLPS:
        cfg = dataclasses.replace(SMALL, mlp=mlp)
        assert "gate" in ModelDef(cfg, scan_layout(cfg)).shapes["periods"]["0"]["mlp"]
