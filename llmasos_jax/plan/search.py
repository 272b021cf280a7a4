"""Tries changes of a config on a pod that is not here, and ranks those that fit.

One field group after the other, each from the best so far: meshes, what is kept for the backward
pass, the output layer in parts, kernel blocks, and last the batch. Each program is compiled whole:
layers are scanned, so fewer of them compile no faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmasos_jax.config.schema import Config
from llmasos_jax.errors import ConfigError, MissingExtraError, TrainingFailedError
from llmasos_jax.plan.cache import cache_key, load_figures, save_figures
from llmasos_jax.plan.candidates import (
    Change,
    applied,
    batches,
    blocks,
    described,
    losses,
    meshes,
    reason_against,
    remats,
)
from llmasos_jax.plan.chips import Topology
from llmasos_jax.plan.figures import Figures
from llmasos_jax.plan.report import Plan
from llmasos_jax.plan.run import compile_or_say, on_topology, plan_of

Compile = Callable[[Config, Topology, Callable[[str], None]], Figures]
_STAGES = (
    ("mesh", meshes),
    ("kept", lambda cfg, _: remats(cfg)),
    ("output layer", lambda cfg, _: losses(cfg)),
    ("kernel blocks", lambda cfg, _: blocks(cfg)),
    ("batch", lambda cfg, _: batches(cfg)),
)


@dataclass(frozen=True)
class Tried:
    """One candidate.

    Attributes:
      text: how it differs from the config.
      config: as it was compiled.
      plan: None where it was not compiled to an end.
      trouble: why it is out; None where it fits.
    """

    text: str
    config: Config
    plan: Plan | None
    trouble: str | None

    @property
    def score(self) -> float:
        """Seconds per token by which candidates are ranked, an estimate: see `ranking_s`."""
        if self.plan is None or self.trouble is not None:
            return float("inf")
        return ranking_s(self.plan) / self.plan.figures.tokens


@dataclass
class Search:
    """What a search came to; it prints as a table.

    Attributes:
      base: the config that it began with.
      tried: in the order of trying.
      is_complete: False where it was interrupted, or ran out of tries.
    """

    base: Config
    tried: list[Tried] = field(default_factory=list)
    is_complete: bool = True

    @property
    def ranked(self) -> list[Tried]:
        """Those that fit, best first."""
        return sorted((t for t in self.tried if t.trouble is None), key=lambda t: t.score)

    @property
    def best(self) -> Tried | None:
        """The first of them; None where nothing fits."""
        return self.ranked[0] if self.ranked else None

    def __str__(self) -> str:
        rows = [
            ("ms/ktoken", "bound", "peak GiB", "link GB", "Gcycles", "exec TFLOP", "candidate"),
            *(_row(tried) for tried in self.ranked),
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.rjust(w) if i < 6 else cell
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        out = [f"out  {t.text}: {t.trouble}" for t in self.tried if t.trouble is not None]
        end = [] if self.is_complete else ["not all was tried"]
        note = "ranked by the larger of links, and estimated cycles with kernels, per token"
        return "\n".join([note, *lines, *out, *end])

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the ranking, what is out and why, and the best plan's figures."""
        return {
            "is_complete": self.is_complete,
            "ranked": [
                {
                    "candidate": t.text,
                    "seconds_per_token": t.score,
                    "peak_bytes": t.plan.figures.memory.peak
                    if t.plan and t.plan.figures.memory
                    else None,
                }
                for t in self.ranked
            ],
            "out": {t.text: t.trouble for t in self.tried if t.trouble is not None},
            "best": self.best.plan.to_dict() if self.best and self.best.plan else None,
        }


def ranking_s(plan: Plan) -> float:
    """Seconds of a step for ranking alone: the larger of the links, and the chip's own work.

    The chip's work is the compiler's cycles and the kernels at the chip's peak. Where no clock is
    published one of 1.75 GHz stands in, which ranks programs for one kind of chip all the same.
    """
    line, work = plan.roofline, plan.figures.work
    if line is None or work is None:
        return float("inf")
    cycles_s = line.cycles_s if line.cycles_s is not None else (work.cycles or 0) / 1.75e9
    return max(
        line.link_s, line.network_s, line.memory_s, cycles_s + work.kernel_flops / plan.peak_flops
    )


