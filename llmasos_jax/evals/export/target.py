"""What an export needs to know of a format: how it is written, and how its own program runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.evals.export.ours import Outputs
from llmasos_jax.evals.export.weights import Read
from llmasos_jax.evals.parity.probe import Probe
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.interop.written import Written

if TYPE_CHECKING:
    from llmasos_jax.evals.export.proof import Proof

Tick = Callable[[str, int], None]


class Opened(Protocol):
    """A written model, opened by the program that it is for.

    Attributes:
      pad_id: what it takes for no token wherever it stands; None if it goes by a mask.
    """

    pad_id: int | None = None

    def outputs(self, probes: Sequence[Probe]) -> list[Outputs]:
        """What the program gives for each probe, float32: what `Target.shown` names."""
        ...

    def greedy(self, prompt_ids: Sequence[int], count: int) -> list[int]:
        """Ids of the `count` likeliest next tokens, one by one through the program's own cache."""
        ...

    def check_texts(self, tokenizer: Tokenizer, cfg: ModelConfig) -> int:
        """Compares the program's own tokenizer with the model's.

        Returns:
          How many texts were compared; 0 where the folder has no tokenizer.

        Raises:
          ExportError: it gives other ids.
        """
        ...

    def close(self) -> None:
        """Ends what was started for it."""
        return


class Target(Protocol):
    """A format of another program.

    Attributes:
      name: as `--to` says it.
      opens: the program that it is for, as messages call it.
      packages: whose versions the receipt names.
      dtypes: that `--dtype` may say.
      reads_types: whether the program takes the type of each token.
      room: places of its context that stand free behind a row that it is given.
      unsaid: fields of `Generation` that it has no exact words for; a note says what is lost.
      second: another program that is tried as well, as the receipt calls it; None if there is none.
    """

    name: str
    opens: str
    packages: tuple[str, ...]
    dtypes: tuple[str, ...]
    reads_types: bool = True
    room: int = 0
    unsaid: tuple[str, ...] = ()
    second: str | None = None

    def check(self, files: ModelFiles, dtype: str | None) -> None:
        """Refuses, before a byte is written, what the format cannot express.

        Raises:
          FormatError: it cannot; one line that says what and why.
        """
        ...

    def check_runtime(self) -> None:
        """Raises MissingExtraError where the program is not installed."""
        ...

    def write(self, files: ModelFiles, out: Path, dtype: str | None, on_tensor: Tick) -> Written:
        """Writes into an empty folder, one tensor at a time.

        Args:
          files: the model.
          out: an empty folder.
          dtype: of the weights, one of `dtypes`; None keeps the model's own.
          on_tensor: called with the name and the bytes of each tensor written.
        """
        ...

    def bound(self, files: ModelFiles, dtype: str | None) -> float:
        """The largest difference, as a share of an output's largest number, that is a match.

        Both programs have the weights as they were written: rounding them is no part of it.
        """
        ...

    def said(self, files: ModelFiles) -> ModelFiles:
        """The same network in the format's words: what the folder is compared with."""
        return files

    def shown(self, outputs: Outputs, probe: Probe) -> Outputs:
        """What the program shows of our outputs for a probe."""
        return outputs

    def open(self, folder: Path, written: Written, cfg: ModelConfig) -> Opened:
        """Opens what was written with its own program.

        Raises:
          ExportError: the program does not take it.
        """
        ...

    def open_second(self, folder: Path, cfg: ModelConfig) -> Opened:
        """Opens what was written with the second program.

        Raises:
          ExportError: it does not take it; so does what was opened, later.
          MissingExtraError: it is not installed.
        """
        raise ValueError(f"{self.name} has no second program: {folder}, {cfg}")

    def stored(self, folder: Path) -> Mapping[str, np.ndarray]:
        """The weights read back from what was written, by our names, read when asked for."""
        return Read(self.back(folder).tensors)

    def own_proof(
        self, files: ModelFiles, folder: Path, written: Written, seed: int
    ) -> Proof | None:
        """A proof in place of the usual one, for what is no whole model; None for the usual one.

        Raises:
          ExportError: what was written is not what the model is.
        """
        return None

    def back(self, folder: Path) -> ModelFiles:
        """What was written, as this package reads it."""
        ...

    def source(self, folder: Path) -> str | None:
        """What `llmasos parity` reads to say where it parts from the model; None if nothing."""
        ...
