"""Parameters, floating-point operations and bytes of a model, in closed form: nothing is built."""

from __future__ import annotations

from llmasos_jax.config.model import ModelConfig


def count_parameters(cfg: ModelConfig) -> int:
    """Numbers that training changes, the embedding table counted once where it is tied.

    Example:
      >>> count_parameters(ModelConfig(vocab_size=256, embedding_dim=64, num_layers=2))
      123200
    """
    d = cfg.embedding_dim
    embed = cfg.vocab_size * d
    if cfg.position == "learned":
        embed += cfg.context_length * d
    embed += cfg.token_types * d
    if cfg.embedding_norm:
        embed += _norm(cfg, d)
    head = 0 if cfg.tie_embeddings else cfg.vocab_size * d
    head += cfg.vocab_size if cfg.head_bias else 0
    head += head_parameters(cfg)
    stacks = stack_parameters(cfg)
    if cfg.encoder.num_layers:
        # Here, not above: it brings JAX along, which nothing else in this file needs.
        from llmasos_jax.models.layout import encoder_config

        stacks += stack_parameters(encoder_config(cfg))
    return embed + stacks + head


def stack_parameters(cfg: ModelConfig) -> int:
    """Numbers in the blocks of one stack, the norm after them and its table of positions.

    Example:
      >>> stack_parameters(ModelConfig(256, 64, 2, position="relative", relative_buckets=16))
      106832
    """
    total = _norm(cfg, cfg.embedding_dim) if cfg.final_norm else 0
    if cfg.position == "relative":
        total += cfg.relative_buckets * cfg.query_heads
    return total + sum(layer_parameters(cfg, layer) for layer in range(cfg.num_layers))


def head_parameters(cfg: ModelConfig) -> int:
    """Numbers in the heads of an encoder, without the matrix that gives a score for each token.

    Example:
      >>> head_parameters(ModelConfig(256, 64, 2, causal=False, head="mlm", pooler=True))
      8576
    """
    d = cfg.embedding_dim
    square, labels = d * d + d, len(cfg.classifier.labels)
    total = (square if cfg.pooler else 0) + (2 * d + 2 if cfg.next_sentence else 0)
    total += labels * (d + 1)
    if cfg.head == "mlm":
        total += d * d + (d if cfg.mlp_bias else 0) + _norm(cfg, d) + cfg.vocab_size
    return total


def count_active_parameters(cfg: ModelConfig) -> int:
    """Of `count_parameters`, those that one token meets: all but the experts not chosen for it.

    Example:
      >>> from llmasos_jax.config.experts import Experts
      >>> cfg = ModelConfig(256, 64, 2, experts=Experts(count=8, per_token=2))
      >>> count_parameters(cfg), count_active_parameters(cfg)
      (640320, 197952)
    """
    idle = cfg.experts.count - cfg.experts.per_token
    layers = sum(map(cfg.has_experts, range(cfg.num_layers)))
    return count_parameters(cfg) - layers * idle * _expert(cfg)


def layer_parameters(cfg: ModelConfig, layer: int = 0) -> int:
    """Numbers in one block, norms and biases included, and all its experts."""
    d, f, h = cfg.embedding_dim, cfg.ffn_width, cfg.head_width
    q, kv = cfg.query_heads * h, cfg.kv_heads * h
    total = layer_matmul_parameters(cfg, layer) + norms_in_layer(cfg, layer) * _norm(cfg, d)
    if cfg.has_experts(layer):
        total += (cfg.experts.count - cfg.experts.per_token) * _expert(cfg)
        total += cfg.experts.count if cfg.experts.router_bias else 0
    elif cfg.mlp_bias:
        total += (2 if cfg.is_gated else 1) * f + d
    beside = q + 2 * kv if cfg.qkv_bias else 0
    beside += d if cfg.attention_out_bias else 0
    # Norms of queries and keys have a scale only.
    beside += {None: 0, "head": 2 * h, "full": q + kv}[cfg.qk_norm]
    total += beside * (2 if cfg.encoder.num_layers else 1)
    if cfg.latent.kv_rank:
        total += cfg.latent.kv_rank + (cfg.latent.q_rank or 0)  # their norms
    return total


