"""A model's programs for any batch and length, with the weights as arguments.

Their names for sizes: b rows, t tokens read at once, s slots of the cache, e tokens of an encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from llmasos_jax.config.devices import KernelsConfig
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.names import expected, unflatten
from llmasos_jax.models.answers import answers
from llmasos_jax.models.definition import ModelDef, empty_cache, file_def
from llmasos_jax.nn.cache import Cache, CrossCache, LayerCache
from llmasos_jax.nn.runtime import Runtime

PLATFORMS = ("cpu", "cuda", "tpu")
FORWARD, STEP, ENCODE = "forward", "step", "encode"
Arrays = dict[str, Any]
# Plain float32 products in full precision: the program says what it computes on every device.
_RUNTIME = Runtime(platform="any", kernels=KernelsConfig(attention="reference"))
# Sizes that stand for symbols while the cache's shapes are found; none occurs in a model.
_B, _S, _E = 1_000_003, 1_000_033, 1_000_037


def export_programs(
    cfg: ModelConfig, dtypes: Mapping[str, str], platforms: Sequence[str] = PLATFORMS
) -> dict[str, export.Exported]:
    """The programs of a model.

    `forward` reads whole texts; `step` reads tokens with a cache, any number at once, and `encode`
    fills the part of the cache that an encoder's states are in. The last two are for models that
    write text.

    Args:
      cfg: the model.
      dtypes: of each weight by its name; products are in float32 whatever it is.
      platforms: of JAX that the programs are for.
    """
    definition = file_def(cfg)
    weights = {n: jax.ShapeDtypeStruct(s.shape, dtypes[n]) for n, s in expected(cfg).items()}

    def build(program: Callable, inputs: Callable[[Arrays], Arrays], *known: str) -> Any:
        # Each program has its own symbols: one that it does not read could not be solved for.
        symbols = export.symbolic_shape("b, t, s, e", constraints=known)
        sizes = dict(zip("btse", symbols, strict=True))
        with jax.default_matmul_precision("highest"):
            return export.export(jax.jit(program), platforms=platforms)(weights, inputs(sizes))

    found = {FORWARD: build(_forward(definition), partial(forward_inputs, cfg))}
    if cfg.head is not None and (cfg.causal or cfg.encoder.num_layers):
        found[STEP] = build(_step(definition), partial(step_inputs, cfg), "t <= s")
    if cfg.encoder.num_layers:
        found[ENCODE] = build(_encode(definition), encode_inputs)
    return found


def forward_inputs(cfg: ModelConfig, sizes: Mapping[str, Any]) -> Arrays:
    """Shapes of what `forward` reads: int32 ids, 1 for tokens and 0 for padding, and types."""
    read = sizes["e" if cfg.encoder.num_layers else "t"]
    whole = jax.ShapeDtypeStruct((sizes["b"], read), jnp.int32)
    found = {"input_ids": whole, "attention_mask": whole}
    if cfg.token_types:
        found["token_type_ids"] = whole
    if cfg.encoder.num_layers:
        found["decoder_input_ids"] = jax.ShapeDtypeStruct((sizes["b"], sizes["t"]), jnp.int32)
    return found


def step_inputs(cfg: ModelConfig, sizes: Mapping[str, Any]) -> Arrays:
    """Shapes of what `step` reads: the next ids, and a cache that has room for them."""
    ids = jax.ShapeDtypeStruct((sizes["b"], sizes["t"]), jnp.int32)
    return {"input_ids": ids, **cache_inputs(cfg, sizes)}


def encode_inputs(sizes: Mapping[str, Any]) -> Arrays:
    """Shapes of what `encode` reads."""
    whole = jax.ShapeDtypeStruct((sizes["b"], sizes["e"]), jnp.int32)
    return {"input_ids": whole, "attention_mask": whole}


def cache_inputs(cfg: ModelConfig, sizes: Mapping[str, Any]) -> Arrays:
    """Shapes of a cache by names: zeros are an empty one.

    `start` is each row's first slot with a token (padding stands on the left), `slot` where the
    next tokens go, `length` the tokens of each row's prompt.
    """
    encoder = {"encoder_slots": _E} if cfg.encoder.num_layers else {}
    cache = jax.eval_shape(lambda: empty_cache(file_def(cfg), _B, _S, **encoder))

    def size(num: int) -> Any:
        if num and num % _B == 0:
            return num // _B * sizes["b"]
        return {_S: sizes["s"], _E: sizes["e"]}.get(num, num)

    shape = lambda x: jax.ShapeDtypeStruct(tuple(map(size, x.shape)), x.dtype)
    return {name: shape(x) for name, x in flatten_cache(cache).items()}


def flatten_cache(cache: Cache) -> Arrays:
    """A cache's arrays by names, `layers.0.k` first."""
    found = _flat_layers("layers", cache.layers["prefix"])
    found |= {"start": cache.start_b, "slot": cache.slot, "length": cache.length_b}
    return found if cache.cross is None else found | _flat_cross(cache.cross)


