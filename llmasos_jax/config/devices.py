"""How a run uses its devices and hosts: the mesh, the kernels, who belongs to the run."""

from __future__ import annotations

from dataclasses import dataclass

from llmasos_jax.config.require import require_one_of, require_positive
from llmasos_jax.errors import ConfigError

EXCHANGES = ("all_to_all", "ring")
SLICE_AXES = ("data", "fsdp", "pipeline")
ATTENTION_KERNELS = ("auto", "reference", "blocked", "splash", "cudnn")


@dataclass(frozen=True)
class MeshConfig:
    """How the devices are laid out.

    Attributes:
      preset: a row of `parallel.presets.TABLE`, such as "fsdp" or "fsdp_tp", or
        "package.module:name": which axes take the devices that there are. None leaves it to the
        sizes below; with a preset they may say how large its axes are at most, but the one that
        takes the rest.
      data: replicas; None takes the devices that the other axes leave.
      fsdp: ways in which weights and optimizer state are split; a tuple of two splits along two
        torus axes.
      tensor: ways in which heads, MLP width and vocabulary are split.
      context: ways in which the tokens of a sequence are split.
      context_exchange: how attention sees all tokens then: "all_to_all" swaps tokens for heads
        (Jacobs et al., 2023, arXiv 2309.14509), "ring" passes keys and values round (Liu et al.,
        2023, arXiv 2310.01889).
      expert: ways in which experts are split; tokens go to them by all-to-all. It splits the batch
        too.
      pipeline: stages that the layers are split into; it splits the batch too.
      microbatches: parts of the rows that the stages have together, which go through them one after
        the other; a multiple of the stages. None takes as many as there are stages.
      pipeline_repeats: times that a part goes round the stages: each holds so many runs of layers
        apart from each other, and less time is idle (Narayanan et al., 2021, arXiv 2104.04473).
      slices: slices of a pod that are joined by a slower network.
      slice_axis: the axis whose slowest part goes over that network: "data", "fsdp" or "pipeline".
    """

    preset: str | None = None
    data: int | None = None
    fsdp: tuple[int, ...] = (1,)
    tensor: int = 1
    context: int = 1
    context_exchange: str = "all_to_all"
    expert: int = 1
    pipeline: int = 1
    microbatches: int | None = None
    pipeline_repeats: int = 1
    slices: int = 1
    slice_axis: str = "data"

    def __post_init__(self) -> None:
        for name in ("tensor", "context", "expert", "pipeline", "pipeline_repeats", "slices"):
            require_positive(f"mesh.{name}", getattr(self, name))
        for name in ("data", "microbatches"):
            if getattr(self, name) is not None:
                require_positive(f"mesh.{name}", getattr(self, name))
        if not self.fsdp:
            raise ConfigError("mesh.fsdp is empty; write (1,) for no split")
        for size in self.fsdp:
            require_positive("mesh.fsdp", size)
        require_one_of("mesh.context_exchange", self.context_exchange, EXCHANGES)
        require_one_of("mesh.slice_axis", self.slice_axis, SLICE_AXES)


@dataclass(frozen=True)
class KernelsConfig:
    """Which kernel computes attention, and in which blocks; `llmasos plan --search` tunes them.

    Attributes:
      attention: "auto" takes the first of `nn.kernels.TABLE` for the kind of device that can do
        what the model asks; else its name, which then has to be able to.
      block_q, block_kv: tokens in a block of queries, and of keys and values, forward; None takes
        what was measured to be good. "splash" reads all four sizes, "blocked" has `block_q` alone,
        other kernels have none.
      block_q_backward, block_kv_backward: the same in the backward pass.
    """

    attention: str = "auto"
    block_q: int | None = None
    block_kv: int | None = None
    block_q_backward: int | None = None
    block_kv_backward: int | None = None

    def __post_init__(self) -> None:
        require_one_of("kernels.attention", self.attention, ATTENTION_KERNELS)
        for name in ("block_q", "block_kv", "block_q_backward", "block_kv_backward"):
            size = getattr(self, name)
            if size is not None and (size < 128 or size % 128):
                raise ConfigError(f"kernels.{name}={size} must be a multiple of 128")


@dataclass(frozen=True)
class HostsConfig:
    """The processes of a run, one on each host.

    Attributes:
      coordinator: "address:port" of process 0, for addresses given by hand; None asks the
        environment (a TPU pod, Slurm, MPI, Kubernetes), and where that says nothing the run has one
        process.
      count, index: processes of the run, and this one's number, with `coordinator`.
      start_timeout_s: seconds to wait at the start until all are there.
      heartbeat_timeout_s: seconds of silence after which a host is lost, and the others stop.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    start_timeout_s: int = 300
    heartbeat_timeout_s: int = 30

    def __post_init__(self) -> None:
        require_positive("hosts.start_timeout_s", self.start_timeout_s)
        require_positive("hosts.heartbeat_timeout_s", self.heartbeat_timeout_s)
        if self.count is not None:
            require_positive("hosts.count", self.count)
        by_hand = [self.coordinator is None, self.count is None, self.index is None]
        if any(by_hand) and not all(by_hand):
            raise ConfigError(
                f"hosts.coordinator={self.coordinator!r}, hosts.count={self.count} and "
                f"hosts.index={self.index} go together; set all three, or none"
            )
        if self.count is not None and not 0 <= (self.index or 0) < self.count:
            raise ConfigError(f"hosts.index={self.index} must be from 0 to {self.count - 1}")
