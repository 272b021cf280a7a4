"""The names of weights in GGUF files, and how llama.cpp's converter lays them out.

They are its own names (`blk.0.attn_q.weight`), one set for all architectures; which of them a model
has follows from its config. Products are [out, in], all experts of a layer are one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.interop.gguf.rope import FREQS, LONG, SHORT
from llmasos_jax.interop.rows import (
    ALL_EXPERTS,
    OUT_OF_HEADS,
    PER_EXPERT,
    PRODUCT,
    SAME,
    VECTOR,
    Product,
    Shape,
)
from llmasos_jax.interop.tables import Ignored, Row, Table, row

# LLaMA's converter turns the two halves of each head into neighbours, because that is how
# llama.cpp rotates there.
PAIRED = ("llama",)
# Its converter writes queries, keys and values as one tensor for these.
FUSED = ("phi3", "gpt2", "gptneox")


@dataclass(frozen=True)
class Turned:
    """Theirs has our axes in another order.

    Attributes:
      axes: for each of ours, which of theirs it is.
    """

    axes: tuple[int, ...]

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        """See `rows.Arrangement`."""
        (shape,) = ours
        return [tuple(shape[self.axes.index(axis)] for axis in range(len(self.axes)))]

    def take(self, index: int, theirs: Sequence[StoredTensor], ours: Sequence[Shape]) -> np.ndarray:
        """See `rows.Arrangement`."""
        return theirs[0].read().transpose(self.axes)

    def give(self, index: int, ours: Sequence[StoredTensor]) -> np.ndarray:
        """See `rows.Arrangement`."""
        return ours[0].read().transpose(np.argsort(self.axes))


def gguf_table(arch: str, cfg: ModelConfig, theirs: Mapping[str, StoredTensor]) -> Table:
    """The table of one architecture.

    Args:
      arch: as "general.architecture" says.
      cfg: the model.
      theirs: the file's tensors, which tell an older layout from today's.
    """
    rows = [*_ends(arch), *_norms(arch, cfg), *_attention(arch, cfg), *_mlp(arch)]
    if cfg.experts.count:
        rows += _experts()
        # Mixtral's first files had one tensor for each expert.
        if "blk.0.ffn_gate.0.weight" in theirs:
            rows += [
                row(f"layers.{{i}}.moe.{n}", f"blk.{{i}}.ffn_{n}.{{e}}.weight", PER_EXPERT)
                for n in ("gate", "up", "down")
            ]
    factors = "|".join(name.replace(".", r"\.") for name in (FREQS, LONG, SHORT))
    return Table(
        tuple(rows), (Ignored(factors, "rotary factors, which the config has read already"),)
    )


def _ends(arch: str) -> list[Row]:
    final = "output_norm"
    return [
        row("embed.table", "token_embd.weight", SAME),
        row("embed.positions", "position_embd.weight", SAME),
        row("embed.types", "token_types.weight", SAME),
        *_norm("embed.norm", "token_embd_norm"),
        *_norm("final_norm", final),
        row("head.w", "output.weight", PRODUCT),
        row("head.bias", "output.bias", VECTOR),
    ]


def _norm(ours: str, theirs: str) -> list[Row]:
    return [
        row(f"{ours}.scale", f"{theirs}.weight", VECTOR),
        row(f"{ours}.bias", f"{theirs}.bias", VECTOR),
    ]


def _norms(arch: str, cfg: ModelConfig) -> list[Row]:
    after = ("attn_output_norm", "layer_output_norm") if arch == "bert" else _AFTER
    names = {"attn_norm": "attn_norm", "mlp_norm": "ffn_norm"}
    names |= {"attn_post_norm": after[0], "mlp_post_norm": after[1]}
    return [
        line
        for ours, theirs in names.items()
        for line in _norm(f"layers.{{i}}.{ours}", f"blk.{{i}}.{theirs}")
    ]


_AFTER = ("post_attention_norm", "post_ffw_norm")


def _attention(arch: str, cfg: ModelConfig) -> list[Row]:
    if cfg.latent.kv_rank:
        return _latent_attention(cfg)
    a, b = "layers.{i}.attn.", "blk.{i}.attn_"
    is_paired = arch in PAIRED
    turned, turned_bias = Product(is_paired=is_paired), Product(num_in=0, is_paired=is_paired)
    # A paired fused tensor would need its value rows left alone; the converter writes none.
    fused = (
        []
        if is_paired
        else [
            row(f"{a}q {a}k {a}v", f"{b}qkv.weight", PRODUCT),
            row(f"{a}q_bias {a}k_bias {a}v_bias", f"{b}qkv.bias", VECTOR),
        ]
    )
    apart = [
        row(f"{a}q", f"{b}q.weight", turned),
        row(f"{a}k", f"{b}k.weight", turned),
        row(f"{a}v", f"{b}v.weight", PRODUCT),
        row(f"{a}q_bias", f"{b}q.bias", turned_bias),
        row(f"{a}k_bias", f"{b}k.bias", turned_bias),
        row(f"{a}v_bias", f"{b}v.bias", VECTOR),
    ]
    # Either is read; the first is written.
    return [
        *(fused + apart if arch in FUSED else apart + fused),
        row(f"{a}o", f"{b}output.weight", OUT_OF_HEADS),
        row(f"{a}o_bias", f"{b}output.bias", VECTOR),
        row(f"{a}q_norm.scale", f"{b}q_norm.weight", VECTOR),
        row(f"{a}k_norm.scale", f"{b}k_norm.weight", VECTOR),
    ]


def _latent_attention(cfg: ModelConfig) -> list[Row]:
    a, b = "layers.{i}.attn.", "blk.{i}.attn_"
    queries = f"{b}q_b.weight" if cfg.latent.q_rank else f"{b}q.weight"
    return [
        row(f"{a}q_down", f"{b}q_a.weight", PRODUCT),
        row(f"{a}q_down_norm.scale", f"{b}q_a_norm.weight", VECTOR),
        row(f"{a}q", queries, PRODUCT),
        row(f"{a}kv_down {a}k_rope", f"{b}kv_a_mqa.weight", PRODUCT),
        row(f"{a}kv_norm.scale", f"{b}kv_a_norm.weight", VECTOR),
        # Of each head [R, H] for keys, [Z, R] for values; older files have both in one product.
        row(f"{a}k", f"{b}k_b.weight", Turned((1, 0, 2))),
        row(f"{a}v", f"{b}v_b.weight", Turned((2, 0, 1))),
        row(f"{a}k {a}v", f"{b}kv_b.weight", Product(groups=cfg.query_heads)),
        row(f"{a}o", f"{b}output.weight", OUT_OF_HEADS),
    ]


def _mlp(arch: str) -> list[Row]:
    a, b = "layers.{i}.mlp.", "blk.{i}.ffn_"
    if arch == "phi3":
        return [
            row(f"{a}gate {a}up", f"{b}up.weight", PRODUCT),
            row(f"{a}down", f"{b}down.weight", PRODUCT),
        ]
    return [
        line
        for name in ("gate", "up", "down")
        for line in (
            row(f"{a}{name}", f"{b}{name}.weight", PRODUCT),
            row(f"{a}{name}_bias", f"{b}{name}.bias", VECTOR),
        )
    ]


def _experts() -> list[Row]:
    a, b = "layers.{i}.moe.", "blk.{i}.ffn_"
    return [
        row(f"{a}router", f"{b}gate_inp.weight", PRODUCT),
        row(f"{a}router_bias", "blk.{i}.exp_probs_b.bias", VECTOR),
        *(row(f"{a}{n}", f"{b}{n}_exps.weight", ALL_EXPERTS) for n in ("gate", "up", "down")),
        row(f"{a}gate {a}up", f"{b}gate_up_exps.weight", ALL_EXPERTS),
        *(row(f"{a}shared.{n}", f"{b}{n}_shexp.weight", PRODUCT) for n in ("gate", "up", "down")),
        row(f"{a}shared_gate", f"{b}gate_inp_shexp.weight", VECTOR),
    ]