def norms_in_layer(cfg: ModelConfig, layer: int) -> int:
    """Norms of width D in one block."""
    per_sublayer = 2 if cfg.norm_placement == "sandwich" else 1
    missing = 0 if cfg.has_attn_norm(layer) else 1
    sublayers = (1 if cfg.block == "parallel" else 2) + (1 if cfg.encoder.num_layers else 0)
    return per_sublayer * sublayers - missing


def layer_matmul_parameters(cfg: ModelConfig, layer: int = 0) -> int:
    """Numbers in one block that a product multiplies each token by: of experts, the chosen ones."""
    d, experts = cfg.embedding_dim, cfg.experts
    attention = attention_matmul_parameters(cfg)
    if cfg.encoder.num_layers:
        attention += _plain_attention(cfg)
    if not cfg.has_experts(layer):
        return attention + _mlp(cfg, cfg.ffn_width)
    router = d * experts.count + (d if experts.shared_gate else 0)
    shared = _mlp(cfg, experts.shared_ffn_dim)
    return attention + router + shared + experts.per_token * _expert(cfg)


def attention_matmul_parameters(cfg: ModelConfig) -> int:
    """Numbers in the attention of one block that a product multiplies each token by."""
    d, n, h = cfg.embedding_dim, cfg.query_heads, cfg.head_width
    latent = cfg.latent
    if not latent.kv_rank:
        return _plain_attention(cfg)
    queries = latent.q_rank * (d + n * h) if latent.q_rank else d * n * h
    expanded = n * (h - latent.rope_dim + cfg.value_width)
    keys_values = latent.kv_rank * (d + expanded) + d * latent.rope_dim
    return queries + keys_values + n * cfg.value_width * d


def count_matmul_parameters(cfg: ModelConfig) -> int:
    """Numbers that a product multiplies each token by: blocks and output layer, not the look-up.

    What a whole text goes through once (pooler, next sentence, its classifier) is not counted.

    Example:
      >>> count_matmul_parameters(ModelConfig(vocab_size=256, embedding_dim=64, num_layers=2))
      122880
    """
    layers = sum(layer_matmul_parameters(cfg, layer) for layer in range(cfg.num_layers))
    return layers + output_matmul_parameters(cfg)


def output_matmul_parameters(cfg: ModelConfig) -> int:
    """Numbers in the products of the output layer, and of a classifier of tokens.

    Example:
      >>> output_matmul_parameters(ModelConfig(256, 64, 2, causal=False, head="mlm"))
      20480
    """
    d = cfg.embedding_dim
    transform = d * d if cfg.head == "mlm" else 0
    labels = len(cfg.classifier.labels) if cfg.classifier.level == "token" else 0
    return (0 if cfg.head is None else cfg.vocab_size * d) + transform + labels * d


def text_matmul_parameters(cfg: ModelConfig) -> int:
    """Numbers in the products that a whole text goes through once, not each of its tokens.

    Example:
      >>> text_matmul_parameters(
      ...     ModelConfig(256, 64, 2, causal=False, pooler=True, next_sentence=True)
      ... )
      4224
    """
    d = cfg.embedding_dim
    labels = len(cfg.classifier.labels) if cfg.classifier.level == "sequence" else 0
    return (d * d if cfg.pooler else 0) + d * ((2 if cfg.next_sentence else 0) + labels)


def visible_keys(cfg: ModelConfig, layer: int, sequence_length: int) -> float:
    """Keys that a token of this layer attends to, the mean over a sequence of one document.

    Causal: a token at position p sees min(p + 1, window); else it sees its window on both sides,
    cut at the ends.

    Example:
      >>> cfg = ModelConfig(vocab_size=8, embedding_dim=8, num_layers=1, attention_windows=(2,))
      >>> visible_keys(cfg, 0, 4)  # 1, 2, 2, 2
      1.75
    """
    t = sequence_length
    window = cfg.layer_window(layer)
    w = t if window is None else min(window, t)
    back = w * (w + 1) // 2 + (t - w) * w
    # Ahead is the mirror image of back; the token itself is in both.
    return (back if cfg.causal else 2 * back - t) / t


