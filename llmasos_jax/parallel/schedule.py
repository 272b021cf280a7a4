"""Which stage of a pipeline runs which layers on which rows, and when."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Turn:
    """What one stage does in one tick; numbers, or arrays where the tick or stage is one.

    Attributes:
      is_busy: whether it has work; the rest is of its first or last piece of work where not.
      repeat: how often its microbatch went through all stages before.
      microbatch: which microbatch.
    """

    is_busy: Any
    repeat: Any
    microbatch: Any


@dataclass(frozen=True)
class Schedule:
    """The circular schedule: microbatches go round the stages, one stage further in each tick.

    Three stages, three microbatches, two repeats (a to c the first time round, A to C the second)::

        stage 0   a b c A B C . .
        stage 1   . a b c A B C .
        stage 2   . . a b c A B C

    Microbatches go in groups of as many as there are stages. One that has passed the last stage is
    wanted by the first one in the very next tick, so nothing waits and nothing has to be kept
    (Narayanan et al., 2021, arXiv 2104.04473, section 2.2).

    Attributes:
      stages: S, groups of devices with layers of their own.
      microbatches: M, a multiple of S.
      repeats: R, runs of layers of a stage: run r of stage s is number r S + s of all.
    """

    stages: int
    microbatches: int
    repeats: int = 1

    @property
    def ticks(self) -> int:
        """Ticks of one forward pass: M R of work, and S - 1 until the last stage has begun.

        Example:
          >>> Schedule(stages=4, microbatches=8, repeats=2).ticks
          19
        """
        return self.microbatches * self.repeats + self.stages - 1

    @property
    def bubble(self) -> float:
        """The share of ticks in which a stage is idle, (S - 1) / (M R + S - 1).

        Example:
          >>> Schedule(stages=4, microbatches=4).bubble, Schedule(4, 8, repeats=4).bubble < 0.09
          (0.42857142857142855, True)
        """
        return (self.stages - 1) / self.ticks

    @property
    def slots(self) -> int:
        """Groups of microbatches; each stage owns one microbatch of each."""
        return self.microbatches // self.stages

    @property
    def round(self) -> int:
        """Ticks in which a stage does all its work on one group."""
        return self.stages * self.repeats

    def turn(self, tick: Any, stage: Any) -> Turn:
        """What a stage does in a tick.

        Example:
          >>> turn = Schedule(stages=3, microbatches=3, repeats=2).turn(5, 1)
          >>> bool(turn.is_busy), int(turn.repeat), int(turn.microbatch)
          (True, 1, 1)
        """
        work = self.microbatches * self.repeats
        item = tick - stage
        is_busy = (item >= 0) & (item < work)
        item = jnp.clip(item, 0, work - 1)
        group, place = item // self.round, item % self.round
        return Turn(is_busy, place // self.stages, group * self.stages + place % self.stages)

    def moves(self) -> tuple[tuple[tuple[int, int, int], ...], ...]:
        """How runs of layers get from contiguous stages to where they are run.

        A stage holds R runs that follow each other, s R to s R + R - 1; it is to hold s, S + s and
        so on. In each of R exchanges every stage sends one run and gets one.

        Returns:
          For each exchange and each sending stage: which of its runs it sends, to which stage,
          and which of that one's runs it becomes there.

        Example:
          >>> Schedule(stages=2, microbatches=2, repeats=2).moves()
          (((0, 0, 0), (1, 1, 1)), ((1, 1, 0), (0, 0, 1)))
        """
        return tuple(
            tuple(self._move(exchange, stage) for stage in range(self.stages))
            for exchange in range(self.repeats)
        )

    def _move(self, exchange: int, stage: int) -> tuple[int, int, int]:
        # Stages whose runs begin at the same place modulo S send runs that are apart by their
        # number in that class: so no two send to the same stage.
        classes = math.gcd(self.stages, self.repeats)
        own = (exchange + stage * classes // self.stages) % self.repeats
        run = stage * self.repeats + own
        return own, run % self.stages, run // self.stages
