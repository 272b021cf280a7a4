"""Writes the files that start a config on a cluster, complete or not at all."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmasos_jax.config.build import to_dict
from llmasos_jax.config.require import require_one_of
from llmasos_jax.config.schema import Config
from llmasos_jax.errors import ConfigError, did_you_mean
from llmasos_jax.launch import scripts
from llmasos_jax.launch.gke import jobset
from llmasos_jax.launch.machines import slice_of
from llmasos_jax.launch.options import REQUIRED, LaunchOptions, check_options, object_name
from llmasos_jax.parallel.presets import mesh_config
from llmasos_jax.plan.chips import parse_topology

TARGETS = tuple(REQUIRED)


@dataclass(frozen=True)
class Launch:
    """What was written.

    Attributes:
      on: kind of cluster.
      files: in the order in which to look at them.
      start: the command that starts the run.
      hosts: machines of the run, each with one process.
      chips: TPU chips of the run; None where there are none.
    """

    on: str
    files: tuple[Path, ...]
    start: str
    hosts: int
    chips: int | None

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return dataclasses.asdict(self) | {"files": [str(file) for file in self.files]}

    def __str__(self) -> str:
        chips = f", {self.chips} chips" if self.chips is not None else ""
        wrote = "".join(f"wrote {file}\n" for file in self.files)
        return f"{wrote}{self.hosts} hosts{chips}; start it with\n  {self.start}"


def write_launch(
    config: Config,
    on: str,
    out: Path,
    options: LaunchOptions,
    *,
    topology: str | None = None,
    slices: int | None = None,
) -> Launch:
    """Writes what starts a config; see `llmasos.launch`."""
    launch, texts = launch_of(config, on, out, options, topology=topology, slices=slices)
    write_files(launch.files, texts)
    return launch


def launch_of(
    config: Config,
    on: str,
    out: Path,
    options: LaunchOptions,
    *,
    topology: str | None = None,
    slices: int | None = None,
    name: str | None = None,
) -> tuple[Launch, list[str]]:
    """What starts a config, and its files' texts; nothing is written yet.

    Args:
      config: as of `llmasos.launch`.
      on: likewise.
      out: likewise.
      options: likewise.
      topology: likewise.
      slices: likewise.
      name: of the run on the cluster; None takes the config's.

    Raises:
      ConfigError: as of `llmasos.launch`.
    """
    require_one_of("--on", on, TARGETS)
    slices = config.mesh.slices if slices is None else slices
    check_options(on, options, topology, slices)
    _check_paths(config)
    # Addresses come from the cluster, whatever the config was tried with.
    config = dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, slices=slices),
        hosts=dataclasses.replace(config.hosts, coordinator=None, count=None, index=None),
    )
    text = json.dumps(to_dict(config), indent=2) + "\n"
    name = object_name(config.name) if name is None else name
    out = out.absolute()
    if topology is None:
        if options.gpus_per_node is not None:
            gpus = (options.nodes or 1) * options.gpus_per_node
            _check_mesh(config, gpus, f"--nodes x --gpus-per-node has {gpus}", "--nodes")
        script = scripts.slurm(name, str(out / "config.json"), options)
        files = {"config.json": text, "train.sbatch": script}
        start = f"sbatch {shlex.quote(str(out / 'train.sbatch'))}"
        return _launch(on, out, files, start, options.nodes or 1, None)
    pod = parse_topology(topology, slices)
    made = slice_of(pod, on)
    told = f"{pod} has {pod.num_devices}"
    _check_mesh(config, pod.num_devices, told, "the topology (`llmasos plan` says what fits)")
    if on == "gke":
        files = {"jobset.yaml": jobset(name, text, made, slices, options)}
        start = f"kubectl apply -f {shlex.quote(str(out / 'jobset.yaml'))}"
    elif on == "xpk":
        files = {"launch.sh": scripts.xpk(name, text, made, slices, options)}
        start = f"bash {shlex.quote(str(out / 'launch.sh'))}"
    else:
        if not made.machine.has_tpu_vm:
            raise ConfigError(f"{pod.chip.name} cannot be had as a TPU VM; take --on=gke or xpk")
        files = {"launch.sh": scripts.tpu_vm(name, text, made, options)}
        start = f"bash {shlex.quote(str(out / 'launch.sh'))}"
    files["config.json"] = text
    return _launch(on, out, files, start, made.hosts * slices, pod.num_chips)


def _check_paths(config: Config) -> None:
    """Refuses paths that mean something only where this command runs."""
    data = {"data": config.data}
    data |= {f"data.mixture.{name}": part for name, part in config.data.mixture.items()}
    # A dataset of "huggingface" may be a name.
    data_paths = {f"{k}.path": v.path for k, v in data.items() if v.source != "huggingface"}
    paths = {
        **data_paths,
        "tokenizer.path": config.tokenizer.path,
        "train.start_from": config.train.start_from,
    }
    near = {name: path for name, path in paths.items() if path and not path.startswith("/")}
    if near:
        name, path = next(iter(near.items()))
        raise ConfigError(
            f"{', '.join(near)}: {path!r} is not a whole path, and hosts start in another folder; "
            f"give it as the hosts see it: --config.{name}=/..."
        )


def _check_mesh(config: Config, devices: int, told: str, other: str) -> None:
    """Refuses sizes that do not make the devices or cut the batch; own presets come later."""
    mesh = config.mesh
    if mesh.preset is not None:
        if ":" in mesh.preset:
            return
        # The sizes, not the places: for those any devices will do.
        mesh = mesh_config(mesh, range(devices))
    sizes = (*mesh.fsdp, mesh.tensor, mesh.context, mesh.expert, mesh.pipeline)
    rest = math.prod(sizes)
    data = mesh.data if mesh.data is not None else max(1, devices // rest)
    if data * rest != devices:
        made = f"{data} x {rest} = {data * rest}" if mesh.data is not None else f"{rest}"
        multiple = "" if mesh.data is not None else " or a multiple (mesh.data)"
        raise ConfigError(
            f"the config's mesh is {made} devices{multiple}, {told}; change config.mesh, or {other}"
        )
    joined = {"data": data, "fsdp": mesh.fsdp[0], "pipeline": mesh.pipeline}[mesh.slice_axis]
    if joined % mesh.slices:
        raise ConfigError(
            f"{mesh.slices} slices are joined by mesh.{mesh.slice_axis}={joined}, which they do "
            "not divide; change config.mesh, or --slices"
        )
    rows, ways = config.train.batch_size, devices // (mesh.tensor * mesh.context)
    parts = ways * config.train.accumulate_steps
    if rows % parts:
        raise ConfigError(
            f"train.batch_size={rows} is not divisible by {parts}, the devices that split the "
            f"batch ({ways}) x train.accumulate_steps ({config.train.accumulate_steps}); make it a "
            f"multiple of {parts}: --config.train.batch_size={-(-rows // parts) * parts}"
        )


def _launch(
    on: str, out: Path, files: dict[str, str], start: str, hosts: int, chips: int | None
) -> tuple[Launch, list[str]]:
    return Launch(on, tuple(out / name for name in files), start, hosts, chips), [*files.values()]


def write_files(paths: Sequence[Path], texts: Sequence[str]) -> None:
    """Writes texts, those of scripts so that they can be run.

    Raises:
      ConfigError: a file cannot be written.
    """
    for path, text in zip(paths, texts, strict=True):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if text.startswith("#!"):
                path.chmod(0o755)
        except OSError as error:
            raise ConfigError(f"cannot write {path} ({error}); take another --out") from error


def options_of(values: dict[str, Any], on: str) -> LaunchOptions:
    """Options from a notebook's keywords.

    Raises:
      ConfigError: one is unknown.
    """
    known = [field.name for field in dataclasses.fields(LaunchOptions)]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ConfigError(
            f"launch to {on}: there is no option {unknown[0]}{did_you_mean(unknown[0], known)}"
        )
    return LaunchOptions(**values)