def search(
    cfg: Config,
    topology_text: str,
    slices: int | None = None,
    *,
    tokens: float | None = None,
    tries: int = 16,
    compile_one: Compile = compile_or_say,
    say: Callable[[str], None] = lambda _: None,
) -> Search:
    """Searches; an interrupt (Ctrl-C) ends it with what was found so far.

    Args:
      cfg: what it begins with, which is tried first.
      topology_text: as in `make_plan`.
      slices: as in `make_plan`.
      tokens: as in `make_plan`.
      tries: programs to compile at most; what the cache has does not count.
      compile_one: compiles a candidate.
      say: is told what is tried and how long the rest may take.

    Raises:
      ConfigError: no such topology.
    """
    base, topology = on_topology(cfg, topology_text, slices)
    runner = _Runner(Search(base), topology, tokens, tries, compile_one, say)
    try:
        runner.run()
    except KeyboardInterrupt:
        runner.found.is_complete = False
    return runner.found


class _Runner:
    def __init__(
        self,
        found: Search,
        topology: Topology,
        tokens: float | None,
        tries: int,
        compile_one: Compile,
        say: Callable[[str], None],
    ) -> None:
        self.found, self.topology, self.tokens = found, topology, tokens
        self.tries, self.compile_one, self.say = tries, compile_one, say
        self.seen: set[str] = set()
        self.changes: dict[str, Change] = {}
        self.seconds: list[float] = []

    def run(self) -> None:
        base = self.found.base
        self._try({})
        # What does not fit on any mesh has to keep less first.
        stages = _STAGES if self.found.best is not None else (_STAGES[1], *_STAGES)
        for _, changes in stages:
            best = self._change_of_best()
            start = self.found.best.config if self.found.best is not None else base
            for change in list(changes(start, self.topology)):
                self._try({**best, **change})

    def _change_of_best(self) -> dict[str, Any]:
        best = self.found.best
        return dict(self.changes[best.text]) if best is not None else {}

    def _try(self, change: Change) -> None:
        cfg = applied(self.found.base, change)
        text = described(change)
        if isinstance(cfg, str):
            self._add(Tried(text, self.found.base, None, cfg), change)
            return
        key = cache_key(cfg, self.topology)
        if key in self.seen:
            return
        self.seen.add(key)
        against = reason_against(cfg, self.topology)
        if against is not None:
            self._add(Tried(text, cfg, None, against), change)
            return
        figures = load_figures(key)
        if figures is None:
            if len(self.seconds) >= self.tries:
                self.found.is_complete = False
                return
            figures = self._compiled(cfg, key, text, change)
        if figures is not None:
            plan = plan_of(cfg, self.topology, figures, self.tokens)
            trouble = None if plan.fits else plan.verdict
            self._add(Tried(text, cfg, plan, trouble), change)

    def _compiled(self, cfg: Config, key: str, text: str, change: Change) -> Figures | None:
        number, mean = len(self.seconds) + 1, _mean(self.seconds)
        left = f", about {mean * (self.tries - number + 1) / 60:.0f} min at most" if mean else ""
        label = f"{number} of at most {self.tries}{left}: {text}"
        self.say(label)
        start = time.monotonic()
        try:
            figures = self.compile_one(
                cfg, self.topology, lambda what: self.say(f"{label}: {what}")
            )
        except MissingExtraError:
            raise
        except (ConfigError, TrainingFailedError) as error:
            self.seconds.append(time.monotonic() - start)
            self._add(Tried(text, cfg, None, str(error)), change)
            return None
        self.seconds.append(time.monotonic() - start)
        save_figures(key, figures)
        return figures

    def _add(self, tried: Tried, change: Change) -> None:
        self.found.tried.append(tried)
        self.changes[tried.text] = change


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _row(tried: Tried) -> tuple[str, ...]:
    plan = tried.plan
    if plan is None or plan.roofline is None or plan.figures.work is None:
        return ("",) * 6 + (tried.text,)
    figures, memory, work = plan.figures, plan.figures.memory, plan.figures.work
    per_k = 1e6 / figures.tokens
    return (
        f"{tried.score * 1e6:.4f}",
        f"{plan.roofline.bound_s * per_k:.4f}",
        f"{(memory.peak if memory else 0) / 2**30:.2f}",
        f"{sum(t.link_bytes for t in figures.traffic) / 1e9:.2f}",
        f"{(work.cycles or 0) / 1e9:.3f}",
        f"{(work.flops + work.kernel_flops) / 1e12:.1f}",
        tried.text,
    )
