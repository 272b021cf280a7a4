"""What a Transformer is: one frozen dataclass, equal to `parameters` in a `model.json`.

Every field but the first three has a default, so the smallest model of the standard (`vocab_size`,
`embedding_dim`, `num_layers`) is a whole model: a causal decoder with rotary positions, RMSNorm and
SwiGLU.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

from llmasos_jax.errors import ConfigError, did_you_mean

POSITIONS = ("rope", "learned", "alibi", "none")
BLOCKS = ("sequential", "parallel", "parallel_two_norms")
NORM_PLACEMENTS = ("pre", "post", "sandwich", "output")
QK_NORMS = (None, "head", "full")
ROPE_SCALINGS = (None, "linear", "llama3", "yarn")
GATED_MLPS = ("swiglu", "geglu", "geglu_tanh", "reglu")


@dataclass(frozen=True)
class RopeScaling:
    """Stretches rotary positions past the length that a model was trained on.

    Attributes:
      kind: None, "linear" (positions divided by `factor`; Chen et al., 2023, arXiv 2306.15595),
        "llama3" (Llama Team, 2024, arXiv 2407.21783, as in its released code) or "yarn" (Peng et
        al., 2023, arXiv 2309.00071).
      factor: how much longer the new context is.
      original_length: context of the first training, in tokens ("llama3", "yarn").
      low_frequency, high_frequency: bounds of the blend, in turns over `original_length`
        ("llama3").
      beta_fast, beta_slow: bounds of the blend, in turns over `original_length` ("yarn").
      attention_factor: multiplies sine and cosine ("yarn"); None means 0.1 ln(factor) + 1.
    """

    kind: str | None = None
    factor: float = 1.0
    original_length: int | None = None
    low_frequency: float = 1.0
    high_frequency: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


@dataclass(frozen=True)
class ModelConfig:
    """A Transformer. Widths are counts of numbers, lengths are counts of tokens.

    Attributes:
      vocab_size: rows of the embedding table; at least the tokenizer's size.
      embedding_dim: width D of the residual stream.
      num_layers: number L of blocks.
      context_length: longest sequence that the model is meant for.
      num_heads: query heads N; None means one per 64 of `embedding_dim`, at least 1.
      num_kv_heads: key/value heads K, a divisor of N (Ainslie et al., 2023, arXiv 2305.13245); None
        means N.
      head_dim: width H of one head; None means `embedding_dim // num_heads`.
      ffn_dim: width F inside the MLP; None means 4 D, or for gated kinds 8/3 D rounded up to a
        multiple of 64.
      causal: whether a position sees only itself and what stands before it.
      norm: "rmsnorm" (Zhang and Sennrich, 2019, arXiv 1910.07467), "layernorm", or
        "package.module:name".
      norm_eps: added to the variance.
      norm_bias: whether a LayerNorm has a bias (an RMSNorm never has).
      norm_unit_offset: whether a norm multiplies by 1 + scale (Gemma) instead of scale.
      norm_placement: "pre" x + f(norm(x)); "post" norm(x + f(x)) (BERT); "sandwich" x +
        norm(f(norm(x))) (Gemma 2); "output" x + norm(f(x)) (OLMo 2).
      block: "sequential" attention, then MLP; "parallel" both read one norm of the same input
        (PaLM, Chowdhery et al., 2022, arXiv 2204.02311); "parallel_two_norms" each has its own norm
        (GPT-NeoX).
      final_norm: whether a norm follows the last block.
      embedding_norm: whether a norm follows the embedding (BERT).
      position: "rope" (Su et al., 2021, arXiv 2104.09864), "learned", "alibi" (Press et al., 2021,
        arXiv 2108.12409), "none".
      rope_theta: base of the rotary frequencies.
      rope_theta_local: base in layers that have a window; None means `rope_theta` (scaling then
        applies there too).
      rope_fraction: share of each head that is rotated (0.25 in GPT-NeoX).
      rope_interleaved: whether neighbours (0, 1), (2, 3) form pairs, instead of the two halves.
      rope_scaling: see `RopeScaling`.
      attention: "dot_product", or "package.module:name" of a function of the same signature.
      attention_windows: pattern over the layers, repeated: None sees everything, w sees the last w
        positions, itself included (its own side only if causal, else both). As long as
        `num_layers`, it names each layer.
      attention_scale: multiplies the scores; None means 1 / sqrt(head_dim).
      attention_soft_cap: c in c tanh(scores / c).
      qk_norm: None, "head" (over each head's width, Qwen 3) or "full" (over all heads together,
        OLMo 2).
      qkv_bias, attention_out_bias, mlp_bias: whether these products have a bias.
      mlp: gated "swiglu", "geglu" (exact GELU), "geglu_tanh", "reglu" (Shazeer, 2020, arXiv
        2002.05202); plain "gelu", "gelu_tanh", "relu", "silu"; or "package.module:name" of a plain
        activation function.
      tie_embeddings: whether the output layer is the embedding table.
      embedding_scale: multiplies the embeddings (sqrt(D) in Gemma).
      logit_scale: multiplies the logits.
      logit_soft_cap: c in c tanh(logits / c).
    """

    vocab_size: int
    embedding_dim: int
    num_layers: int
    context_length: int = 2048
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    ffn_dim: int | None = None
    causal: bool = True
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    norm_bias: bool = True
    norm_unit_offset: bool = False
    norm_placement: str = "pre"
    block: str = "sequential"
    final_norm: bool = True
    embedding_norm: bool = False
    position: str = "rope"
    rope_theta: float = 10000.0
    rope_theta_local: float | None = None
    rope_fraction: float = 1.0
    rope_interleaved: bool = False
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    attention: str = "dot_product"
    attention_windows: tuple[int | None, ...] = (None,)
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    qk_norm: str | None = None
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp: str = "swiglu"
    mlp_bias: bool = False
    tie_embeddings: bool = True
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_soft_cap: float | None = None

    def __post_init__(self) -> None:
        check_model(self)

    @property
    def query_heads(self) -> int:
        """N, with the default filled in."""
        return self.num_heads if self.num_heads is not None else max(1, self.embedding_dim // 64)

    @property
    def kv_heads(self) -> int:
        """K, with the default filled in."""
        return self.num_kv_heads if self.num_kv_heads is not None else self.query_heads

    @property
    def head_width(self) -> int:
        """H, with the default filled in."""
        return (
            self.head_dim if self.head_dim is not None else self.embedding_dim // self.query_heads
        )

    @property
    def ffn_width(self) -> int:
        """F, with the default filled in."""
        if self.ffn_dim is not None:
            return self.ffn_dim
        if self.is_gated:
            return -(-8 * self.embedding_dim // (3 * 64)) * 64
        return 4 * self.embedding_dim

    @property
    def is_gated(self) -> bool:
        """Whether the MLP multiplies two projections."""
        return self.mlp in GATED_MLPS

    @property
    def rope_width(self) -> int:
        """How many of the H numbers of a head are rotated."""
        return int(self.head_width * self.rope_fraction) // 2 * 2

    def layer_window(self, layer: int) -> int | None:
        """The attention window of one layer, in tokens; None sees everything."""
        return self.attention_windows[layer % len(self.attention_windows)]

    def replace(self, **changes: object) -> ModelConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]


def check_model(cfg: ModelConfig) -> None:
    """Raises ConfigError for the first field that breaks a rule."""
    require_finite("model", cfg)
    require_finite("model.rope_scaling", cfg.rope_scaling)
    for name in (
        *("vocab_size", "embedding_dim", "num_layers", "context_length"),
        *("num_heads", "num_kv_heads", "head_dim", "ffn_dim"),
        *("norm_eps", "rope_theta", "rope_theta_local", "attention_soft_cap", "logit_soft_cap"),
    ):
        if getattr(cfg, name) is not None:
            require_positive(f"model.{name}", getattr(cfg, name))
    for name, known in (
        ("position", POSITIONS),
        ("block", BLOCKS),
        ("norm_placement", NORM_PLACEMENTS),
        ("qk_norm", QK_NORMS),
    ):
        require_one_of(f"model.{name}", getattr(cfg, name), known)
    require_one_of("model.rope_scaling.kind", cfg.rope_scaling.kind, ROPE_SCALINGS)
    _check_heads(cfg)
    _check_attention(cfg)


def _check_heads(cfg: ModelConfig) -> None:
    n, k = cfg.query_heads, cfg.kv_heads
    if cfg.head_dim is None and cfg.embedding_dim % n:
        raise ConfigError(
            f"model.embedding_dim={cfg.embedding_dim} is not divisible by num_heads={n}; set "
            f"model.head_dim, or try num_heads={_nearest_divisor(cfg.embedding_dim, n)}"
        )
    if n % k:
        tries = ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
        raise ConfigError(
            f"model.num_heads={n} is not divisible by num_kv_heads={k}; try one of {tries}"
        )
    if cfg.position == "rope" and cfg.rope_width < 2:
        raise ConfigError(
            f"model.rope_fraction={cfg.rope_fraction} of head_dim={cfg.head_width} leaves nothing "
            "to rotate; raise either, or set model.position"
        )


def _check_attention(cfg: ModelConfig) -> None:
    if not cfg.attention_windows:
        raise ConfigError(
            "model.attention_windows is empty; write (None,) for attention without windows"
        )
    if len(cfg.attention_windows) > cfg.num_layers:
        raise ConfigError(
            f"model.attention_windows names {len(cfg.attention_windows)} layers, the model "
            f"has {cfg.num_layers}; shorten the pattern"
        )
    for window in cfg.attention_windows:
        if window is not None:
            require_positive("model.attention_windows", window)
    if not 0.0 < cfg.rope_fraction <= 1.0:
        raise ConfigError(f"model.rope_fraction={cfg.rope_fraction} must be above 0 and at most 1")
    if cfg.block != "sequential" and cfg.norm_placement != "pre":
        raise ConfigError(
            f'model.norm_placement="{cfg.norm_placement}" goes with '
            f'block="sequential" only; a parallel block is "pre"'
        )
    if cfg.rope_scaling.kind in ("llama3", "yarn") and not cfg.rope_scaling.original_length:
        raise ConfigError(
            f'model.rope_scaling.kind="{cfg.rope_scaling.kind}" needs '
            "rope_scaling.original_length, the context length of the first training in tokens"
        )
    _check_rope_scaling(cfg)


def _check_rope_scaling(cfg: ModelConfig) -> None:
    scaling = cfg.rope_scaling
    if scaling.kind is not None:
        require_positive("model.rope_scaling.factor", scaling.factor)
    if scaling.kind == "llama3" and scaling.high_frequency <= scaling.low_frequency:
        raise ConfigError(
            f"model.rope_scaling.high_frequency={scaling.high_frequency} must be above "
            f"low_frequency={scaling.low_frequency}: the blend lies between them"
        )
    if scaling.kind == "yarn" and cfg.rope_theta <= 1:
        raise ConfigError(f"model.rope_theta={cfg.rope_theta} must be above 1 for yarn scaling")


def require_finite(path: str, group: object) -> None:
    """Raises ConfigError if a field of the dataclass `group` is NaN or infinite."""
    for name, value in vars(group).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path}.{name}={value} must be a finite number")


def require_positive(path: str, value: float) -> None:
    """Raises ConfigError unless `value` is above zero."""
    if value <= 0:
        raise ConfigError(f"{path}={value} must be above 0")


def require_one_of(path: str, value: object, known: tuple[object, ...]) -> None:
    """Raises ConfigError unless `value` is one of `known`."""
    if value not in known:
        hint = did_you_mean(str(value), [str(k) for k in known])
        raise ConfigError(f"{path}={value!r} is not known{hint}")


def _nearest_divisor(number: int, near: int) -> int:
    return min(
        (d for d in range(1, number + 1) if number % d == 0), key=lambda d: (abs(d - near), d)
    )
