"""A plan without the TPU compiler: memory, products and collectives of a step in closed form.

State and batch are exact: the step's own shapes and shardings, on devices that stand in for the
pod's. Products are those of the step too. Temporaries are what is known to be there at once; what a
compiler makes of it besides (copies, padding, its own order) is not in them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax

from llmasos_jax.config.schema import Config
from llmasos_jax.errors import MissingExtraError
from llmasos_jax.models.count import layer_matmul_parameters, visible_keys
from llmasos_jax.parallel.mesh import make_mesh, ways
from llmasos_jax.plan.advice import KEPT, kept_bytes
from llmasos_jax.plan.chips import Topology
from llmasos_jax.plan.compile import known_before, traffic_of
from llmasos_jax.plan.figures import Figures, Memory, OutOfMemory, Work
from llmasos_jax.plan.hlo.collectives import Collective
from llmasos_jax.plan.places import empty_places_flops, kept_places_bytes, places_of
from llmasos_jax.plan.stand_in import stand_ins
from llmasos_jax.train.step import Trainer, make_trainer

# What the backward pass reads of a block of which nothing is computed again: four of width D (what
# goes in, the stream after attention, both after their norms), and of the MLP's width also what
# goes into its last product.
_WHOLE_BLOCK = ("block",) * 4 + ("q", "k", "v", "attention", "gate", "up", "up")


def estimate_figures(cfg: Config, topology: Topology) -> Figures:
    """What `compile_figures` gives, from formulas: no compiler, no devices, about a second.

    Args:
      cfg: the run; its mesh has to be one of the topology's devices.
      topology: of a TPU pod.

    Returns:
      Figures without cycles, buffers and seconds; `work.doubts` says what is left out. A step that
      does not fit has `out_of_memory` and all the rest as well.

    Raises:
      ConfigError: the mesh is not one of these devices, or the step cannot be built on it.
      MissingExtraError: the model is an encoder-decoder, for which there is no formula here.

    Example:
      >>> from llmasos_jax.config.build import load_config
      >>> from llmasos_jax.plan.chips import parse_topology
      >>> estimate_figures(load_config("tiny"), parse_topology("v5e:2x2")).state.parameters
      164864
    """
    if cfg.model.encoder.num_layers:
        raise MissingExtraError(
            "the TPU compiler is not installed, and an encoder-decoder has no estimate in closed "
            "form; pip install 'llmasos-jax[tpu]' brings the compiler"
        )
    # Stand-ins have what a mesh asks of devices; nothing is put on them.
    devices: list[Any] = list(stand_ins(topology))
    trainer = make_trainer(cfg, make_mesh(cfg.mesh, devices))
    figures = known_before(trainer, {}, packages=("jax", "jaxlib"))
    figures = dataclasses.replace(
        figures,
        memory=_memory(trainer, figures),
        work=_work(trainer, figures),
        traffic=traffic_of(_collectives(trainer), trainer.mesh),
    )
    available = topology.chip.program_bytes
    if figures.memory is None or figures.memory.peak <= available:
        return figures
    text = "more than a device has, in closed form"
    peak = figures.memory.peak
    trouble = OutOfMemory(peak, available, "the estimated peak", (), text)
    return dataclasses.replace(figures, out_of_memory=trouble)


def _memory(trainer: Trainer, figures: Figures) -> Memory:
    """State and batch, what is kept, gradients, and the larger of output layer and one block."""
    cfg, state = trainer.cfg, figures.state
    rows, tensor, context = _rows(trainer), ways(trainer.mesh, "tensor"), trainer.manual.context
    size = lambda tag: kept_bytes(cfg, tag, rows, tensor, context)
    host = sum(map(size, cfg.train.remat_offload)) if cfg.train.remat == "tags" else 0
    scores = 0 if _has_splash(cfg) else _scores_bytes(trainer, rows)
    kept = sum(map(size, kept_tags(cfg)))
    layers, layout = cfg.model.num_layers, trainer.definition.layout
    again = list(_whole_block(cfg))
    for tag in kept_tags(cfg):
        if tag in again:
            again.remove(tag)
    block = layout.period * (sum(map(size, again)) // layers + scores)
    if cfg.train.remat != "none" and "block" not in cfg.train.remat_save:
        # What goes into a whole period of layers is kept, not into each of them.
        kept -= size("block") * (layout.period - 1) * layout.count // layers
    routed = kept_places_bytes(trainer, rows, _item(cfg))
    block += layout.period * routed
    if cfg.train.remat == "none":
        kept, block = kept + layers * (scores + routed), 0
    gathered, outside = _gathered_bytes(trainer)
    output = outside + _logits_bytes(trainer, rows)
    # Gradients in float32, one for each weight of the device: of a part, and of those before it.
    grads = 4 * _held_parameters(trainer) * (2 if cfg.train.accumulate_steps > 1 else 1)
    temporary = kept + grads + max(output, 2 * gathered + block)
    argument = state.parameters + state.optimizer + state.batch + state.other
    out = argument - state.batch
    return Memory(argument, out, out, temporary, 0, argument + temporary, 0, host)


def _whole_block(cfg: Config) -> tuple[str, ...]:
    """Names of what a block's backward pass reads where nothing is computed again."""
    more: tuple[str, ...] = ()
    if not cfg.model.is_gated:  # an activation's derivative, in parts
        more += ("up", "up")
    if cfg.model.norm_placement == "post":  # both norms' inputs, in float32
        more += ("block",) * 4
    return _WHOLE_BLOCK + more


