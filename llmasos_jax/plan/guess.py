"""What the closed form says of a candidate before it is compiled: its place in the order, or out.

The closed form is off by some factor; what was compiled already tells by which, for its mesh nearly
and for others roughly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from llmasos_jax.config.schema import Config, MeshConfig
from llmasos_jax.errors import LLMasOSError
from llmasos_jax.plan.advice import kept_bytes, row_sizes
from llmasos_jax.plan.chips import Topology
from llmasos_jax.plan.estimate import estimate_figures, saved_tags
from llmasos_jax.plan.figures import Figures
from llmasos_jax.plan.report import Plan
from llmasos_jax.plan.run import plan_of

NOT_COMPILED = "not compiled"
_GIB = 1 << 30
# A byte that is kept takes as long, by the compiler's cycles, as so many that products read: from
# LLaMA-2 7B on v5e:16x16 with five choices of what is kept (libtpu 0.0.52).
_COST, _COSTS = 8, {"gate": 22, "up": 22}
# How far beyond the limit, or behind the best, a guess must be for a candidate to be left out: on a
# mesh of which one program was compiled, and on another.
_NEAR = {"memory": 1.06, "time": 1.02, "likely": 1.03}
_FAR = {"memory": 1.35, "time": 1.5, "likely": 1.5}
# Of what the compiler says to what the closed form says. Beyond, it is about something else: small
# steps, where all that it leaves out is most of the step.
_LIKELY = (0.4, 2.5)


@dataclass(frozen=True)
class Guess:
    """What a candidate may come to.

    Attributes:
      seconds: of a token, as candidates are ranked, with what keeping takes: for the order.
      least: without what keeping takes.
      peak: bytes of a device.
      is_near: a program for the same mesh was compiled.
    """

    seconds: float
    least: float
    peak: float
    is_near: bool


@dataclass
class Guesser:
    """Guesses, and learns of each program that is compiled.

    Attributes:
      topology: of all candidates.
      rank: seconds of a step, of a compiled or an estimated plan.
      is_off: the closed form was far from a program that was compiled.
    """

    topology: Topology
    rank: Callable[[Plan], float]
    is_off: bool = False
    _factors: dict[MeshConfig, tuple[float, ...]] = field(default_factory=dict)
    _raw: dict[Config, tuple[float, ...] | None] = field(default_factory=dict)

    def learn(self, cfg: Config, figures: Figures) -> None:
        """Takes what the compiler said of a candidate beside what the closed form says of it."""
        raw = self._estimate(cfg)
        if raw is None or figures.memory is None or figures.work is None:
            return
        seconds = self.rank(plan_of(cfg, self.topology, figures)) / figures.tokens
        found = (seconds, seconds, figures.memory.peak)
        factors = tuple(new / old for new, old in zip(found, raw, strict=True))
        if all(_LIKELY[0] <= factor <= _LIKELY[1] for factor in factors):
            self._factors[cfg.mesh] = factors
        else:
            self.is_off = True

    def guess(self, cfg: Config) -> Guess | None:
        """None where there is no closed form, or it was seen to be far off."""
        raw = None if self.is_off else self._estimate(cfg)
        if raw is None:
            return None
        is_near = cfg.mesh in self._factors
        factors = self._factors.get(cfg.mesh, next(iter(self._factors.values()), (1.0,) * 3))
        seconds, least, peak = (old * factor for old, factor in zip(raw, factors, strict=True))
        return Guess(seconds, least, peak, is_near)

    def reason_against(self, cfg: Config, limit: int, best_s: float) -> str | None:
        """Why a candidate is not worth compiling, by the closed form; None where it may be.

        Args:
          cfg: the candidate.
          limit: bytes that a step may take.
          best_s: of the best so far, seconds of a token.
        """
        guess = self.guess(cfg)
        if guess is None:
            return None
        slack = _NEAR if guess.is_near else _FAR
        if guess.peak > slack["memory"] * limit:
            return f"{NOT_COMPILED}: about {guess.peak / _GIB:.1f} GiB in closed form"
        if guess.least > slack["time"] * best_s or guess.seconds > slack["likely"] * best_s:
            return f"{NOT_COMPILED}: about {guess.seconds * 1e6:.3g} ms/ktoken in closed form"
        return None

    def _estimate(self, cfg: Config) -> tuple[float, ...] | None:
        if cfg not in self._raw:
            try:
                figures = estimate_figures(cfg, self.topology)
            except LLMasOSError:  # no formula, or no such step: the compiler's part will say so
                self._raw[cfg] = None
            else:
                least = max(self.rank(plan_of(cfg, self.topology, figures)), 1e-30)
                seconds = (least + self._keeping_s(cfg, figures)) / figures.tokens
                peak = figures.memory.peak if figures.memory else 0
                self._raw[cfg] = (seconds, least / figures.tokens, float(max(1, peak)))
        return self._raw[cfg]

    def _keeping_s(self, cfg: Config, figures: Figures) -> float:
        """What it takes to put away what is kept, and to take it out again."""
        rows, tensor, context = row_sizes(cfg, figures)
        cost = sum(
            kept_bytes(cfg, tag, rows, tensor, context) * _COSTS.get(tag, _COST)
            for tag in saved_tags(cfg)
        )
        return cost * cfg.train.accumulate_steps / self.topology.chip.memory_bytes_per_s
