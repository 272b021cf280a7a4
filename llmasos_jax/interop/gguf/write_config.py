"""A config of ours as the metadata of a GGUF file: `config.py` the other way round.

No list says what an architecture can express: its keys are written, read back by the reader, and
the two configs are compared.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmasos_jax.config.heads import Classifier
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.rope import RopeScaling
from llmasos_jax.errors import FormatError
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.names import expected
from llmasos_jax.format.strict import shown
from llmasos_jax.format.tensorfile import StoredTensor, stored
from llmasos_jax.interop.gguf.config import ARCHITECTURES, family, read_config
from llmasos_jax.interop.gguf.keys import Keys
from llmasos_jax.interop.gguf.names import gguf_table
from llmasos_jax.interop.gguf.norms import offset_key
from llmasos_jax.interop.gguf.rope import FREQS, LONG, SHORT, llama3_divisors
from llmasos_jax.interop.hf.express import canonical
from llmasos_jax.interop.tables import unbind

_PARTS = ("rope_scaling", "latent", "experts")
_CLOSE = 1e-6  # files hold float32
# Other programs have a key of their own for how a text's vector is made.
_POOLING = {"mean": 1, "cls": 2}
_LAYER_NORMS = ("gpt2", "gptneox", "bert")


@dataclass(frozen=True)
class Expressed:
    """A model as an architecture of llama.cpp says it.

    Attributes:
      arch: "general.architecture".
      cfg: the model whose tensors are written: the same network, said as GGUF says it.
      keys: metadata of the architecture, by whole key.
      factors: small tensors that belong to the metadata, float32.
    """

    arch: str
    cfg: ModelConfig
    keys: Mapping[str, Any]
    factors: Mapping[str, np.ndarray]


def express(manifest: Manifest) -> Expressed:
    """The architecture of llama.cpp that says all of a model.

    Raises:
      FormatError: none does; the message names the fields that the nearest one cannot say.
    """
    cfg = folded(manifest.parameters)
    if cfg.encoder.num_layers:
        raise FormatError(
            "a model with an encoder and a decoder is not written as GGUF in this version; export "
            "it to hf"
        )
    if more := _heads_of_encoder(cfg):
        raise FormatError(
            f"llama.cpp runs the trunk of an encoder alone, and this one has {', '.join(more)}; "
            "export it to hf, onnx or stablehlo"
        )
    apart: list[tuple[list[str], str]] = []
    own = sorted(ARCHITECTURES, key=lambda arch: family(arch, {}) != manifest.architecture)
    for arch in own:
        found = Expressed(arch, cfg, *_said(arch, cfg))
        problems = _problems(found)
        if not problems:
            return found
        apart.append((problems, arch))
    problems, nearest = min(apart, key=lambda pair: (_is_of_other_kind(pair[0]), len(pair[0])))
    more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
    raise FormatError(
        f"no architecture of llama.cpp that is written here is this model; the nearest, "
        f"{nearest}, differs in {'; '.join(problems[:4])}{more}"
    )


def folded(cfg: ModelConfig) -> ModelConfig:
    """The same network in the words that GGUF has.

    Llama 3's scaling with numbers of its own becomes one divisor for each frequency.
    """
    changes: dict[str, Any] = {}
    scaling = cfg.rope_scaling
    usual = RopeScaling("llama3", scaling.factor, original_length=8192)
    if scaling.kind == "llama3" and scaling != usual:
        factors = tuple(llama3_divisors(scaling, cfg.rope_theta, cfg.rope_width).tolist())
        changes["rope_scaling"] = RopeScaling(
            "longrope",
            original_length=cfg.context_length,
            attention_factor=1.0,
            short_factors=factors,
            long_factors=factors,
        )
    return cfg.replace(**changes)


def _heads_of_encoder(cfg: ModelConfig) -> list[str]:
    none = {"head": None, "pooler": False, "next_sentence": False, "classifier": Classifier()}
    found = {name: getattr(cfg, name) for name in none} if not cfg.causal else {}
    return [
        f"parameters.{name}={shown(repr(value))}"
        for name, value in found.items()
        if value != none[name]
    ]


def _is_of_other_kind(problems: list[str]) -> bool:
    return any(p.startswith(("parameters.causal=", "it cannot")) for p in problems)


def _problems(found: Expressed) -> list[str]:
    """What is read back of it otherwise; empty where nothing is."""
    cfg, arch = found.cfg, found.arch
    try:
        theirs = unbind(gguf_table(arch, cfg, {}), cfg, _shapes(cfg))
        theirs |= {name: stored(array) for name, array in found.factors.items()}
        keys = Keys({"general.architecture": arch, **found.keys}, "the file")
        back = read_config(keys, theirs)
        keys.check_all_read()
    except FormatError as error:
        return [f"it cannot be said there ({str(error).removeprefix('the file: ')[:200]})"]
    missing = _not_computed(arch, cfg)
    return config_differences(cfg, back) or ([missing] if missing else [])


def _not_computed(arch: str, cfg: ModelConfig) -> str | None:
    """What the file could say, and llama.cpp would not compute."""
    windows = [w for w in cfg.attention_windows if w is not None and w < cfg.context_length]
    if arch == "phi3" and windows:
        return f"parameters.attention_windows={cfg.attention_windows}, which it leaves out"
    if (arch, cfg.qk_norm) in (("qwen2", "head"), ("qwen3", None)):
        return f"parameters.qk_norm={cfg.qk_norm!r}, which is the other one of qwen2 and qwen3"
    return None


def _shapes(cfg: ModelConfig) -> dict[str, StoredTensor]:
    def read() -> Any:
        raise FormatError("this tensor has a shape alone")

    return {name: StoredTensor(spec.shape, "float32", read) for name, spec in expected(cfg).items()}


def config_differences(cfg: ModelConfig, other: ModelConfig) -> list[str]:
    """The fields in which two models are not one network, as "parameters.x=1, not 2".

    Numbers are compared as the float32 that files hold.

    Example:
      >>> config_differences(ModelConfig(9, 8, 1), ModelConfig(9, 8, 1, norm_eps=1e-6))
      ['parameters.norm_eps=1e-05, not 1e-06']
    """
    one, two = _settled(cfg), _settled(other)
    return [
        f"parameters.{name}={shown(repr(getattr(cfg, name)))}, not "
        f"{shown(repr(getattr(two, name)))}"
        for name in (f.name for f in dataclasses.fields(ModelConfig))
        if name != "pooling" and not _is_alike(getattr(one, name), getattr(two, name))
    ]


def _settled(cfg: ModelConfig) -> ModelConfig:
    experts = cfg.experts
    if experts.count:
        router, normalize = experts.router, experts.normalize
        if router == "softmax_chosen":  # of all, divided by the sum of the chosen: the same
            router, normalize = "softmax", True
        experts = dataclasses.replace(
            experts,
            ffn_dim=experts.ffn_dim or cfg.ffn_width,
            router=router,
            normalize=normalize,
            group_score="max" if experts.groups == 1 else experts.group_score,
        )
    scaling = cfg.rope_scaling
    if scaling.kind == "yarn" and scaling.attention_factor is None:
        factor = 0.1 * math.log(scaling.factor) + 1.0
        scaling = dataclasses.replace(scaling, attention_factor=factor)
    if scaling.kind == "longrope" and scaling.original_length:
        # Both factors follow from the two lengths.
        factor = max(cfg.context_length / scaling.original_length, 1.0)
        default = math.sqrt(1 + math.log(factor) / math.log(scaling.original_length))
        attention = scaling.attention_factor
        scaling = dataclasses.replace(
            scaling, factor=factor, attention_factor=default if attention is None else attention
        )
    latent = cfg.latent
    if latent.kv_rank and latent.value_dim is None:
        latent = dataclasses.replace(latent, value_dim=cfg.head_width)
    return canonical(cfg.replace(experts=experts, rope_scaling=scaling, latent=latent))


def _is_alike(one: Any, two: Any) -> bool:
    if dataclasses.is_dataclass(one) and type(one) is type(two):
        names = [f.name for f in dataclasses.fields(one)]
        return all(_is_alike(getattr(one, n), getattr(two, n)) for n in names)
    if isinstance(one, tuple) and isinstance(two, tuple):
        return len(one) == len(two) and all(map(_is_alike, one, two))
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=_CLOSE)
    return one == two


def _said(arch: str, cfg: ModelConfig) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The architecture's keys, and the tensors that belong to them."""
    found: dict[str, Any] = {
        "vocab_size": cfg.vocab_size,
        "context_length": cfg.context_length,
        "embedding_length": cfg.embedding_dim,
        "block_count": cfg.num_layers,
        "feed_forward_length": cfg.ffn_width,
        "attention.head_count": cfg.query_heads,
    }
    if arch in _LAYER_NORMS:
        found["attention.layer_norm_epsilon"] = float(cfg.norm_eps)
    else:
        found["attention.layer_norm_rms_epsilon"] = float(cfg.norm_eps)
        found["attention.head_count_kv"] = cfg.kv_heads
    if arch != "deepseek2":
        found["attention.key_length"] = found["attention.value_length"] = cfg.head_width
    factors: dict[str, np.ndarray] = {}
    if arch not in ("gpt2", "bert"):
        found["rope.dimension_count"] = cfg.rope_width
        found["rope.freq_base"] = float(cfg.rope_theta)
        said, factors = _scaling(arch, cfg)
        found |= said
    if cfg.experts.count:
        found |= _experts(arch, cfg)
    found |= _OWN.get(arch, lambda _: {})(cfg)
    keys = {f"{arch}.{name}": value for name, value in found.items()}
    return keys | offset_key(arch, cfg), factors


