"""How the layers of a model are stored: prefix, scanned periods, suffix.

Kernel masks are compiled in, so layers with different windows cannot share one scan step, nor can a
layer with experts and one without. The scan goes over the smallest repeating period; what does not
fit stands before or after::

    windows  . | w w w . | w w w . | w w        prefix 1, period 4, count 2, suffix 2
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from llmasos_jax.config.heads import Classifier, Encoder
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.nn.block import LayerSpec

PARTS = ("prefix", "periods", "suffix")  # of a stack, in a tree of parameters
ENCODER = "encoder"  # the stack of an encoder-decoder that is below a name of its own


@dataclass(frozen=True)
class Layout:
    """Numbers of layers before the scan, in one period of it, periods, and after it.

    `encoder` is the layout of an encoder-decoder's encoder; the rest is then of the decoder.
    """

    prefix: int
    period: int
    count: int
    suffix: int
    encoder: Layout | None = None

    @property
    def num_layers(self) -> int:
        """Layers in all."""
        return self.prefix + self.period * self.count + self.suffix

    def first_layer(self, part: str) -> int:
        """The number of the first layer of "prefix", "periods" or "suffix"."""
        starts = {"prefix": 0, "periods": self.prefix, "suffix": self.num_layers - self.suffix}
        return starts[part]

    def place_of(self, layer: int) -> tuple[str, int, int | None]:
        """Where a layer is stored: its part, its name there, and its row if it is stacked.

        Example:
          >>> Layout(prefix=1, period=2, count=3, suffix=0).place_of(4)
          ('periods', 1, 1)
        """
        if layer < self.prefix:
            return "prefix", layer, None
        scanned = layer - self.prefix
        if scanned < self.period * self.count:
            return "periods", scanned % self.period, scanned // self.period
        return "suffix", scanned - self.period * self.count, None


def layer_specs(cfg: ModelConfig) -> tuple[LayerSpec, ...]:
    """What is compiled into each layer."""
    return tuple(
        LayerSpec(cfg.layer_window(i), cfg.has_experts(i), cfg.has_attn_norm(i))
        for i in range(cfg.num_layers)
    )


def encoder_config(cfg: ModelConfig) -> ModelConfig:
    """The encoder of an encoder-decoder as a stack of its own: both ways, no windows, no heads.

    Example:
      >>> from llmasos_jax.config.heads import Encoder
      >>> cfg = ModelConfig(vocab_size=8, embedding_dim=8, num_layers=2, encoder=Encoder(3))
      >>> encoder_config(cfg).num_layers, encoder_config(cfg).causal
      (3, False)
    """
    return cfg.replace(
        num_layers=cfg.encoder.num_layers,
        causal=False,
        encoder=Encoder(),
        attention_windows=(None,),
        rope_theta_local=None,
        head=None,
        head_bias=False,
        tie_embeddings=True,
        classifier=Classifier(),
    )


def unrolled_layout(cfg: ModelConfig) -> Layout:
    """Every layer by itself: for files, and for decoding on CPU, where a scan copies weights."""
    encoder = unrolled_layout(encoder_config(cfg)) if cfg.encoder.num_layers else None
    return Layout(prefix=cfg.num_layers, period=0, count=0, suffix=0, encoder=encoder)


@functools.lru_cache(maxsize=256)
def scan_layout(cfg: ModelConfig) -> Layout:
    """The layout with the fewest layers to compile: compile time does not grow with depth."""
    specs = layer_specs(cfg)
    best = Layout(prefix=cfg.num_layers, period=0, count=0, suffix=0)
    for period in range(1, len(specs) // 2 + 1):
        for prefix in range(len(specs) - 2 * period + 1):
            if prefix + period >= best.prefix + best.period + best.suffix:
                break
            count = _repeats(specs, prefix, period)
            suffix = len(specs) - prefix - period * count
            if count >= 2 and prefix + period + suffix < best.prefix + best.period + best.suffix:
                best = Layout(prefix, period, count, suffix)
    encoder = scan_layout(encoder_config(cfg)) if cfg.encoder.num_layers else None
    return dataclasses.replace(best, encoder=encoder)


def _repeats(specs: tuple[LayerSpec, ...], start: int, period: int) -> int:
    count = 1
    while (
        specs[start + period * count : start + period * (count + 1)]
        == specs[start : start + period]
    ):
        count += 1
    return count
