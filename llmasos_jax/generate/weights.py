"""A model's weights where and how they run: device, layout, precision."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llmasos_jax.errors import GenerationError, did_you_mean
from llmasos_jax.format.names import flatten, unflatten
from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.generate.buffers import aligned_copy
from llmasos_jax.models.codes import encode
from llmasos_jax.models.count import count_parameters
from llmasos_jax.models.definition import ModelDef, turned
from llmasos_jax.nn.adapters import SCALES, dequantized, each
from llmasos_jax.nn.codes import dot_codes
from llmasos_jax.nn.experts import dot_experts
from llmasos_jax.nn.runtime import Runtime, dot, dot_out_first
from llmasos_jax.parallel.mesh import platform
from llmasos_jax.parallel.place import check_divisible, shardings
from llmasos_jax.parallel.rules import Rules, serving_rules
from llmasos_jax.types import Tree

DTYPES = ("float32", "bfloat16", "float16")
# Of the memory that is free, so much may go to weights that are widened to float32.
WIDEN_SHARE = 0.8
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placing:
    """How weights are put onto devices.

    Attributes:
      definition: the model.
      mesh: the devices; None is the first one.
      is_out_first: whether matrices are turned, output axes first, as one CPU wants them.
    """

    definition: ModelDef
    mesh: Mesh | None

    @property
    def platform(self) -> str:
        """Of the devices: "cpu", "tpu" or "gpu"."""
        return jax.local_devices()[0].platform if self.mesh is None else platform(self.mesh)

    @property
    def is_out_first(self) -> bool:
        """Whether matrices are turned, output axes first: for products on one CPU.

        Not those of experts in codes, which are widened as they are in files.
        """
        has_coded_experts = self.bits is not None and bool(self.definition.cfg.experts.count)
        return self.mesh is None and self.platform == "cpu" and not has_coded_experts

    @property
    def bits(self) -> int | None:
        """Of the blocks' matrices that are kept in codes; None where all are numbers."""
        adapters = self.definition.adapters
        return None if adapters is None else adapters.bits

    @property
    def rules(self) -> Rules:
        """Where each logical axis goes."""
        if self.mesh is None:
            return Rules()
        return serving_rules(self.mesh, self.definition.cfg.kv_heads)

    def turns(self) -> dict[str, Any]:
        """By each weight's name in files, how it becomes what products read (`back`: again)."""
        if not self.is_out_first:
            return dict.fromkeys(flatten(self.definition.shapes), lambda array, back=False: array)
        num_in, num_lead = flatten(self.definition.contractions), flatten(self.definition.leads)
        return {n: partial(turned, num_in=num_in[n], num_lead=num_lead[n]) for n in num_in}


@dataclass(frozen=True)
class Weights:
    """Weights ready to run.

    Attributes:
      placing: where they are.
      params: tree of arrays.
      runtime: how products read them.
      file_dtypes: the type of each tensor when saved; None saves what is held.
    """

    placing: Placing
    params: Tree
    runtime: Runtime
    file_dtypes: Mapping[str, str] | None

    @property
    def definition(self) -> ModelDef:
        """The model."""
        return self.placing.definition

    @property
    def cache_sharding(self) -> NamedSharding | None:
        """Where a cache's heads live: with those of the weights; None on one device."""
        mesh = self.placing.mesh
        if mesh is None:
            return None
        return NamedSharding(mesh, PartitionSpec(self.placing.rules.kv_heads))

    @property
    def where(self) -> str:
        """Type and devices, for people."""
        mesh = self.placing.mesh
        devices = "" if mesh is None else f"{mesh.size} x "
        bits = "" if self.placing.bits is None else f"int{self.placing.bits} in "
        return f"{bits}{jnp.dtype(self.runtime.dtype)} on {devices}{self.placing.platform}"

    def stored(self) -> dict[str, StoredTensor]:
        """The tensors as files have them, each read when asked for.

        Of those that are kept in codes, the numbers that the codes stand for, in float32.
        """
        turns, held = self.placing.turns(), flatten(self.params)
        return {
            name: self._coded(name, array, held[name + SCALES], turns[name])
            if name + SCALES in held
            else self._stored(name, array, turns[name])
            for name, array in held.items()
            if not name.endswith(SCALES)
        }

    def _coded(self, name: str, codes: jax.Array, scales: jax.Array, turn: Any) -> StoredTensor:
        definition = self.definition
        trees = (definition.contractions, definition.leads)
        num_in, num_lead = (flatten(tree)[name] for tree in trees)

        def read() -> np.ndarray:
            whole = each(partial(dequantized, num_in=num_in), num_lead)
            return np.asarray(whole(turn(codes, back=True), scales))

        shape = jax.eval_shape(partial(turn, back=True), codes).shape
        return StoredTensor(tuple(shape), "float32", read)

    def _stored(self, name: str, array: jax.Array, turn: Any) -> StoredTensor:
        dtype = str(array.dtype) if self.file_dtypes is None else self.file_dtypes[name]

        def read() -> np.ndarray:
            held = turn(np.asarray(array), back=True)
            return np.ascontiguousarray(held.astype(jnp.dtype(dtype)))

        shape = jax.eval_shape(partial(turn, back=True), array)
        return StoredTensor(tuple(shape.shape), dtype, read)