def _scaling(arch: str, cfg: ModelConfig) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    s = cfg.rope_scaling
    if s.kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(s.factor)}, {}
    if s.kind == "llama3":
        divisors = llama3_divisors(s, cfg.rope_theta, cfg.rope_width)
        return {}, {FREQS: divisors.astype(np.float32)}
    if s.kind == "yarn":
        return _yarn(arch, s), {}
    if s.kind != "longrope":
        return {}, {}
    long, short = (np.array(f, np.float32) for f in (s.long_factors, s.short_factors))
    if s.long_factors == s.short_factors and s.attention_factor == 1.0:
        return {}, {FREQS: long}
    original = s.original_length or cfg.context_length
    attention = s.attention_factor
    if attention is None:
        factor = max(cfg.context_length / original, 1.0)
        attention = math.sqrt(1 + math.log(factor) / math.log(original))
    keys: dict[str, Any] = {
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": float(attention),
    }
    if arch != "phi3":  # where the factors alone say it
        keys["rope.scaling.type"] = "longrope"
    return keys, {LONG: long, SHORT: short}


def _yarn(arch: str, s: RopeScaling) -> dict[str, Any]:
    found: dict[str, Any] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(s.factor),
        "rope.scaling.original_context_length": s.original_length,
        "rope.scaling.yarn_beta_fast": float(s.beta_fast),
        "rope.scaling.yarn_beta_slow": float(s.beta_slow),
    }
    if s.attention_factor is not None and arch != "deepseek2":
        found["rope.scaling.attn_factor"] = s.attention_factor / (0.1 * math.log(s.factor) + 1.0)
    return found


