"""What compiling a step for a pod gives: plain numbers, kept as JSON."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any

from llmasos_jax.plan.hlo.live import Buffer


@dataclass(frozen=True)
class Memory:
    """Of one device, as `memory_analysis()` says it, in bytes.

    Attributes:
      argument: state and batch, as the step is given them.
      output: what it gives back.
      alias: of the output, what stands in the place of an argument.
      temporary: all else that the step needs: activations, gathered weights, gradients.
      code: the program itself.
      peak: of all that, at the fullest moment.
      host_argument, host_temporary: in the host's memory.
    """

    argument: int
    output: int
    alias: int
    temporary: int
    code: int
    peak: int
    host_argument: int = 0
    host_temporary: int = 0


@dataclass(frozen=True)
class OutOfMemory:
    """What the compiler says where a step does not fit, in bytes of one device.

    Attributes:
      needed: by the step, as far as the compiler got.
      available: of HBM.
      what: whose need it is: "temporaries" alone, or "the program".
      buffers: the largest, where it lists them.
      message: its first line.
    """

    needed: int
    available: int
    what: str
    buffers: tuple[Buffer, ...]
    message: str


@dataclass(frozen=True)
class State:
    """Bytes of one device's part of what the step is given, without padding.

    Attributes:
      parameters: weights, as the step reads them.
      optimizer: its state.
      batch: of one step.
      other: step counter, key.
    """

    parameters: int
    optimizer: int
    batch: int
    other: int


@dataclass(frozen=True)
class Work:
    """What one device does in one step.

    Attributes:
      flops: of matrix products, read off the compiled program, loops multiplied out.
      narrow_flops: those of them between numbers of 8 bits.
      kernel_flops: of Pallas kernels, in closed form by kernel.
      hbm_bytes: operands and results of what runs, where in HBM: an estimate.
      cycles: the compiler's estimates added up, without kernels and collectives; None without it.
      kernels: name -> times that a step runs it.
      opaque: kernels among them whose operations are not known, and are not counted.
      doubts: what the reader could not tell: loops without a known number of turns (counted once),
        conditionals (the heaviest branch is counted), groups of devices in an unknown form.
    """

    flops: int
    narrow_flops: int
    kernel_flops: float
    hbm_bytes: int
    cycles: int | None
    kernels: dict[str, int]
    opaque: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Traffic:
    """Collectives of one kind along the same axes of the mesh, of one device and one step.

    Attributes:
      kind: "all-gather" and so on.
      axes: of the mesh.
      count: in the program.
      runs: times that they run.
      payload_bytes: of the whole arrays.
      link_bytes: that the device sends, on a ring.
      network_bytes: of these, to other slices at least; 0 within a slice.
      torus: axes of the torus along which a group lies, by number.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    runs: int
    payload_bytes: int
    link_bytes: float
    network_bytes: float
    torus: tuple[int, ...]


@dataclass(frozen=True)
class Figures:
    """All that compiling gives.

    Attributes:
      versions: of jax, jaxlib and libtpu.
      mesh: axis -> size.
      num_parameters: of the model.
      tokens: positions that one step reads, all devices together.
      model_flops: of one step on all devices: forward and backward, nothing twice.
      state: what the step is given.
      seconds: "trace", "compile" and "read".
      host_gib: largest memory of the process that compiled.
      memory: None where the compiler says that the step does not fit.
      out_of_memory: None where it fits.
      buffers: the largest at the fullest moment, by the schedule of the compiled program.
      live_bytes: of all at that moment, by the schedule: to be compared with `memory.peak`.
      work: None where the compiler says that it does not fit.
      traffic: empty where it says so.
    """

    versions: dict[str, str]
    mesh: dict[str, int]
    num_parameters: int
    tokens: int
    model_flops: float
    state: State
    seconds: dict[str, float]
    host_gib: float
    memory: Memory | None = None
    out_of_memory: OutOfMemory | None = None
    buffers: tuple[Buffer, ...] = ()
    live_bytes: int = 0
    work: Work | None = None
    traffic: tuple[Traffic, ...] = field(default=())


def to_json(figures: Any) -> dict[str, Any]:
    """A nested dict that `json.dump` takes; `from_json` is the inverse."""
    return dataclasses.asdict(figures)


def from_json(values: Any, kind: Any = Figures) -> Any:
    """What `to_json` was given.

    Raises:
      TypeError, KeyError, ValueError: it is of another form.

    Example:
      >>> state = State(4, 8, 1, 0)
      >>> from_json(to_json(state), State) == state
      True
    """
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if not isinstance(values, dict) or set(values) != set(hints):
            raise TypeError(f"{values!r:.80} is not a {kind}")
        return typing.cast(type, kind)(**{n: from_json(v, hints[n]) for n, v in values.items()})
    if values is None:
        if type(None) not in typing.get_args(kind):
            raise TypeError(f"None is not a {kind}")
        return None
    inner = [k for k in typing.get_args(kind) if k is not type(None)]
    if typing.get_origin(kind) is tuple:
        return tuple(from_json(value, inner[0]) for value in values)
    if typing.get_origin(kind) is dict:
        return dict(values)
    if inner:  # X | None
        return from_json(values, inner[0])
    if isinstance(values, bool) or not isinstance(values, int if kind is int else (kind, int)):
        raise TypeError(f"{values!r:.80} is not a {kind}")
    return kind(values)