def place_tensors(
    placing: Placing, tensors: Mapping[str, StoredTensor], dtype: str | None
) -> Weights:
    """Reads tensors onto the devices, one after the other.

    Args:
      placing: where to.
      tensors: by their names in files.
      dtype: one of DTYPES; None keeps the stored type, but on CPU widens it to float32 while that
        fits in memory.

    Raises:
      GenerationError: an unknown dtype.
      ConfigError: the mesh does not cut a weight into equal parts.
    """
    wanted = check_dtype(dtype) or _own_dtype(placing, tensors)
    turns, where = placing.turns(), _shardings(placing)
    shapes = flatten(placing.definition.shapes)
    arrays = {}
    for name, tensor in tensors.items():
        kind = shapes[name].dtype
        if jnp.issubdtype(kind, jnp.integer):
            codes, scales = _encoded(placing, name, tensor, kind)
            arrays[name] = jax.device_put(aligned_copy(turns[name](codes), kind), where[name])
            arrays[name + SCALES] = jax.device_put(scales, where[name + SCALES])
            continue
        array = aligned_copy(turns[name](tensor.read()), jnp.dtype(wanted))
        arrays[name] = jax.device_put(array, where[name])
    file_dtypes = None if dtype else {name: t.dtype for name, t in tensors.items()}
    return Weights(placing, unflatten(arrays), make_runtime(placing, wanted), file_dtypes)