def kept_tags(cfg: Config) -> tuple[str, ...]:
    """Names of what the backward pass finds on the device, all layers.

    Args:
      cfg: the run.
    """
    train = cfg.train
    if train.remat == "none":
        return _whole_block(cfg)
    if train.remat in KEPT:
        return KEPT[train.remat]
    saved = {"block", *train.remat_save} - set(train.remat_offload)
    return tuple(sorted(saved))


def saved_tags(cfg: Config) -> tuple[str, ...]:
    """Names of what is not computed again: kept on the device, or in the host's memory.

    Args:
      cfg: the run.
    """
    offload = cfg.train.remat_offload if cfg.train.remat == "tags" else ()
    return (*kept_tags(cfg), *offload)


def _rows(trainer: Trainer) -> int:
    """Of a device, in one part of a batch."""
    train = trainer.cfg.train
    return train.batch_size // trainer.manual.ways // train.accumulate_steps


def _logits_bytes(trainer: Trainer, rows: int) -> int:
    """Scores [B, T, V] in float32, or of a chunk of T."""
    cfg, context = trainer.cfg, trainer.manual.context
    if cfg.model.head is None:
        return 0
    predictions = trainer.abstract_batch.targets.shape[1] // context
    length = min(predictions, cfg.train.loss_chunk or predictions)
    return 4 * rows * length * cfg.model.vocab_size // ways(trainer.mesh, "tensor")


def _has_splash(cfg: Config) -> bool:
    """Whether attention is the kernel that holds no scores, by the rules of `nn.splash`."""
    plain = cfg.model.position not in ("alibi", "relative") and cfg.objective.name != "prefix_lm"
    is_asked = cfg.kernels.attention in ("auto", "splash")
    return plain and is_asked and cfg.data.sequence_length % 128 == 0


def _scores_bytes(trainer: Trainer, rows: int) -> int:
    """Scores [B, N, T, T] of one layer, in float32."""
    cfg, split = trainer.cfg, ways(trainer.mesh, "tensor", "context")
    return 4 * rows * cfg.model.query_heads * cfg.data.sequence_length**2 // split


@dataclasses.dataclass(frozen=True)
class _Weight:
    """One leaf of the parameters on one device, in the manual region.

    Attributes:
      is_block: it is of a layer, or stacked over layers.
      layers: that it is stacked over, on this device; 1 where it is not stacked.
      shard: numbers that the device holds.
      gathers: mesh axes along which it is gathered, in that order, with more than one device each.
      summed: mesh axes over which its gradient is summed.
    """

    is_block: bool
    layers: int
    shard: int
    gathers: tuple[str, ...]
    summed: tuple[str, ...]


def _weights(trainer: Trainer) -> Iterator[_Weight]:
    definition, mesh, manual = trainer.definition, trainer.mesh, trainer.manual
    is_axes = lambda node: isinstance(node, tuple)
    axes_of = jax.tree_util.tree_flatten_with_path(definition.axes, is_leaf=is_axes)[0]
    for (path, axes), leaf in zip(axes_of, jax.tree.leaves(definition.shapes), strict=True):
        entries = [(e,) if isinstance(e, str) else e or () for e in manual.rules.spec(*axes)]
        cut = [[name for name in names if mesh.shape[name] > 1] for names in entries]
        split = {name for names in cut for name in names}
        gathers = [
            name
            for axis, names in zip(axes, cut, strict=True)
            if axis not in ("layers", "experts")
            for name in reversed(names)
            if name in manual.axis_names
        ]
        batch = [n for n in mesh.axis_names if n in manual.axis_names and mesh.shape[n] > 1]
        stacked = bool(axes) and axes[0] == "layers"
        yield _Weight(
            is_block=str(path[0].key) in ("prefix", "periods", "suffix"),
            layers=leaf.shape[0] // ways(mesh, *cut[0]) if stacked else 1,
            shard=math.prod(leaf.shape) // ways(mesh, *split),
            gathers=tuple(gathers),
            summed=tuple(name for name in batch if name not in split),
        )


