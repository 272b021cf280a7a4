"""GPT-2, GPT-3, GPT-NeoX and Pythia: LayerNorm, biases, plain GELU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.models.zoo.preset import Preset

RELEASED = "released weights"

_GPT = partial(
    ModelConfig,
    norm="layernorm",
    position="learned",
    qkv_bias=True,
    attention_out_bias=True,
    mlp="gelu_tanh",
    mlp_bias=True,
)
# The paper says "alternating dense and locally banded sparse attention patterns in the layers" and
# gives no width. 256 is that of GPT-Neo, the open model that was built after this description.
GPT3_WINDOW = 256
_NEOX = partial(
    _GPT,
    context_length=2048,
    position="rope",
    rope_fraction=0.25,
    block="parallel_two_norms",
    tie_embeddings=False,
)

# Name, width, layers, heads, parameters of the released weights.
_GPT2 = (
    ("gpt2", 768, 12, 12, 124_439_808),
    ("gpt2-medium", 1024, 24, 16, 354_823_168),
    ("gpt2-large", 1280, 36, 20, 774_030_080),
    ("gpt2-xl", 1600, 48, 25, 1_557_611_200),
)
# Name, width, layers, heads, what table D.1 prints. Two rows of table 2.1 do not make the models
# that its counts (and table D.1) are of, so the widths that do are taken: XL has 16 heads of 128
# (the table: 24), 13B is 5120 wide (the table: 5140).
_GPT3 = (
    ("gpt3-125m", 768, 12, 12, "125M"),
    ("gpt3-350m", 1024, 24, 16, "356M"),
    ("gpt3-760m", 1536, 24, 16, "760M"),
    ("gpt3-1.3b", 2048, 24, 16, "1,320M"),
    ("gpt3-2.7b", 2560, 32, 32, "2,650M"),
    ("gpt3-6.7b", 4096, 32, 32, "6,660M"),
    ("gpt3-13b", 5120, 40, 40, "12,850M"),
    ("gpt3-175b", 12288, 96, 96, "174,600M"),
)
# Name, vocabulary with its padding, width, layers, heads, parameters of the released weights.
_PYTHIA = (
    ("pythia-70m", 50304, 512, 6, 8, 70_426_624),
    ("pythia-160m", 50304, 768, 12, 12, 162_322_944),
    ("pythia-410m", 50304, 1024, 24, 16, 405_334_016),
    ("pythia-1b", 50304, 2048, 16, 8, 1_011_781_632),
    ("pythia-1.4b", 50304, 2048, 24, 16, 1_414_647_808),
    ("pythia-2.8b", 50304, 2560, 32, 32, 2_775_208_960),
    ("pythia-6.9b", 50432, 4096, 32, 32, 6_857_302_016),
    ("pythia-12b", 50688, 5120, 36, 40, 11_846_072_320),
)


def presets() -> Iterator[Preset]:
    """The family's presets, small to large."""
    for name, width, layers, heads, count in _GPT2:
        cfg = _GPT(50257, width, layers, 1024, heads)
        yield Preset(name, "GPT-2", cfg, "Radford et al., 2019", count, RELEASED)
    for name, width, layers, heads, figure in _GPT3:
        cfg = _GPT(50257, width, layers, 2048, heads, attention_windows=(None, GPT3_WINDOW))
        yield Preset(name, "GPT-3", cfg, "2005.14165", figure, "table D.1")
    for name, vocab, width, layers, heads, count in _PYTHIA:
        cfg = _NEOX(vocab, width, layers, num_heads=heads, mlp="gelu")
        yield Preset(name, "GPT-NeoX", cfg, "2304.01373", count, RELEASED)
    yield Preset(
        "gpt-neox-20b",
        "GPT-NeoX",
        _NEOX(50432, 6144, 44, num_heads=64),
        "2204.06745",
        20_554_567_680,
        "table 1",
    )
