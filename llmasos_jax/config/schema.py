"""A training run as frozen dataclasses: the one place for a field's name and its default."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from llmasos_jax.config.data import DataConfig, check_data
from llmasos_jax.config.devices import HostsConfig, KernelsConfig, MeshConfig
from llmasos_jax.config.finetune import FinetuneConfig
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.precision import PrecisionConfig
from llmasos_jax.config.require import require_finite, require_one_of, require_positive
from llmasos_jax.errors import ConfigError

REMATS = ("none", "dots", "full", "tags")
REMAT_TAGS = ("q", "k", "v", "attention", "attention_out", "gate", "up", "mlp_out", "block")
MASK_UNITS = ("token", "word", "span")
TOKENIZER_MODELS = ("bpe", "unigram", "wordpiece")


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes ids.

    Attributes:
      kind: "bytes", "sentencepiece", "tokenizers" (a Hugging Face tokenizer.json, or BERT's
        vocab.txt), or "package.module:name".
      path: file to load; None trains one from the data with `model.vocab_size` pieces.
      model_type: "bpe", "unigram" or (kind "tokenizers") "wordpiece" (Schuster and Nakajima, 2012;
        BERT's), for training.
      lowercase: whether training "wordpiece", or reading a vocab.txt, makes a tokenizer that lowers
        letters and takes accents off, as uncased BERT does.
      train_chars: characters of text to train on at most.
    """

    kind: str = "bytes"
    path: str | None = None
    model_type: str = "bpe"
    lowercase: bool = True
    train_chars: int = 4_000_000


@dataclass(frozen=True)
class ObjectiveConfig:
    """What the model learns.

    Attributes:
      name: "causal"; "mlm", masked tokens (Devlin et al., 2018, arXiv 1810.04805); "mlm_nsp", with
        next sentence prediction; "mlm_sop", with sentence order prediction (Lan et al., 2019, arXiv
        1909.11942); "prefix_lm", the rest of a text after a part read in both directions, and
        "span_corruption", an encoder-decoder's (Raffel et al., 2019, arXiv 1910.10683); "sft", the
        assistant's words in conversations, "distill", those and what a larger model makes of them
        (Hinton et al., 2015, arXiv 1503.02531), and "dpo", which of two answers is better (Rafailov
        et al., 2023, arXiv 2305.18290); of labelled texts "classify", "classify_tokens", "regress"
        and "similarity" (Henderson et al., 2017, arXiv 1705.00652); or "package.module:name".
      z_loss: weight of logsumexp(logits)^2 (Chowdhery et al., 2022, arXiv 2204.02311, section 5).
      label_smoothing: share of each target's probability that is spread evenly over the vocabulary,
        or the labels (Szegedy et al., 2015, arXiv 1512.00567, section 7). In training steps alone:
        held-out losses and `nll` are of the targets as they are.
      router_balance: weight of the loss that spreads tokens over experts, 1 where they are spread
        evenly (Fedus et al., 2021, arXiv 2101.03961, eq. 4). Without experts it does nothing.
      router_z: weight of logsumexp(router logits)^2 (Zoph et al., 2022, arXiv 2202.08906, eq. 5).
      mask_rate: share of a row's tokens that are predicted, special ones and padding not counted.
      mask_unit: what is chosen at once: a "token"; a whole "word"; a "span" of neighbouring words
        (Joshi et al., 2019, arXiv 1907.10529).
      mask_share, random_share: of the chosen tokens, how many become the mask and how many a random
        token; the rest stay as they are.
      span_length: mean length of a span: words for `mask_unit` "span", tokens for
        "span_corruption".
      short_fraction: share of the rows of "mlm_nsp" and "mlm_sop" that are cut to a random shorter
        length.
    """

    name: str = "causal"
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    router_balance: float = 0.01
    router_z: float = 0.001
    mask_rate: float = 0.15
    mask_unit: str = "token"
    mask_share: float = 0.8
    random_share: float = 0.1
    span_length: float = 3.0
    short_fraction: float = 0.1