def _flat_cross(cross: CrossCache) -> Arrays:
    found = _flat_layers("cross", cross.layers["prefix"])
    return {**found, "cross.mask": cross.segment_ids_bs}


def _flat_layers(name: str, layers: Mapping[str, LayerCache]) -> Arrays:
    found = {}
    for layer, kept in layers.items():
        found[f"{name}.{layer}.k"], found[f"{name}.{layer}.v"] = kept.k_rhs, kept.v_rsh
    return found


def unflatten_cache(arrays: Mapping[str, Any]) -> Cache:
    """The inverse of `flatten_cache`."""
    cross = None
    if "cross.mask" in arrays:
        cross = CrossCache(_layers("cross", arrays), arrays["cross.mask"])
    layers = _layers("layers", arrays)
    return Cache(layers, arrays["start"], arrays["slot"], arrays["length"], cross)


def _layers(name: str, arrays: Mapping[str, Any]) -> dict[str, dict[str, LayerCache]]:
    numbers = [n.split(".")[1] for n in arrays if n.startswith(f"{name}.") and n.endswith(".k")]
    of = {i: LayerCache(arrays[f"{name}.{i}.k"], arrays[f"{name}.{i}.v"]) for i in numbers}
    return {"prefix": of}


def _params(weights: Arrays) -> Any:
    return unflatten({name: x.astype(jnp.float32) for name, x in weights.items()})


def _forward(definition: ModelDef) -> Callable[[Arrays, Arrays], Arrays]:
    def forward(weights: Arrays, inputs: Arrays) -> Arrays:
        return answers(
            definition,
            _params(weights),
            inputs["input_ids"],
            inputs["attention_mask"],
            _RUNTIME,
            types_bt=inputs.get("token_type_ids"),
            reads_bt=inputs.get("decoder_input_ids"),
        )

    return forward


def _step(definition: ModelDef) -> Callable[[Arrays, Arrays], Arrays]:
    def step(weights: Arrays, inputs: Arrays) -> Arrays:
        model = definition.bind(_params(weights))
        hidden = model.hidden(inputs["input_ids"], cache=unflatten_cache(inputs), runtime=_RUNTIME)
        if not isinstance(hidden.cache, Cache):
            raise ValueError("a cache went in and none came out")
        return {"logits": model.logits(hidden.x_btd, _RUNTIME), **flatten_cache(hidden.cache)}

    return step


def _encode(definition: ModelDef) -> Callable[[Arrays, Arrays], Arrays]:
    def encode(weights: Arrays, inputs: Arrays) -> Arrays:
        model = definition.bind(_params(weights))
        encoded = model.encode(
            inputs["input_ids"], segment_ids_bs=inputs["attention_mask"], runtime=_RUNTIME
        )
        return _flat_cross(model.cross_cache(encoded, _RUNTIME))

    return encode