def forward_flops_per_token(
    cfg: ModelConfig, sequence_length: int, predicted_share: float = 1.0
) -> float:
    """Floating-point operations of one forward pass, per token. See `flops_per_token`."""
    width = cfg.query_heads * (cfg.head_width + cfg.value_width)
    keys = sum(visible_keys(cfg, layer, sequence_length) for layer in range(cfg.num_layers))
    products = count_matmul_parameters(cfg) - output_matmul_parameters(cfg)
    products += output_matmul_parameters(cfg) * predicted_share
    products += text_matmul_parameters(cfg) / sequence_length
    return 2.0 * products + 2.0 * width * keys


def flops_per_token(cfg: ModelConfig, sequence_length: int, predicted_share: float = 1.0) -> float:
    """Floating-point operations of training per token: forward and backward, nothing twice.

    ::

        6 * (parameters in products, output layer included, look-up not)
        + sum over layers of 12 * N * H * (mean keys that a token sees)

    A product takes 2 operations per number forward and 4 backward. Scores and the sum over values
    take 2 N H each per query and key, so 4 forward and 12 in all (where a value is wider or
    narrower than a key, its own width counts in the sum). This is appendix B of
    Chowdhery et al., 2022, arXiv 2204.02311 (6 P + 12 L N H T), except that a token is charged only
    with the keys that causality and windows let it see (half of T, about, where they count T), and
    that look-ups, which multiply nothing, are not in P, nor experts that were not chosen.
    Element-wise work is left out: below one per cent at usual widths. Documents packed into one row
    are not told apart.

    Where an objective predicts chosen places only, the output layer (the transform of `head="mlm"`
    too) is charged with these alone: an MLM head at 20 of 128 tokens does 20/128 of its products.
    What stands for a whole text (pooler, next sentence, classifier) runs once for a row.

    Args:
      cfg: the model.
      sequence_length: tokens per row.
      predicted_share: of the tokens, those that go through the output layer: predictions of a row
        over `sequence_length` for a masked objective.

    Example:
      >>> cfg = ModelConfig(vocab_size=256, embedding_dim=64, num_layers=2)
      >>> flops_per_token(cfg, 127)  # 6 * 122880 + 2 * 12 * 64 * 64
      835584.0
    """
    return 3.0 * forward_flops_per_token(cfg, sequence_length, predicted_share)


def flops_per_row(
    cfg: ModelConfig, sequence_length: int, predictions: int, encoder_length: int = 0
) -> float:
    """Floating-point operations of training on one row, the encoder of an encoder-decoder included.

    Args:
      cfg: the model.
      sequence_length: tokens of the row, T; of an encoder-decoder the decoder's.
      predictions: tokens of it that go through the output layer.
      encoder_length: tokens that the encoder reads, S. They give the keys and values of
        cross-attention, and each of the T attends to all of them.

    Example:
      >>> cfg = ModelConfig(vocab_size=256, embedding_dim=64, num_layers=2)
      >>> flops_per_row(cfg, 128, 128) == 128 * flops_per_token(cfg, 128)
      True
    """
    total = sequence_length * flops_per_token(cfg, sequence_length, predictions / sequence_length)
    if not cfg.encoder.num_layers:
        return total
    from llmasos_jax.models.layout import encoder_config

    total += encoder_length * flops_per_token(encoder_config(cfg), encoder_length)
    # `flops_per_token` has charged the decoder's tokens with these products.
    keys_values = 2 * cfg.embedding_dim * cfg.head_width * cfg.kv_heads
    total += 6.0 * cfg.num_layers * keys_values * (encoder_length - sequence_length)
    scores = 2.0 * cfg.query_heads * cfg.head_width * sequence_length * encoder_length
    return total + 6.0 * cfg.num_layers * scores


def _plain_attention(cfg: ModelConfig) -> int:
    """Numbers in the products around attention: among the tokens, or to an encoder's states."""
    return 2 * cfg.embedding_dim * cfg.head_width * (cfg.query_heads + cfg.kv_heads)


def _mlp(cfg: ModelConfig, width: int) -> int:
    """Numbers in the products of an MLP."""
    return (3 if cfg.is_gated else 2) * cfg.embedding_dim * width


def _expert(cfg: ModelConfig) -> int:
    """Numbers in one expert."""
    return _mlp(cfg, cfg.expert_width)


def _norm(cfg: ModelConfig, width: int) -> int:
    """Numbers in a norm; an RMSNorm has no bias."""
    return width * (2 if cfg.norm_bias and cfg.norm != "rmsnorm" else 1)