@dataclass(frozen=True)
class OptimConfig:
    """How the weights move.

    Attributes:
      name: "adamw", "lion", "adafactor", "muon", "sgd", or "package.module:name".
      learning_rate: at the peak.
      schedule: "cosine", "linear", "wsd" (warm-up, stable, decay), "constant", or
        "package.module:name".
      warmup_steps: steps of linear warm-up from 0.
      decay_fraction: share of the steps in which "wsd" decays, at the end.
      final_fraction: learning rate at the last step, as a share of the peak.
      weight_decay: decoupled; only on weights that are matrices (never norms, biases, embeddings of
        positions).
      beta1, beta2, eps: of Adam, and their counterparts in the others.
      momentum: of "sgd" and of the matrices in "muon".
      clip_norm: largest global norm of the gradient; None does not clip.
      spike_factor: a step whose gradient norm, before clipping, is more than so many times its
        running mean is left out (`train/spikes.py`); None leaves out none.
      mup_base_dim: the width at which `learning_rate` and `train.init_std` were chosen; a model of
        another `model.embedding_dim` takes them over as maximal update parametrization says (Yang
        et al., 2022, arXiv 2203.03466; `train/mup.py`). It assumes heads of the same size, as many
        more of them, and as much more of `model.ffn_dim`. None takes them as they are.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_steps: int = 100
    decay_fraction: float = 0.2
    final_fraction: float = 0.1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.9
    clip_norm: float | None = 1.0
    spike_factor: float | None = None
    mup_base_dim: int | None = None


@dataclass(frozen=True)
class TrainConfig:
    """How long, how much, how often.

    Attributes:
      steps: optimizer steps of the whole run.
      batch_size: sequences per optimizer step, over all devices and accumulation steps.
      accumulate_steps: parts that a batch is cut into, one after the other, to save memory.
      seed: fixes initial weights and dropout.
      remat: what the backward pass computes again: "none", "dots" (all but products), "full" (each
        block), "tags" (all but what the next two name).
      remat_save: with "tags", what is kept: of "q", "k", "v" (as the kernel reads them),
        "attention" (what it gives), "attention_out", "gate", "up", "mlp_out" (after their
        products), "block" (what goes into each block).
      remat_offload: with "tags", what is kept in the host's memory.
      loss_chunk: tokens of each sequence (of a device's part of it, with `mesh.context`; of its
        predicted places, where only these are scored) whose scores are made at once, so that logits
        [B, T, V] are never there as a whole. None takes what was measured to be good: 128 on a CPU,
        all elsewhere (and so does a number that no sequence exceeds); of "distill" 128 everywhere.
      dropout_rate: after the embedding and on each sub-layer's output.
      start_from: a training folder whose newest weights a new run starts with, in place of random
        ones; only the sequence length, the objective and how it is trained may differ.
      init_std: standard deviation of initial weights; outputs of sub-layers get it divided by
        sqrt(2 L).
      expert_capacity: an expert takes so many times its even share of a sequence's tokens, and
        drops those at later positions; None drops none. In training steps alone: evaluation and
        generation never drop.
      log_every_steps, eval_every_steps: how often; None never evaluates.
      eval_batches: held-out batches per evaluation; None takes all.
      hooks: more hooks, each "package.module:name".
    """

    steps: int = 1000
    batch_size: int = 16
    accumulate_steps: int = 1
    seed: int = 0
    remat: str = "none"
    remat_save: tuple[str, ...] = ()
    remat_offload: tuple[str, ...] = ()
    loss_chunk: int | None = None
    dropout_rate: float = 0.0
    start_from: str | None = None
    init_std: float = 0.02
    expert_capacity: float | None = None
    log_every_steps: int = 10
    eval_every_steps: int | None = 200
    eval_batches: int | None = 16
    hooks: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of a run.

    Attributes:
      every_steps: how often; the last step is always saved. None saves only at the end.
      keep: newest checkpoints kept.
    """

    every_steps: int | None = 500
    keep: int = 3


@dataclass(frozen=True)
class SampleConfig:
    """Text written by the model during training.

    Attributes:
      prompt: what to continue; None writes nothing.
      max_length: new tokens.
      temperature: 0 is greedy.
      every_steps: how often; None only at the end.
    """

    prompt: str | None = None
    max_length: int = 64
    temperature: float = 0.8
    every_steps: int | None = None


@dataclass(frozen=True)
class Config:
    """One training run, from a laptop to a pod.

    `name` becomes the model's name in its `model.json`.
    """

    model: ModelConfig
    name: str = "model"
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    hosts: HostsConfig = field(default_factory=HostsConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)

    def __post_init__(self) -> None:
        check_config(self)