def _experts(arch: str, cfg: ModelConfig) -> dict[str, Any]:
    e = cfg.experts
    width = e.ffn_dim or cfg.ffn_width
    found: dict[str, Any] = {"expert_count": e.count, "expert_used_count": e.per_token}
    if arch != "llama":
        found["expert_feed_forward_length"] = width
    if e.scale != 1.0:
        found["expert_weights_scale"] = float(e.scale)
    if arch == "deepseek2":
        found |= {
            "leading_dense_block_count": len(e.dense_layers),
            "expert_shared_count": e.shared_ffn_dim // width,
            "expert_weights_norm": e.normalize,
            "expert_gating_func": 2 if e.router == "sigmoid" else 1,
        }
        if e.groups > 1:
            found["expert_group_count"] = e.groups
            found["expert_group_used_count"] = e.groups_per_token
    elif e.shared_ffn_dim:
        found["expert_shared_feed_forward_length"] = e.shared_ffn_dim
    return found


def _llama(cfg: ModelConfig) -> dict[str, Any]:
    return {} if cfg.attention_scale is None else {"attention.scale": float(cfg.attention_scale)}


def _windows(cfg: ModelConfig, period: int) -> dict[str, Any]:
    """The width, and which layers have it where that is not the architecture's own pattern."""
    windows = [cfg.layer_window(layer) for layer in range(cfg.num_layers)]
    flags = [window is not None for window in windows]
    if not any(flags):
        return {}
    found: dict[str, Any] = {"attention.sliding_window": next(w for w in windows if w)}
    if flags != [layer % period < period - 1 for layer in range(cfg.num_layers)]:
        found["attention.sliding_window_pattern"] = flags
    return found