def _encoded(
    placing: Placing, name: str, tensor: StoredTensor, kind: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of one matrix, or of each expert's."""
    definition = placing.definition
    num_in, num_lead = (flatten(tree)[name] for tree in (definition.contractions, definition.leads))
    numbers = tensor.read().astype(np.float32)
    return encode(numbers, num_in, kind, num_lead=num_lead)


def place_beside(
    weights: Weights, definition: ModelDef, arrays: Iterable[tuple[str, np.ndarray]]
) -> Weights:
    """The same weights with others beside them, or in their place; what is there is not copied.

    Args:
      weights: ready to run.
      definition: of the model with those others.
      arrays: those others by their names in files; matrices become the type of products.

    Raises:
      ConfigError: the mesh does not cut one into equal parts.
    """
    placing = dataclasses.replace(weights.placing, definition=definition)
    turns, where = placing.turns(), _shardings(placing)
    num_in, narrow = flatten(definition.contractions), np.dtype(weights.runtime.dtype)
    held = flatten(weights.params)
    named = dict(held)
    for name, array in arrays:
        own = narrow if num_in[name] else np.dtype(np.float32)
        dtype = held[name].dtype if name in held else own
        named[name] = jax.device_put(aligned_copy(turns[name](array), dtype), where[name])
    return Weights(placing, unflatten(named), weights.runtime, None)


def place_random(placing: Placing, key: jax.Array, dtype: str) -> Weights:
    """Random weights, the same for one key on every mesh.

    Raises:
      GenerationError: they do not fit in memory.
    """
    from llmasos_jax.models.definition import init_params

    definition = placing.definition
    wanted = check_dtype(dtype) or "float32"
    # Each number is drawn in float32: a bound from below, before minutes of compiling.
    _require_memory(placing, count_parameters(definition.cfg) * (jnp.dtype(wanted).itemsize + 4))
    turns = placing.turns()

    def make(key: jax.Array) -> dict[str, jax.Array]:
        named = flatten(init_params(definition, key))
        return {n: turns[n](a).astype(wanted) for n, a in named.items()}

    program = jax.jit(make, out_shardings=_shardings(placing)).lower(key).compile()
    if (sizes := program.memory_analysis()) is not None:
        num_devices = 1 if placing.mesh is None else placing.mesh.size
        each = sizes.output_size_in_bytes + sizes.temp_size_in_bytes
        _require_memory(placing, each * num_devices)
    return Weights(placing, unflatten(program(key)), make_runtime(placing, wanted), None)


def _require_memory(placing: Placing, needed: int) -> None:
    """Raises GenerationError unless so many bytes are free, where that can be told: on a CPU."""
    if placing.platform == "cpu" and needed > (free := free_bytes()):
        raise GenerationError(
            f"drawing the weights takes {needed / 1e9:.3g} GB of memory, {free / 1e9:.3g} GB are "
            "free; take a smaller model"
        )


def make_runtime(placing: Placing, dtype: str) -> Runtime:
    """How products read these weights."""
    is_cpu = placing.platform == "cpu"
    return Runtime(
        product=dot_out_first if placing.is_out_first else dot,
        coded_product=dot_codes if placing.is_out_first and placing.bits is not None else None,
        expert_product=partial(dot_experts, out_first=placing.is_out_first),
        dtype=jnp.dtype(dtype),
        act_dtype=jnp.float32 if is_cpu else jnp.dtype(dtype),
        platform=placing.platform,
        mesh=placing.mesh,
    )


def check_dtype(dtype: Any) -> str | None:
    """The name of a dtype that weights may have, or None.

    Raises:
      GenerationError: another one.
    """
    if dtype is None:
        return None
    try:
        name = str(jnp.dtype(dtype))
    except TypeError:
        name = str(dtype)
    if name not in DTYPES:
        raise GenerationError(f"dtype={dtype!r} is not possible{did_you_mean(name, DTYPES)}")
    return name


def _own_dtype(placing: Placing, tensors: Mapping[str, StoredTensor]) -> str:
    dtypes = {tensor.dtype for tensor in tensors.values()}
    widest = "float32" if "float32" in dtypes or len(dtypes) > 1 else dtypes.pop()
    if len(dtypes) > 1:
        _LOG.info("stored as %s, runs as float32, the widest of them", ", ".join(sorted(dtypes)))
    if widest == "float32" or placing.platform != "cpu":
        return widest
    shapes = flatten(placing.definition.shapes)
    coded = {n for n, shape in shapes.items() if jnp.issubdtype(shape.dtype, jnp.integer)}
    needed = sum(
        (1 if name in coded else 4) * tensor.nbytes // jnp.dtype(tensor.dtype).itemsize
        for name, tensor in tensors.items()
    )
    free = free_bytes()
    sizes = f"{needed / 1e9:.1f} GB of {free / 1e9:.1f} GB free"
    if needed <= WIDEN_SHARE * free:
        _LOG.info("stored as %s, runs as float32 on this CPU (%s)", widest, sizes)
        return "float32"
    _LOG.warning("runs as stored, %s: float32 would take %s; slow on this CPU", widest, sizes)
    return widest


def free_bytes() -> int:
    """Memory that a program can still take."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _shardings(placing: Placing) -> dict[str, Any]:
    definition, mesh = placing.definition, placing.mesh
    if mesh is None:
        return dict.fromkeys(flatten(definition.shapes))
    check_divisible(definition.shapes, definition.axes, mesh, placing.rules)
    return flatten(shardings(definition.axes, mesh, placing.rules))