def check_config(cfg: Config) -> None:
    """Raises ConfigError for the first field that breaks a rule."""
    for name in ("objective", "optim", "train", "sample"):
        require_finite(name, getattr(cfg, name))
    check_data(cfg.data)
    _check_signs(cfg)
    _check_remat(cfg.train)
    require_one_of("tokenizer.model_type", cfg.tokenizer.model_type, TOKENIZER_MODELS)
    require_one_of("objective.mask_unit", cfg.objective.mask_unit, MASK_UNITS)
    if cfg.train.batch_size % cfg.train.accumulate_steps:
        raise ConfigError(
            f"train.batch_size={cfg.train.batch_size} is not divisible by accumulate_steps="
            f"{cfg.train.accumulate_steps}; make the batch a multiple of it"
        )
    if cfg.data.sequence_length > cfg.model.context_length:
        raise ConfigError(
            f"data.sequence_length={cfg.data.sequence_length} is longer than model.context_length="
            f"{cfg.model.context_length}; raise the context or shorten the sequence"
        )
    if cfg.data.mixture and (cfg.train.eval_batches or math.inf) < len(cfg.data.mixture):
        raise ConfigError(
            f"train.eval_batches={cfg.train.eval_batches} is fewer than the "
            f"{len(cfg.data.mixture)} parts of data.mixture, each of which has batches of its own; "
            f"set {len(cfg.data.mixture)} or more"
        )
    if cfg.train.expert_capacity is not None and not cfg.model.experts.count:
        raise ConfigError(
            f"train.expert_capacity={cfg.train.expert_capacity} goes with experts, the model has "
            "none; set model.experts.count, or leave out the capacity"
        )
    if cfg.optim.spike_factor is not None and not cfg.optim.spike_factor > 1.0:
        raise ConfigError(
            f"optim.spike_factor={cfg.optim.spike_factor} must be above 1: it is how many times "
            "its usual norm a gradient may have"
        )
    for path, value in (
        ("objective.short_fraction", cfg.objective.short_fraction),
        ("objective.label_smoothing", cfg.objective.label_smoothing),
        ("train.dropout_rate", cfg.train.dropout_rate),
        ("optim.beta1", cfg.optim.beta1),
        ("optim.beta2", cfg.optim.beta2),
        ("optim.momentum", cfg.optim.momentum),
    ):
        if not 0.0 <= value < 1.0:
            raise ConfigError(f"{path}={value} must be at least 0 and below 1")
    for path, value in (
        ("optim.final_fraction", cfg.optim.final_fraction),
        ("optim.decay_fraction", cfg.optim.decay_fraction),
        ("objective.mask_rate", cfg.objective.mask_rate),
        ("objective.mask_share", cfg.objective.mask_share),
        ("objective.random_share", cfg.objective.random_share),
        (
            "objective.mask_share + random_share",
            cfg.objective.mask_share + cfg.objective.random_share,
        ),
    ):
        if not 0.0 <= value <= 1.0:
            raise ConfigError(f"{path}={value} must be between 0 and 1")
    _check_span_length(cfg)
    if cfg.sample.prompt is not None and not cfg.model.causal:
        raise ConfigError(
            "sample.prompt is for models that write, and one with model.causal=False reads; set "
            "sample.prompt=None"
        )
    if cfg.train.seed >= 2**32:
        raise ConfigError(f"train.seed={cfg.train.seed} must be below 2**32")


def _check_remat(train: TrainConfig) -> None:
    require_one_of("train.remat", train.remat, REMATS)
    tags = (*train.remat_save, *train.remat_offload)
    for tag in tags:
        require_one_of("train.remat_save and train.remat_offload", tag, REMAT_TAGS)
    if len(set(tags)) < len(tags):
        raise ConfigError(
            f"train.remat_save={train.remat_save} and train.remat_offload={train.remat_offload} "
            "name something twice; keep it in one place"
        )
    if bool(tags) != (train.remat == "tags"):
        raise ConfigError(
            f'train.remat="{train.remat}" with train.remat_save={train.remat_save} and '
            f'train.remat_offload={train.remat_offload}; the two go with train.remat="tags", which '
            "needs one of them"
        )


def _check_span_length(cfg: Config) -> None:
    span_length, length = cfg.objective.span_length, cfg.data.sequence_length
    if span_length < 1.0:
        raise ConfigError(f"objective.span_length={span_length} must be at least 1")
    if span_length > max(length, ObjectiveConfig.span_length):
        raise ConfigError(
            f"objective.span_length={span_length} is more than data.sequence_length={length}; "
            "lower it (3 is usual)"
        )


def _check_signs(cfg: Config) -> None:
    positive = {
        "tokenizer.train_chars": cfg.tokenizer.train_chars,
        "train.steps": cfg.train.steps,
        "train.batch_size": cfg.train.batch_size,
        "train.accumulate_steps": cfg.train.accumulate_steps,
        "train.log_every_steps": cfg.train.log_every_steps,
        "train.eval_every_steps": cfg.train.eval_every_steps,
        "train.eval_batches": cfg.train.eval_batches,
        "train.init_std": cfg.train.init_std,
        "train.expert_capacity": cfg.train.expert_capacity,
        "objective.mask_rate": cfg.objective.mask_rate,
        "train.loss_chunk": cfg.train.loss_chunk,
        "checkpoint.every_steps": cfg.checkpoint.every_steps,
        "checkpoint.keep": cfg.checkpoint.keep,
        "sample.max_length": cfg.sample.max_length,
        "sample.every_steps": cfg.sample.every_steps,
        "optim.learning_rate": cfg.optim.learning_rate,
        "optim.clip_norm": cfg.optim.clip_norm,
        "optim.mup_base_dim": cfg.optim.mup_base_dim,
    }
    for path, value in positive.items():
        if value is not None:
            require_positive(path, value)
    for path, value in (
        ("objective.z_loss", cfg.objective.z_loss),
        ("objective.router_balance", cfg.objective.router_balance),
        ("objective.router_z", cfg.objective.router_z),
        ("optim.warmup_steps", cfg.optim.warmup_steps),
        ("optim.weight_decay", cfg.optim.weight_decay),
        ("optim.eps", cfg.optim.eps),
        ("train.seed", cfg.train.seed),
        ("sample.temperature", cfg.sample.temperature),
    ):
        if value < 0:
            raise ConfigError(f"{path}={value} must be at least 0")