def _gemma2(cfg: ModelConfig) -> dict[str, Any]:
    caps = {
        "attn_logit_softcapping": cfg.attention_soft_cap,
        "final_logit_softcapping": cfg.logit_soft_cap,
    }
    return _windows(cfg, 2) | {name: float(cap) for name, cap in caps.items() if cap is not None}


def _gemma3(cfg: ModelConfig) -> dict[str, Any]:
    found = _windows(cfg, 6)
    if found:
        found["rope.freq_base_swa"] = float(cfg.rope_theta_local or cfg.rope_theta)
    if cfg.logit_soft_cap is not None:
        found["final_logit_softcapping"] = float(cfg.logit_soft_cap)
    return found


def _olmo2(cfg: ModelConfig) -> dict[str, Any]:
    found = _windows(cfg, 4)
    local = cfg.rope_theta_local
    if found and local is not None and local != cfg.rope_theta:
        found["rope.freq_base_swa"] = float(local)
    return found


def _phi3(cfg: ModelConfig) -> dict[str, Any]:
    original = cfg.rope_scaling.original_length or cfg.context_length
    window = next((w for w in cfg.attention_windows if w), 0)
    return {
        "attention.sliding_window": window,
        "rope.scaling.original_context_length": original,
    }


def _deepseek(cfg: ModelConfig) -> dict[str, Any]:
    latent = cfg.latent
    rank, value = latent.kv_rank, latent.value_dim or cfg.head_width
    found: dict[str, Any] = {
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": rank,
        "attention.key_length": rank + latent.rope_dim,
        "attention.value_length": rank,
        "attention.key_length_mla": cfg.head_width,
        "attention.value_length_mla": value,
        "rope.dimension_count": latent.rope_dim,
    }
    if latent.q_rank is not None:
        found["attention.q_lora_rank"] = latent.q_rank
    scaling = cfg.rope_scaling
    if scaling.kind == "yarn" and cfg.attention_scale is not None and scaling.factor > 1:
        share = math.sqrt(cfg.attention_scale * math.sqrt(cfg.head_width))
        found["rope.scaling.yarn_log_multiplier"] = (share - 1.0) / math.log(scaling.factor)
    return found


_OWN: dict[str, Callable[[ModelConfig], dict[str, Any]]] = {
    "llama": _llama,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "olmo2": _olmo2,
    "phi3": _phi3,
    "gptneox": lambda cfg: {"use_parallel_residual": cfg.block != "sequential"},
    "bert": lambda cfg: {
        "attention.causal": False,
        "pooling_type": _POOLING.get(cfg.pooling, 0),
    },
    "deepseek2": _deepseek,
}
