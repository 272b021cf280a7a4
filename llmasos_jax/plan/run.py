"""One plan: from a config and a topology to a `Plan`: compiled, from the cache, or estimated."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable

from llmasos_jax.config.schema import Config
from llmasos_jax.errors import ConfigError, MissingExtraError
from llmasos_jax.plan.advice import advise
from llmasos_jax.plan.cache import cache_key, load_figures, save_figures
from llmasos_jax.plan.child import Stage, compile_in_child
from llmasos_jax.plan.chips import Topology, parse_topology, require_shape
from llmasos_jax.plan.estimate import estimate_figures
from llmasos_jax.plan.figures import Figures
from llmasos_jax.plan.report import Plan
from llmasos_jax.plan.roofline import budget, roofline

_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def make_plan(
    cfg: Config, topology_text: str, slices: int | None = None, tokens: float | None = None
) -> Plan:
    """Plans a run; see `llmasos_jax.plan`. An estimate, without the compiler, is not cached.

    Args:
      cfg: the run.
      topology_text: "v5e:16x16".
      slices: of such topologies; None takes `mesh.slices`.
      tokens: to be read in all; None takes the steps of the run.
    """
    cfg, topology = on_topology(cfg, topology_text, slices)
    key = cache_key(cfg, topology)
    figures = load_figures(key)
    found = figures is not None
    if figures is None:
        stage = Stage(f"{cfg.name} on {topology}")
        try:
            figures = compile_or_say(cfg, topology, stage)
        except MissingExtraError:
            figures = estimate_figures(cfg, topology)
            return plan_of(cfg, topology, figures, tokens, source="closed form")
        finally:
            stage.close()
        save_figures(key, figures)
    return plan_of(cfg, topology, figures, tokens, from_cache=found)


def on_topology(cfg: Config, text: str, slices: int | None) -> tuple[Config, Topology]:
    """The run with its slices set, and the topology, checked against each other.

    Raises:
      ConfigError: no such topology, a kind of device that is not compiled for, or slices that the
        config says otherwise.
    """
    if text.partition(":")[0].lower() in ("gpu", "cuda", "a100", "h100", "h200", "b200", "rocm"):
        raise ConfigError(
            f'topology "{text}": only TPUs are compiled for ahead of time; for GPUs run a few '
            "steps with `llmasos train`"
        )
    topology = parse_topology(text, slices if slices is not None else cfg.mesh.slices)
    require_shape(topology)
    if topology.slices != cfg.mesh.slices:
        cfg = dataclasses.replace(cfg, mesh=dataclasses.replace(cfg.mesh, slices=topology.slices))
    return cfg, topology


def compile_or_say(cfg: Config, topology: Topology, say: Callable[[str], None]) -> Figures:
    """Compiles, or says what is missing."""
    if importlib.util.find_spec("libtpu") is None:
        raise MissingExtraError(
            "the TPU compiler is not installed; pip install 'llmasos-jax[tpu]' brings it"
        )
    return compile_in_child(cfg, topology, say)


def plan_of(
    cfg: Config,
    topology: Topology,
    figures: Figures,
    tokens: float | None = None,
    *,
    from_cache: bool = False,
    source: str = "compiler",
) -> Plan:
    """What figures mean for a run: bounds, budget, advice."""
    chip = topology.chip
    line, trouble = roofline(figures, topology), figures.out_of_memory
    available = trouble.available if trouble else chip.program_bytes
    fits = trouble is None and figures.memory is not None and figures.memory.peak <= available
    planned = cfg.train.steps * figures.tokens if tokens is None else round(tokens)
    return Plan(
        name=cfg.name,
        topology=str(topology),
        num_chips=topology.num_chips,
        peak_flops=chip.flops / chip.devices,
        available=available,
        fits=fits,
        source=source,
        figures=figures,
        roofline=line,
        budget=budget(planned, figures.tokens, line.bound_s, topology.num_chips) if line else None,
        advice=() if fits else advise(cfg, figures, available),
        from_cache=from_cache,
    )


def parse_tokens(text: str) -> float:
    """Reads a number of tokens: "1T", "300B", "2.5e9".

    Raises:
      ConfigError: not a number above 0.

    Example:
      >>> parse_tokens("1.4T")
      1400000000000.0
    """
    unit = _UNITS.get(text[-1:].upper(), 1)
    try:
        number = float(text[:-1] if unit > 1 else text) * unit
    except ValueError:
        number = 0.0
    if not 1 <= number < 1e18:
        raise ConfigError(f'--tokens="{text}" is not a number of tokens; write 300B, 1T or 2.5e9')
    return number
