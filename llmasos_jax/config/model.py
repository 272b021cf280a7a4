"""What a Transformer is: one frozen dataclass, equal to `parameters` in a `model.json`.

Every field but the first three has a default, so the smallest model of the standard (`vocab_size`,
`embedding_dim`, `num_layers`) is a whole model: a causal decoder with rotary positions, RMSNorm and
SwiGLU.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from llmasos_jax.config.experts import Experts, check_experts
from llmasos_jax.config.heads import Classifier, Encoder, check_classifier, check_encoder
from llmasos_jax.config.latent import LatentAttention, check_latent
from llmasos_jax.config.require import require_finite, require_one_of, require_positive
from llmasos_jax.config.rope import RopeScaling, check_rope_scaling
from llmasos_jax.errors import ConfigError

POSITIONS = ("rope", "learned", "alibi", "relative", "none")
BLOCKS = ("sequential", "parallel", "parallel_two_norms")
NORM_PLACEMENTS = ("pre", "post", "sandwich", "output")
HEADS = ("linear", "mlm", None)
POOLINGS = ("mean", "cls")
QK_NORMS = (None, "head", "full")
GATED_MLPS = ("swiglu", "geglu", "geglu_tanh", "reglu")


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
      prefix_lm: whether a prompt is read in both directions and continued causally (Raffel et al.,
        2019, arXiv 1910.10683, section 3.2.1).
      encoder: see `Encoder`; with one, this stack is the decoder and attends to it in each block.
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
      first_attn_norm: whether the first block's attention has its norm before it (not in
        ModernBERT, where the embedding's norm stands there).
      token_types: rows of a table that is added to the embedding by each token's type (2 in BERT,
        Devlin et al., 2018, arXiv 1810.04805: the first and the second sentence); 0 for none.
      position: "rope" (Su et al., 2021, arXiv 2104.09864), "learned", "alibi" (Press et al., 2021,
        arXiv 2108.12409), "relative" (T5's biases: Raffel et al., 2019, arXiv 1910.10683, section
        2.1; one table for all layers), "none".
      relative_buckets: rows of that table; half of them count ahead if not causal.
      relative_max_distance: from this distance on all share the last bucket.
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
      latent: see `LatentAttention`.
      qkv_bias, attention_out_bias, mlp_bias: whether these products have a bias.
      mlp: gated "swiglu", "geglu" (exact GELU), "geglu_tanh", "reglu" (Shazeer, 2020, arXiv
        2002.05202); plain "gelu", "gelu_tanh", "relu", "silu"; or "package.module:name" of a plain
        activation function.
      experts: see `Experts`.
      head: "linear", one product from the last hidden state to the logits; "mlm", a transform
        (product, activation, norm) before it and a bias after it (Devlin et al., 2018, arXiv
        1810.04805), the transform's product with a bias if `mlp_bias`; None for a trunk without an
        output layer.
      tie_embeddings: whether the output layer is the embedding table.
      head_bias: whether an output layer of its own has a bias (GPT-J).
      embedding_scale: multiplies the embeddings (sqrt(D) in Gemma).
      logit_scale: multiplies the logits.
      logit_soft_cap: c in c tanh(logits / c).
      pooling: what stands for a whole text: the "mean" of its tokens' last hidden states, or that
        of the first token, "cls".
      pooler: whether a product and tanh follow the first token's state (BERT); the classifier of a
        sequence and `next_sentence` read it.
      next_sentence: whether there is a score for "b follows a" and one for "b is from elsewhere"
        (BERT); needs the pooler.
      classifier: see `Classifier`.
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
    prefix_lm: bool = False
    encoder: Encoder = field(default_factory=Encoder)
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    norm_bias: bool = True
    norm_unit_offset: bool = False
    norm_placement: str = "pre"
    block: str = "sequential"
    final_norm: bool = True
    embedding_norm: bool = False
    first_attn_norm: bool = True
    token_types: int = 0
    position: str = "rope"
    relative_buckets: int = 32
    relative_max_distance: int = 128
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
    latent: LatentAttention = field(default_factory=LatentAttention)
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp: str = "swiglu"
    mlp_bias: bool = False
    experts: Experts = field(default_factory=Experts)
    head: str | None = "linear"
    tie_embeddings: bool = True
    head_bias: bool = False
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_soft_cap: float | None = None
    pooling: str = "mean"
    pooler: bool = False
    next_sentence: bool = False
    classifier: Classifier = field(default_factory=Classifier)

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
        if self.latent.kv_rank:
            return self.latent.rope_dim
        return int(self.head_width * self.rope_fraction) // 2 * 2

    @property
    def value_width(self) -> int:
        """Width of one head's value: H, unless latent attention says otherwise."""
        return self.latent.value_dim or self.head_width

    @property
    def expert_width(self) -> int:
        """Width inside one expert, with the default filled in."""
        return self.experts.ffn_dim if self.experts.ffn_dim is not None else self.ffn_width

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has a mixture of experts in place of the MLP."""
        return self.experts.count > 0 and layer not in self.experts.dense_layers

    def has_attn_norm(self, layer: int) -> bool:
        """Whether a layer's attention has its norm before it, if `norm_placement` has one there."""
        return self.first_attn_norm or layer > 0

    def layer_window(self, layer: int) -> int | None:
        """The attention window of one layer, in tokens; None sees everything."""
        return self.attention_windows[layer % len(self.attention_windows)]

    def replace(self, **changes: object) -> ModelConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # pyright: ignore[reportArgumentType]


