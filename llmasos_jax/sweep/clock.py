"""How long a group of runs takes, with what happens once kept apart."""

from __future__ import annotations

import time


class Clock:
    """Seconds of a group: until its first step is done (start and compilation), and of the rest."""

    def __init__(self) -> None:
        self._born_s = time.perf_counter()
        self.first_s: float | None = None
        self.steps_s = 0.0
        self.num_steps = 0
        self._since_s = 0.0

    def step(self) -> None:
        """A step is done."""
        now_s = time.perf_counter()
        if self.first_s is None:
            self.first_s = now_s - self._born_s
        else:
            self.steps_s += now_s - self._since_s
            self.num_steps += 1
        self._since_s = now_s

    def resume(self) -> None:
        """Leaves out the time since the last step: evaluation, saving."""
        self._since_s = time.perf_counter()

    def total_s(self) -> float:
        """Since the group began."""
        return time.perf_counter() - self._born_s
