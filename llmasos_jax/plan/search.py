"""Tries changes of a config on a pod that is not here, and ranks those that fit.

One field group after the other, each from the best so far: what is kept for the backward pass and
in how many parts the batch goes, meshes, the output layer in parts, kernel blocks, and last the
batch. Within a group those come first of which the closed form promises most, and those of which it
promises nothing are left out. Each program is compiled whole: layers are scanned, so fewer of them
compile no faster.
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
    parts,
    reason_against,
    remats,
)
from llmasos_jax.plan.chips import Topology
from llmasos_jax.plan.figures import Figures
from llmasos_jax.plan.guess import NOT_COMPILED, Guesser
from llmasos_jax.plan.lines import wrapped
from llmasos_jax.plan.report import Plan
from llmasos_jax.plan.run import compile_or_say, on_topology, plan_of

Compile = Callable[[Config, Topology, Callable[[str], None]], Figures]
_HOST_BYTES_PER_S = 8e9
_STAGES = (
    ("kept", remats),
    ("mesh", meshes),
    ("kept on another mesh", remats),
    ("parts", lambda cfg, _: parts(cfg)),
    ("output layer", lambda cfg, _: losses(cfg)),
    ("kernel blocks", lambda cfg, _: blocks(cfg)),
    ("batch", lambda cfg, _: batches(cfg)),
)


@dataclass(frozen=True)
class Limits:
    """What a search may take.

    Attributes:
      tries: programs to compile at most; what the cache has does not count.
      minutes: of compiling; a program that would end later, as far as the others tell, is not
        begun. None for no end.
      memory_gib: of a device that a candidate may take; None for all that the chip has.
    """

    tries: int = 16
    minutes: float | None = None
    memory_gib: float | None = None


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
      is_complete: False where it was interrupted, or ran out of tries or time.
      compiled: programs that this call compiled.
      seconds: that this took.
    """

    base: Config
    tried: list[Tried] = field(default_factory=list)
    is_complete: bool = True
    compiled: int = 0
    seconds: float = 0.0

    @property
    def ranked(self) -> list[Tried]:
        """Those that fit, best first."""
        return sorted((t for t in self.tried if t.trouble is None), key=lambda t: t.score)

    @property
    def best(self) -> Tried | None:
        """The first of them with the config's own batch, else of all; None where nothing fits.

        With another batch it would be another run.
        """
        own = [t for t in self.ranked if t.config.train.batch_size == self.base.train.batch_size]
        return next(iter(own or self.ranked), None)

    def __str__(self) -> str:
        rows = [
            ("ms/ktoken", "peak GiB", "link GB", "Gcycles", "exec TFLOP", "candidate"),
            *(_row(tried) for tried in self.ranked),
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
        lines = [
            wrapped(
                "".join(f"{cell.rjust(w)}  " for cell, w in zip(row, widths, strict=False)), row[-1]
            )
            for row in rows
        ]
        left = [t for t in self.tried if t.trouble and t.trouble.startswith(NOT_COMPILED)]
        out = [
            wrapped("out  ", f"{t.text}: {t.trouble}", 9)
            for t in self.tried
            if t.trouble and t not in left
        ]
        if left:
            text = f"{len(left)} more, {NOT_COMPILED}: no faster or too large, in closed form"
            out.append(wrapped("out  ", text, 9))
        end = [] if self.is_complete else ["not all was tried; the same call goes on from here"]
        note = (
            "ranked per token by the larger of links, network, memory, and estimated cycles with "
            "kernels"
        )
        told = f"candidates: {len(self.tried)}, {self.compiled} of them compiled now"
        if self.compiled:
            told += f" in {self.seconds / 60:.1f} min"
        table = [wrapped("", note), *lines] if self.ranked else ["nothing that was tried fits"]
        return "\n".join([*table, *out, told, *end])

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the ranking, what is out and why, and the best plan's figures."""
        return {
            "is_complete": self.is_complete,
            "compiled": self.compiled,
            "seconds": round(self.seconds, 1),
            "ranked": [
                {
                    "candidate": t.text,
                    "seconds_per_token": t.score,
                    "cycles": t.plan.figures.work.cycles if t.plan.figures.work else None,
                    "peak_bytes": t.plan.figures.memory.peak if t.plan.figures.memory else None,
                    "batch_size": t.config.train.batch_size,
                }
                for t in self.ranked
                if t.plan is not None
            ],
            "out": {t.text: t.trouble for t in self.tried if t.trouble is not None},
            "best": self.best.plan.to_dict() if self.best and self.best.plan else None,
        }


def ranking_s(plan: Plan) -> float:
    """Seconds of a step for ranking alone: the larger of the links, and the chip's own work.

    The chip's work is the compiler's cycles and the kernels at the chip's peak; of an estimate,
    which has no cycles, all at the peak. Where no clock is published one of 1.75 GHz stands in,
    which ranks programs for one kind of chip all the same. What is kept on the host goes there and
    back at 8 GB/s, a careful guess.
    """
    line, work = plan.roofline, plan.figures.work
    if line is None or work is None:
        return float("inf")
    chip_s = line.compute_s
    if work.cycles is not None:
        cycles_s = line.cycles_s if line.cycles_s is not None else work.cycles / 1.75e9
        chip_s = cycles_s + work.kernel_flops / plan.peak_flops
    memory = plan.figures.memory
    host_s = 0.0 if memory is None else 2 * memory.host_temporary / _HOST_BYTES_PER_S
    return max(line.link_s, line.network_s, line.memory_s, host_s, chip_s)


def search(
    cfg: Config,
    topology_text: str,
    slices: int | None = None,
    *,
    tokens: float | None = None,
    limits: Limits | None = None,
    compile_one: Compile = compile_or_say,
    say: Callable[[str], None] = lambda _: None,
) -> Search:
    """Searches; an interrupt (Ctrl-C) ends it with what was found so far.

    Args:
      cfg: what it begins with, which is tried first.
      topology_text: as in `make_plan`.
      slices: as in `make_plan`.
      tokens: as in `make_plan`.
      limits: what it may take; None for the defaults.
      compile_one: compiles a candidate.
      say: is told what is tried and how long the rest may take.

    Raises:
      ConfigError: no such topology.
    """
    base, topology = on_topology(cfg, topology_text, slices)
    runner = _Runner(Search(base), topology, tokens, limits or Limits(), compile_one, say)
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
        limits: Limits,
        compile_one: Compile,
        say: Callable[[str], None],
    ) -> None:
        self.found, self.topology, self.tokens = found, topology, tokens
        self.limits, self.compile_one, self.say = limits, compile_one, say
        self.guesser = Guesser(topology, ranking_s)
        self.seen: set[str] = set()
        self.changes: dict[str, Change] = {}

    def run(self) -> None:
        base = self.found.base
        self._try({}, is_base=True)
        for _, changes in _STAGES:
            best = self._change_of_best()
            start = self.found.best.config if self.found.best is not None else base
            for change in self._ordered([{**best, **c} for c in changes(start, self.topology)]):
                self._try(change)

    def _change_of_best(self) -> dict[str, Any]:
        best = self.found.best
        return dict(self.changes[best.text]) if best is not None else {}

    def _ordered(self, changes: list[Change]) -> list[Change]:
        """Those first of which the closed form promises most; those without one last."""
        limit = self._limit()

        def place(change: Change) -> tuple[bool, float]:
            cfg = applied(self.found.base, change)
            guess = None if isinstance(cfg, str) else self.guesser.guess(cfg)
            if guess is None:
                return True, float("inf")
            return guess.peak > limit, guess.seconds

        return sorted(changes, key=place)

    def _limit(self) -> int:
        chip = self.topology.chip.program_bytes
        memory = self.limits.memory_gib
        return chip if memory is None else min(chip, int(memory * 2**30))

    def _try(self, change: Change, *, is_base: bool = False) -> None:
        cfg = applied(self.found.base, change)
        text = described(change)
        if isinstance(cfg, str):
            self._add(Tried(text, self.found.base, None, cfg), change)
            return
        key = cache_key(cfg, self.topology)
        if key in self.seen:
            return
        self.seen.add(key)
        figures = load_figures(key)
        if figures is None:
            against = reason_against(cfg, self.topology) or (
                None if is_base else self._no_promise(cfg)
            )
            if against is not None:
                self._add(Tried(text, cfg, None, against), change)
                return
            if not self._may_compile():
                self.found.is_complete = False
                return
            figures = self._compiled(cfg, key, text, change)
        if figures is not None:
            self.guesser.learn(cfg, figures)
            plan = plan_of(cfg, self.topology, figures, self.tokens)
            self._add(Tried(text, cfg, plan, self._trouble(plan)), change)

    def _no_promise(self, cfg: Config) -> str | None:
        best, own = self.found.best, self.found.base.train.batch_size
        if cfg.train.batch_size != own:  # ranked, but not to be the best
            best = None
        best_s = best.score if best is not None else float("inf")
        return self.guesser.reason_against(cfg, self._limit(), best_s)

    def _trouble(self, plan: Plan) -> str | None:
        memory, limit = plan.figures.memory, self._limit()
        if not plan.fits or memory is None:
            return plan.verdict
        if memory.peak > limit:
            return f"{memory.peak / 2**30:.2f} of {limit / 2**30:.2f} GiB"
        return None

    def _may_compile(self) -> bool:
        found, limits = self.found, self.limits
        if found.compiled >= limits.tries:
            return False
        mean = found.seconds / found.compiled if found.compiled else 0.0
        return limits.minutes is None or found.seconds + mean <= 60 * limits.minutes

    def _left(self) -> str:
        """How long the rest may take, as long as it is not known how much of it falls away."""
        found, limits = self.found, self.limits
        if not found.compiled:
            return ""
        left = found.seconds / found.compiled * (limits.tries - found.compiled)
        if limits.minutes is not None:
            left = min(left, 60 * limits.minutes - found.seconds)
        return f", about {max(1.0, left / 60):.0f} min at most"

    def _compiled(self, cfg: Config, key: str, text: str, change: Change) -> Figures | None:
        found = self.found
        label = f"{found.compiled + 1} of at most {self.limits.tries}{self._left()}: {text}"
        self.say(label)
        start = time.monotonic()
        try:
            figures = self.compile_one(
                cfg, self.topology, lambda what: self.say(f"{label}: {what}")
            )
        except MissingExtraError:
            raise
        except (ConfigError, TrainingFailedError) as error:
            self._add(Tried(text, cfg, None, str(error)), change)
            return None
        finally:
            found.seconds += time.monotonic() - start
            found.compiled += 1
        save_figures(key, figures)
        return figures

    def _add(self, tried: Tried, change: Change) -> None:
        self.found.tried.append(tried)
        self.changes[tried.text] = change


def _row(tried: Tried) -> tuple[str, ...]:
    plan = tried.plan
    if plan is None or plan.roofline is None or plan.figures.work is None:
        return ("",) * 5 + (tried.text,)
    figures, memory, work = plan.figures, plan.figures.memory, plan.figures.work
    return (
        f"{tried.score * 1e6:.4f}",
        f"{(memory.peak if memory else 0) / 2**30:.2f}",
        f"{sum(t.link_bytes for t in figures.traffic) / 1e9:.2f}",
        f"{(work.cycles or 0) / 1e9:.3f}",
        f"{(work.flops + work.kernel_flops) / 1e12:.1f}",
        tried.text,
    )
