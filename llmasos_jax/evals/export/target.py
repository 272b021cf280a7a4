"""What an export needs to know of a format: how it is written, and how its own program runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.evals.export.outputs import Outputs
from llmasos_jax.evals.parity.probe import Probe
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.interop.written import Written


class Opened(Protocol):
    """A written model, opened by the program that it is for."""

    def outputs(self, probes: Sequence[Probe]) -> list[Outputs]:
        """What the program gives for each probe, float32, by the names of `outputs.py`."""
        ...

    def greedy(self, prompt_ids: Sequence[int], count: int) -> list[int]:
        """Ids of the `count` likeliest next tokens, one by one through the program's own cache."""
        ...

    def encode(self, text: str) -> list[int] | None:
        """Ids that the program's own tokenizer gives; None where the folder has none."""
        ...


class Target(Protocol):
    """A format of another program.

    Attributes:
      name: as `--to` says it.
      packages: whose versions the receipt names.
      dtypes: that `--dtype` may say; the first is not changed from the model's own.
    """

    name: str
    packages: tuple[str, ...]
    dtypes: tuple[str, ...]

    def check(self, files: ModelFiles, dtype: str | None) -> None:
        """Refuses, before a byte is written, what the format cannot express.

        Raises:
          FormatError: it cannot; one line that says what and why.
        """
        ...

    def check_runtime(self) -> None:
        """Raises MissingExtraError where the program is not installed."""
        ...

    def write(
        self,
        files: ModelFiles,
        out: Path,
        dtype: str | None,
        on_tensor: Callable[[str, int], None],
    ) -> Written:
        """Writes into an empty folder, one tensor at a time."""
        ...

    def bound(self, dtype: str | None) -> float:
        """The largest difference, as a share of an output's largest number, that is a match."""
        ...

    def open(self, folder: Path, written: Written, cfg: ModelConfig) -> Opened:
        """Opens what was written with its own program.

        Raises:
          ExportError: the program does not take it.
        """
        ...

    def stored(self, folder: Path) -> dict[str, np.ndarray] | None:
        """Weights as the format holds them, widened to float32, by our names; None if it cannot."""
        ...
