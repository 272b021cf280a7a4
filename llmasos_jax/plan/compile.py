"""Compiles the real training step for devices that are not here, and reads the program."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llmasos_jax.config.schema import Config
from llmasos_jax.models.count import count_parameters, flops_per_row
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.plan.chips import Topology
from llmasos_jax.plan.figures import Figures, Memory, State, Traffic, Work
from llmasos_jax.plan.hlo.collectives import Collective
from llmasos_jax.plan.hlo.groups import Devices
from llmasos_jax.plan.hlo.live import live_at_peak
from llmasos_jax.plan.hlo.program import Program, read_program
from llmasos_jax.plan.kernels import kernel_flops
from llmasos_jax.plan.memory_report import read_out_of_memory
from llmasos_jax.plan.pod import pod_devices
from llmasos_jax.train.step import Trainer, make_trainer

LARGEST = 12


def compile_figures(
    cfg: Config, topology: Topology, say: Callable[[str], None] = lambda _: None
) -> Figures:
    """Compiles the step of a run for a topology and reads what it would need and do.

    Args:
      cfg: the run; its mesh has to be one of the topology's devices.
      topology: of a TPU pod.
      say: is told what is being done.

    Raises:
      ConfigError: the mesh is not one of these devices, or the step cannot be built on it.
      MissingExtraError: libtpu is not here.
    """
    say("describing the pod")
    devices = pod_devices(topology)
    mesh = make_mesh(cfg.mesh, devices)
    trainer = make_trainer(cfg, mesh)
    say("tracing")
    start = time.monotonic()
    lowered = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)
    traced = time.monotonic()
    figures = known_before(trainer, {"trace": round(traced - start, 2)})
    say("compiling")
    try:
        compiled = lowered.compile()
    except Exception as error:  # the compiler's own; its class differs by version
        seconds = figures.seconds | {"compile": round(time.monotonic() - traced, 2)}
        trouble = read_out_of_memory(str(error))
        if trouble is None:
            raise
        return dataclasses.replace(
            figures,
            seconds=seconds,
            host_gib=_host_gib(),
            out_of_memory=trouble,
            buffers=trouble.buffers[:LARGEST],
        )
    compile_s = round(time.monotonic() - traced, 2)
    say("reading the program")
    return read_compiled(figures, trainer, compiled, compile_s)


def known_before(
    trainer: Trainer,
    seconds: dict[str, float],
    packages: Sequence[str] = ("jax", "jaxlib", "libtpu"),
) -> Figures:
    """What is known before compiling.

    Args:
      trainer: of the step.
      seconds: of the stages so far, to be kept with it.
      packages: whose versions are told.
    """
    cfg, batch = trainer.cfg, trainer.abstract_batch
    length = batch.tokens.shape[1]
    encoder = batch.extra.get("encoder_tokens")
    encoder_length = encoder.shape[1] if encoder is not None else 0
    flops = flops_per_row(cfg.model, length, batch.targets.shape[1], encoder_length)
    state = trainer.abstract_state
    parts = [_device_bytes(part) for part in (state.params, state.opt_state, batch, state)]
    return Figures(
        versions={name: importlib.metadata.version(name) for name in packages},
        mesh={str(name): int(size) for name, size in trainer.mesh.shape.items()},
        num_parameters=count_parameters(cfg.model),
        tokens=cfg.train.batch_size * (length + encoder_length),
        model_flops=cfg.train.batch_size * flops,
        state=State(parts[0], parts[1], parts[2], parts[3] - parts[0] - parts[1]),
        seconds=seconds,
        host_gib=_host_gib(),
    )


def read_compiled(figures: Figures, trainer: Trainer, compiled: Any, compile_s: float) -> Figures:
    """Adds to `known_before` what a compiled step says."""
    start, cfg, mesh = time.monotonic(), trainer.cfg, trainer.mesh
    stats, text = compiled.memory_analysis(), compiled.as_text()
    devices = list(mesh.devices.flat)
    slices = tuple(getattr(device, "slice_index", 0) for device in devices)
    program = read_program(text, Devices(figures.mesh, slices))
    buffers = live_at_peak(text)
    flops, opaque = kernel_flops(program.kernel_calls, cfg.model, cfg.data.sequence_length)
    return dataclasses.replace(
        figures,
        memory=Memory(
            argument=stats.argument_size_in_bytes,
            output=stats.output_size_in_bytes,
            alias=stats.alias_size_in_bytes,
            temporary=stats.temp_size_in_bytes,
            code=stats.generated_code_size_in_bytes,
            peak=stats.peak_memory_in_bytes,
            host_argument=stats.host_argument_size_in_bytes,
            host_temporary=stats.host_temp_size_in_bytes,
        ),
        buffers=buffers[:LARGEST],
        live_bytes=sum(buffer.num_bytes for buffer in buffers),
        work=Work(
            flops=program.flops,
            narrow_flops=program.narrow_flops,
            kernel_flops=flops,
            hbm_bytes=program.hbm_bytes,
            cycles=program.cycles,
            kernels=program.kernels,
            opaque=opaque,
            doubts=_doubts(program),
        ),
        traffic=traffic_of(program.collectives, mesh),
        seconds=figures.seconds
        | {"compile": compile_s, "read": round(time.monotonic() - start, 2)},
        host_gib=_host_gib(),
    )


def _doubts(program: Program) -> tuple[str, ...]:
    named = {
        "a loop of unknown length, counted once": program.endless,
        "a conditional, counted by its heaviest branch": program.branches,
        "a collective among unknown devices, taken to be all": program.unread,
        "the compiler has no cycles for it, none are counted": program.uncosted,
    }
    return tuple(f"{text}: {name}" for text, names in named.items() for name in names)


def traffic_of(collectives: Sequence[Collective], mesh: Any) -> tuple[Traffic, ...]:
    """Collectives added up by kind and axes of the mesh, the most bytes first."""
    groups: dict[tuple[str, tuple[str, ...]], list[Collective]] = {}
    for one in collectives:
        groups.setdefault((one.kind, one.axes), []).append(one)
    found = [
        Traffic(
            kind=kind,
            axes=axes,
            count=len(group),
            runs=sum(one.runs for one in group),
            payload_bytes=sum(one.runs * one.num_bytes for one in group),
            link_bytes=sum(one.link_bytes for one in group),
            network_bytes=sum(one.network_bytes for one in group),
            torus=_torus_axes(mesh, axes),
        )
        for (kind, axes), group in groups.items()
    ]
    return tuple(sorted(found, key=lambda traffic: -traffic.link_bytes))


def _torus_axes(mesh: Any, axes: Sequence[str]) -> tuple[int, ...]:
    """Axes of the torus along which the first group of these mesh axes lies."""
    chosen = tuple(slice(None) if name in axes else 0 for name in mesh.axis_names)
    places = np.array([device.coords for device in np.ravel(mesh.devices[chosen])])
    return tuple(int(axis) for axis in np.flatnonzero(np.ptp(places, axis=0)))


def _device_bytes(tree: Any) -> int:
    """Of one device's part of abstract arrays."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * _item_bytes(leaf.dtype)
        for leaf in jax.tree.leaves(tree)
    )


def _item_bytes(dtype: Any) -> int:
    is_key = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    return 8 if is_key else dtype.itemsize


def _host_gib() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