def check_model(cfg: ModelConfig) -> None:
    """Raises ConfigError for the first field that breaks a rule."""
    require_finite("model", cfg)
    for name in (
        *("vocab_size", "embedding_dim", "num_layers", "context_length"),
        *("num_heads", "num_kv_heads", "head_dim", "ffn_dim"),
        *("norm_eps", "rope_theta", "rope_theta_local", "attention_soft_cap", "logit_soft_cap"),
        *("relative_buckets", "relative_max_distance"),
    ):
        if getattr(cfg, name) is not None:
            require_positive(f"model.{name}", getattr(cfg, name))
    for name, known in (
        ("position", POSITIONS),
        ("block", BLOCKS),
        ("norm_placement", NORM_PLACEMENTS),
        ("qk_norm", QK_NORMS),
        ("head", HEADS),
        ("pooling", POOLINGS),
    ):
        require_one_of(f"model.{name}", getattr(cfg, name), known)
    if cfg.token_types < 0:
        raise ConfigError(f"model.token_types={cfg.token_types} must be 0 or more")
    _check_output(cfg)
    _check_heads(cfg)
    _check_attention(cfg)
    if cfg.position == "relative":
        _check_relative(cfg)
    if cfg.rope_scaling.kind is not None and cfg.position != "rope":
        raise ConfigError(
            f'model.rope_scaling.kind="{cfg.rope_scaling.kind}" goes with position="rope", not '
            f'"{cfg.position}"; set model.position, or leave out the scaling'
        )
    check_rope_scaling(cfg.rope_scaling, cfg.rope_theta, cfg.rope_width // 2)
    check_experts(cfg.experts, cfg.num_layers)
    check_latent(cfg.latent, cfg.head_width)
    _check_latent_model(cfg)


def _check_output(cfg: ModelConfig) -> None:
    if cfg.head_bias and (cfg.tie_embeddings or cfg.head != "linear"):
        raise ConfigError(
            'model.head_bias needs model.head="linear" with weights of its own; set '
            'model.tie_embeddings=False (the head "mlm" always has a bias)'
        )
    if cfg.head is None and (cfg.causal or not cfg.tie_embeddings):
        raise ConfigError(
            "model.head=None is a trunk without an output layer; it needs model.causal=False and "
            "model.tie_embeddings=True"
        )
    for name in ("pooler", "next_sentence"):
        if getattr(cfg, name) and cfg.causal:
            raise ConfigError(f"model.{name}=True is for encoders; set model.causal=False")
    if cfg.head == "mlm" and cfg.causal:
        raise ConfigError('model.head="mlm" is for encoders; set model.causal=False')
    if cfg.next_sentence and not cfg.pooler:
        raise ConfigError("model.next_sentence reads the pooler; set model.pooler=True")
    if cfg.prefix_lm and (not cfg.causal or cfg.encoder.num_layers):
        raise ConfigError(
            "model.prefix_lm=True is for decoders alone: set model.causal=True and "
            "model.encoder.num_layers=0"
        )
    if not cfg.first_attn_norm and (cfg.norm_placement != "pre" or cfg.block != "sequential"):
        raise ConfigError(
            'model.first_attn_norm=False goes with norm_placement="pre" and block="sequential"'
        )
    check_classifier(cfg.classifier)
    check_encoder(cfg.encoder, cfg.causal)
    if cfg.encoder.num_layers:
        _check_encoder_decoder(cfg)


def _check_encoder_decoder(cfg: ModelConfig) -> None:
    for name, value, wanted in (
        ("block", cfg.block, "sequential"),
        ("token_types", cfg.token_types, 0),
        ("experts.count", cfg.experts.count, 0),
        ("latent.kv_rank", cfg.latent.kv_rank, 0),
        ("classifier.labels", cfg.classifier.labels, ()),
    ):
        if value != wanted:
            raise ConfigError(
                f"model.{name}={value!r} does not go with model.encoder.num_layers="
                f"{cfg.encoder.num_layers}; it needs {wanted!r}"
            )


def _check_heads(cfg: ModelConfig) -> None:
    n, k = cfg.query_heads, cfg.kv_heads
    if cfg.head_dim is None and cfg.embedding_dim % n:
        raise ConfigError(
            f"model.embedding_dim={cfg.embedding_dim} is not divisible by num_heads={n}; set "
            f"model.head_dim, or try num_heads={_nearest_divisor(cfg.embedding_dim, n)}"
        )
    if n % k:
        tries = ", ".join(str(d) for d in _head_counts(n))
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


def _check_relative(cfg: ModelConfig) -> None:
    # Half of a direction's buckets are exact distances, so the last must lie beyond them.
    exact = cfg.relative_buckets // 4
    if cfg.relative_buckets % 4 or cfg.relative_max_distance <= 2 * exact:
        raise ConfigError(
            f"model.relative_buckets={cfg.relative_buckets} must be a multiple of 4, and "
            f"relative_max_distance={cfg.relative_max_distance} above half of it"
        )
    if cfg.latent.kv_rank:
        raise ConfigError('model.position="relative" does not go with model.latent')


def _check_latent_model(cfg: ModelConfig) -> None:
    if not cfg.latent.kv_rank:
        return
    for name, value, wanted in (
        ("position", cfg.position, "rope"),
        ("num_kv_heads", cfg.kv_heads, cfg.query_heads),
        ("rope_fraction", cfg.rope_fraction, 1.0),
        ("qk_norm", cfg.qk_norm, None),
        ("qkv_bias", cfg.qkv_bias, False),
    ):
        if value != wanted:
            raise ConfigError(
                f"model.{name}={value!r} does not go with model.latent; it needs {wanted!r}"
            )


def _head_counts(number: int) -> list[int]:
    """Divisors that heads may number; a hostile file's number may have sixty digits."""
    return [d for d in range(1, min(number, 4096) + 1) if number % d == 0]


def _nearest_divisor(number: int, near: int) -> int:
    return min(_head_counts(number), key=lambda d: (abs(d - near), d))
