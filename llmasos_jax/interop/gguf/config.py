"""What a GGUF file's metadata says of the model, as our config.

One function for each architecture, on top of what all have in common. What the metadata leaves
open is what llama.cpp computes for that architecture.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.format.strict import check, schema, shown
from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.interop.gguf.deepseek import read_deepseek
from llmasos_jax.interop.gguf.keys import Keys
from llmasos_jax.interop.gguf.norms import read_offset
from llmasos_jax.interop.gguf.rope import read_scaling
from llmasos_jax.interop.gguf.source import (
    MOST_EXPERTS,
    Source,
    common,
    head_width,
    turned_share,
)


def read_config(keys: Keys, tensors: Mapping[str, StoredTensor]) -> ModelConfig:
    """The model that a file's metadata describes.

    Args:
      keys: the metadata; `keys.check_all_read` then says what is left over.
      tensors: of the file.

    Raises:
      FormatError: the architecture is not read here, or a key is missing, wrong, or asks for
        something that is not computed here.
    """
    if keys.arch not in _READERS:
        raise keys.error(
            f'general.architecture = "{shown(keys.arch)}" is not read; these are: '
            f"{', '.join(sorted(_READERS))}"
        )
    try:
        cfg = ModelConfig(
            **_READERS[keys.arch](Source(keys, tensors)), norm_unit_offset=read_offset(keys)
        )
    except ConfigError as error:
        raise keys.error(str(error).replace("model.", "parameters.")) from error
    # What the format could not hold is refused before anything is made as large as the file says.
    found = json.loads(json.dumps(dataclasses.asdict(cfg)))
    check(found, schema()["properties"]["parameters"], "parameters", "the model of this file")
    return cfg


def family(arch: str, metadata: Mapping[str, Any]) -> str:
    """The `architecture` of our `model.json`; it names, and changes nothing."""
    text = " ".join(str(metadata.get(f"general.{k}", "")) for k in ("basename", "name")).lower()
    if arch == "llama":
        known = {"smollm": "SmolLM", "mixtral": "Mixtral", "mistral": "Mistral"}
        return next((name for part, name in known.items() if part in text), "LLaMA")
    return _FAMILIES[arch]


def _decoder(source: Source) -> dict[str, Any]:
    """A decoder with RMSNorm, rotary positions and SwiGLU, like LLaMA."""
    keys, fields = source.keys, common(source)
    width = head_width(keys, fields)
    turned = keys.integer("rope.dimension_count", width)
    if turned > width or turned % 2:
        raise keys.error(f"{keys.arch}.rope.dimension_count = {turned} of head width {width}")
    theta = keys.number("rope.freq_base", 10000.0)
    return {
        **fields,
        "head_dim": width,
        "ffn_dim": keys.integer("feed_forward_length"),
        "norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": theta,
        "rope_fraction": turned_share(turned, width),
        "rope_scaling": read_scaling(keys, source.tensors, theta, turned, fields["context_length"]),
        "qkv_bias": source.has("attn_q.bias") or source.has("attn_qkv.bias"),
        "attention_out_bias": source.has("attn_output.bias"),
        "mlp_bias": source.has("ffn_up.bias"),
    }


def _llama(source: Source) -> dict[str, Any]:
    fields, keys = _decoder(source), source.keys
    if keys.has("attention.scale"):
        fields["attention_scale"] = keys.number("attention.scale")
    fields["experts"] = _experts(source, router="softmax_chosen")
    return fields


def _experts(source: Source, **known: Any) -> Experts:
    """Experts in every layer, or none."""
    keys = source.keys
    count = keys.integer("expert_count", 0, least=0, most=MOST_EXPERTS)
    if not count:
        keys.must_be("expert_used_count", 0, why="there are no experts")
        return Experts()
    keys.must_be("expert_gating_func", 1, 0, why="these scores are a softmax")
    for name in ("expert_group_count", "expert_group_used_count"):
        keys.must_be(name, 1, 0, why="groups of experts are DeepSeek's alone")
    layers = keys.integer("block_count")
    if source.has("ffn_gate.0.weight") and layers * count > len(source.tensors):
        raise keys.error(f"{keys.arch}.expert_count = {count} is more than the tensors are")
    shared = 0
    if source.has("ffn_up_shexp.weight"):
        shared = source.tensors["blk.0.ffn_up_shexp.weight"].shape[0]
        asked = keys.integer("expert_shared_feed_forward_length", shared)
        if asked != shared:
            raise keys.error(f"the shared expert is {shared} wide, the metadata says {asked}")
    return Experts(
        count=count,
        per_token=keys.integer("expert_used_count"),
        ffn_dim=keys.integer("expert_feed_forward_length", keys.integer("feed_forward_length")),
        scale=keys.number("expert_weights_scale", 1.0) or 1.0,
        shared_ffn_dim=shared,
        shared_gate=source.has("ffn_gate_inp_shexp.weight"),
        **known,
    )


def _qwen(source: Source) -> dict[str, Any]:
    fields = _decoder(source)
    if source.has("attn_q_norm.weight"):
        fields["qk_norm"] = "head"
    return fields


def _qwen2moe(source: Source) -> dict[str, Any]:
    normalize = source.keys.flag("expert_weights_norm", False)
    return {**_decoder(source), "experts": _experts(source, normalize=normalize)}


def _qwen3moe(source: Source) -> dict[str, Any]:
    normalize = source.keys.flag("expert_weights_norm", True)
    return {**_qwen(source), "experts": _experts(source, normalize=normalize)}


def _gemma(source: Source) -> dict[str, Any]:
    fields = _decoder(source)
    return {
        **fields,
        "mlp": "geglu_tanh",
        "embedding_scale": math.sqrt(fields["embedding_dim"]),
    }


def _gemma2(source: Source) -> dict[str, Any]:
    keys, fields = source.keys, _gemma(source)
    fields["norm_placement"] = "sandwich"
    fields["attention_windows"] = _windows(keys, fields["num_layers"], period=2, default=4096)
    fields["attention_soft_cap"] = keys.number("attn_logit_softcapping", 50.0)
    fields["logit_soft_cap"] = keys.number("final_logit_softcapping", 30.0)
    fields["attention_scale"] = _gemma_scale(fields, layers_of_27b=46)
    return fields


def _gemma3(source: Source) -> dict[str, Any]:
    keys, fields = source.keys, _gemma(source)
    fields["norm_placement"], fields["qk_norm"] = "sandwich", "head"
    if not keys.has("rope.freq_base"):
        fields["rope_theta"] = 1e6
    if keys.has("attention.sliding_window"):
        fields["attention_windows"] = _windows(keys, fields["num_layers"], period=6)
        fields["rope_theta_local"] = keys.number("rope.freq_base_swa", 10000.0)
    if keys.has("final_logit_softcapping"):
        fields["logit_soft_cap"] = keys.number("final_logit_softcapping")
    fields["attention_scale"] = _gemma_scale(fields, layers_of_27b=62)
    return fields


def _gemma_scale(fields: dict[str, Any], layers_of_27b: int) -> float:
    """No key says it: the largest model of each generation has another one than its siblings."""
    if fields["num_layers"] == layers_of_27b:
        return (fields["embedding_dim"] // fields["num_heads"]) ** -0.5
    return fields["head_dim"] ** -0.5


def _windows(
    keys: Keys, layers: int, *, period: int, default: int | None = None
) -> tuple[int | None, ...]:
    window = keys.integer("attention.sliding_window", default, least=0)
    flags = keys.flags_or_period("attention.sliding_window_pattern", period, layers)
    return _shortest(tuple(window if flag and window else None for flag in flags))


def _shortest(pattern: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """The shortest pattern that repeats to this one."""
    count = len(pattern)
    return next(
        pattern[:n]
        for n in range(1, count + 1)
        if all(pattern[i] == pattern[i % n] for i in range(count))
    )


def _phi3(source: Source) -> dict[str, Any]:
    fields = _decoder(source)
    # llama.cpp leaves the window out, the published models have it; 0 stands for none.
    window = source.keys.integer("attention.sliding_window", 0, least=0)
    fields["attention_windows"] = (window or None,)
    return fields


def _olmo2(source: Source) -> dict[str, Any]:
    keys, fields = source.keys, _decoder(source)
    fields["norm_placement"], fields["qk_norm"] = "output", "full"
    if keys.has("attention.sliding_window"):
        windows = _windows(keys, fields["num_layers"], period=4)
        # OLMo 3: layers with a window have the same base and never a scaling.
        local = keys.number("rope.freq_base_swa", fields["rope_theta"])
        fields["attention_windows"] = windows
        fields["rope_theta_local"] = local if any(windows) else None
    return fields


def _with_layer_norm(source: Source) -> dict[str, Any]:
    fields = common(source)
    return {
        **fields,
        "head_dim": head_width(source.keys, fields),
        "ffn_dim": source.keys.integer("feed_forward_length"),
        "norm": "layernorm",
        "norm_eps": source.keys.number("attention.layer_norm_epsilon"),
        "qkv_bias": True,
        "attention_out_bias": True,
        "mlp_bias": True,
    }


def _gpt2(source: Source) -> dict[str, Any]:
    return {**_with_layer_norm(source), "position": "learned", "mlp": "gelu_tanh"}


def _gptneox(source: Source) -> dict[str, Any]:
    keys, fields = source.keys, _with_layer_norm(source)
    width = fields["head_dim"]
    turned = keys.integer("rope.dimension_count", width)
    theta = keys.number("rope.freq_base", 10000.0)
    is_parallel = keys.flag("use_parallel_residual", True)
    return {
        **fields,
        "block": "parallel_two_norms" if is_parallel else "sequential",
        "mlp": "gelu",
        "rope_theta": theta,
        "rope_fraction": turned_share(turned, width),
        "rope_scaling": read_scaling(keys, source.tensors, theta, turned, fields["context_length"]),
    }


def _bert(source: Source) -> dict[str, Any]:
    source.keys.must_be("attention.causal", False, why="BERT sees both sides")
    types = source.tensors.get("token_types.weight")
    return {
        **_with_layer_norm(source),
        "causal": False,
        "head": None,
        "position": "learned",
        "mlp": "gelu",
        "norm_placement": "post",
        "embedding_norm": True,
        "final_norm": False,
        "token_types": 0 if types is None else types.shape[0],
    }


_READERS: dict[str, Callable[[Source], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen,
    "qwen3": _qwen,
    "qwen2moe": _qwen2moe,
    "qwen3moe": _qwen3moe,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "olmo2": _olmo2,
    "gpt2": _gpt2,
    "gptneox": _gptneox,
    "bert": _bert,
    "deepseek2": read_deepseek,
}
ARCHITECTURES = tuple(_READERS)
_FAMILIES = {
    **dict.fromkeys(("qwen2", "qwen3", "qwen2moe", "qwen3moe"), "Qwen"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3"), "Gemma"),
    "phi3": "Phi",
    "olmo2": "OLMo",
    "gpt2": "GPT-2",
    "gptneox": "GPT-NeoX",
    "bert": "BERT",
    "deepseek2": "DeepSeek",
}