def _held_parameters(trainer: Trainer) -> int:
    return sum(weight.shard for weight in _weights(trainer))


def _item(cfg: Config) -> int:
    """Bytes of a number in products."""
    return 4 if cfg.precision.dtype == "float32" else 2


def _gathered_bytes(trainer: Trainer) -> tuple[int, int]:
    """One layer's weights as they are used, and the largest weight outside of the layers."""
    layers, outside = 0.0, 0
    for weight in _weights(trainer):
        whole = weight.shard * ways(trainer.mesh, *weight.gathers) * _item(trainer.cfg)
        if weight.is_block:
            layers += whole
        elif weight.gathers:
            outside = max(outside, whole)
    stages = ways(trainer.mesh, "pipeline")
    if not trainer.manual.gathers:  # they are used where they are, but for a copy in `dtype`
        return (0 if _item(trainer.cfg) == 4 else int(layers * stages / _layers(trainer))), outside
    return int(layers * stages / _layers(trainer)), outside


def _layers(trainer: Trainer) -> int:
    return trainer.cfg.model.num_layers


def _collectives(trainer: Trainer) -> list[Collective]:
    """Gathers of weights, scatters and sums of their gradients, tokens to experts; no others.

    Weights of blocks are gathered for the forward and again for the backward pass, whatever else is
    kept; others once.
    """
    found, mesh, size = [], trainer.mesh, _item(trainer.cfg)
    parts = trainer.cfg.train.accumulate_steps
    for weight in _weights(trainer):
        whole, runs = weight.shard // weight.layers * size, weight.layers * parts
        for name in weight.gathers:
            whole *= mesh.shape[name]
            passes = 2 if weight.is_block else 1
            found.append(_collective(trainer, "all-gather", (name,), whole, runs * passes))
            found.append(_collective(trainer, "reduce-scatter", (name,), whole, runs))
        if weight.summed:
            found.append(_collective(trainer, "all-reduce", weight.summed, 4 * weight.shard, 1))
    places = places_of(trainer, _rows(trainer))
    if places is not None and places.exchanged:
        # There and back, and both backward; computed again is the way there alone.
        passes = 5 if trainer.cfg.train.remat in ("full", "tags") else 4
        whole = places.exchanged * trainer.cfg.model.embedding_dim * size
        runs = places.layers * passes * parts
        found.append(_collective(trainer, "all-to-all", ("expert",), whole, runs))
    return found


def _collective(
    trainer: Trainer, kind: str, axes: tuple[str, ...], num_bytes: int, runs: int
) -> Collective:
    mesh = trainer.mesh
    group = mesh.devices[tuple(slice(None) if n in axes else 0 for n in mesh.axis_names)]
    slices = len({device.slice_index for device in group.flat})
    return Collective(kind, num_bytes, group.size, runs, "", axes, slices)


def _work(trainer: Trainer, figures: Figures) -> Work:
    """Products, attention and the least HBM traffic of one device."""
    cfg, num_devices = trainer.cfg, trainer.mesh.size
    tokens = cfg.train.batch_size * cfg.data.sequence_length
    is_splash, layers = _has_splash(cfg), range(cfg.model.num_layers)
    width = cfg.model.query_heads * (cfg.model.head_width + cfg.model.value_width)
    keys = sum(visible_keys(cfg.model, n, cfg.data.sequence_length) for n in layers)
    # One product of the size of scores, seen places alone; the model's are 2 forward, 4 backward.
    seen = tokens * width * keys
    products = figures.model_flops - 6 * seen + tokens * _again_and_rotation(trainer)
    products += tokens * empty_places_flops(trainer, _rows(trainer))
    again = cfg.train.remat != "none" and "attention" not in saved_tags(cfg)
    if is_splash:  # its backward kernels compute the scores again, twice and the gradient's once
        kernel, names = seen * (2 + 7 + 2 * again), {"splash": len(layers) * (3 + again)}
    else:
        places = tokens * width * cfg.data.sequence_length * len(layers)
        products, kernel, names = products + places * (6 + 2 * again), 0.0, {}
    flops = round(products / num_devices)
    is_narrow = cfg.precision.quantize is not None
    doubts = _left_out(trainer)
    if is_narrow:
        doubts += ("products of 8 bits are charged as if they were of 16",)
    hbm = _hbm_bytes(trainer, figures)
    return Work(flops, 0, kernel / num_devices, hbm, None, names, doubts=doubts)


def _again_and_rotation(trainer: Trainer) -> float:
    """Operations for a token beside the model's: products computed again, and rotary positions."""
    cfg = trainer.cfg
    model, saved = cfg.model, saved_tags(cfg)
    again = cfg.train.remat in ("full", "tags")
    layers = range(model.num_layers) if again else ()
    total = 2.0 * sum(_layer_again(trainer, layer, saved) for layer in layers)
    is_product = cfg.precision.dtype == "bfloat16" and not model.rope_interleaved
    if model.position == "rope" and is_product:
        # On a TPU the halves change places by a product with a 0/1 matrix, backward too.
        latent = model.latent.kv_rank
        width = model.latent.rope_dim if latent else model.head_width
        heads = {"q": model.query_heads, "k": 1 if latent else model.kv_heads}
        times = sum(n * (2 + (again and tag not in saved)) for tag, n in heads.items())
        total += model.num_layers * 2.0 * times * width**2
    return total


def _layer_again(trainer: Trainer, layer: int, saved: tuple[str, ...]) -> int:
    """Numbers in the products of a block that its backward pass computes again."""
    model, layout = trainer.cfg.model, trainer.definition.layout
    d, f, experts = model.embedding_dim, model.ffn_width, model.experts
    is_dense = not model.has_experts(layer)
    width = f if is_dense else experts.per_token * model.expert_width + experts.shared_ffn_dim
    out = model.query_heads * model.value_width * d
    part = {"attention_out": out}
    if not model.latent.kv_rank:
        part |= {"q": d * model.query_heads * model.head_width}
        part |= {
            "k": d * model.kv_heads * model.head_width,
            "v": d * model.kv_heads * model.value_width,
        }
    if is_dense:
        part |= {"up": d * f, "gate": d * f if model.is_gated else 0}
    total = layer_matmul_parameters(model, layer) - sum(part.get(tag, 0) for tag in saved)
    part_name, name, _ = layout.place_of(layer)
    is_last = part_name != "periods" or name == layout.period - 1
    if is_last and model.norm_placement == "pre":  # nothing reads what it gives
        # What experts give is, for the gradient of the weights of their sum.
        total -= d * (width if is_dense else experts.shared_ffn_dim)
        total -= out if model.block == "parallel" and "attention_out" not in saved else 0
    return max(0, total)


def _hbm_bytes(trainer: Trainer, figures: Figures) -> int:
    """Operands and results of products, and the optimizer's state: less than there is.

    Three passes over the blocks (forward, gradients of activations and of weights), of which
    computing again makes up to four.
    """
    cfg, model, size = trainer.cfg, trainer.cfg.model, _item(trainer.cfg)
    tensor = ways(trainer.mesh, "tensor")
    rows = cfg.train.batch_size // trainer.manual.ways
    tokens = rows * cfg.data.sequence_length // trainer.manual.context
    heads = (2 * model.query_heads + 2 * model.kv_heads) * model.head_width
    wide = (3 if model.is_gated else 2) * model.ffn_width
    narrow = (4 + (3 if model.is_gated else 2)) * model.embedding_dim
    activations = model.num_layers * tokens * (narrow + (heads + wide) // tensor) * size
    weights = _gathered_bytes(trainer)[0] * model.num_layers * cfg.train.accumulate_steps
    passes = 4 if cfg.train.remat in ("full", "tags") else 3
    state = figures.state.parameters + figures.state.optimizer
    places = places_of(trainer, rows)
    if places is not None:
        wide = (3 if model.is_gated else 2) * model.expert_width // tensor
        row = wide + 2 * model.embedding_dim
        activations += places.layers * places.rows * row * size
    logits = _logits_bytes(trainer, rows) if cfg.train.loss_chunk is None else 0
    return passes * (activations + weights) + 2 * state + 2 * logits


def _left_out(trainer: Trainer) -> tuple[str, ...]:
    """What the formulas do not have, for this run."""
    mesh = trainer.mesh
    named = {
        "tensor": "collectives of activations over tensor",
        "context": "exchanges of keys and values over context",
        "pipeline": "what goes from stage to stage, turns in which a stage waits, and gathers for "
        "each part of a batch",
    }
    found = [f"left out: {text}" for name, text in named.items() if ways(mesh, name) > 1]
    return tuple(found)
