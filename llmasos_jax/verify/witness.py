"""The hook inside of a run that is verified: it writes down what the run reads, and kills it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from llmasos_jax.checkpoint import steps
from llmasos_jax.train.hooks import Hook, RunInfo
from llmasos_jax.verify.digests import digests_of_rows, digests_of_state

VARIABLE = "LLMASOS_VERIFY_RESUME"
HOOK = "llmasos_jax.verify.witness:Witness"


@dataclass(frozen=True)
class Orders:
    """What the hook is to do, in the variable `VARIABLE`.

    Attributes:
      folder: for `batches-PROCESS.jsonl` and `restored.json`.
      kill_at: the process kills itself while it works on this step; None never.
      while_saving: it does so while the first checkpoint of that step or a later one is written.
    """

    folder: str
    kill_at: int | None = None
    while_saving: bool = False

    def to_text(self) -> str:
        """For the variable."""
        return json.dumps(dataclasses.asdict(self))


class Witness(Hook):
    """Writes a digest of each batch, and of the state that a run goes on from."""

    def __init__(self) -> None:
        self._orders = Orders(**json.loads(os.environ[VARIABLE]))
        self._folder = Path(self._orders.folder)
        self._folder.mkdir(parents=True, exist_ok=True)

    def on_start(self, run: RunInfo) -> None:
        """See `Hook`."""
        self._checkpoints = run.workdir / steps.FOLDER
        name = f"batches-{jax.process_index()}.jsonl"
        self._file = (self._folder / name).open("w", encoding="utf-8")

    def on_state(self, step: int, state: Any) -> None:
        """See `Hook`."""
        found = {"step": step, "leaves": digests_of_state(state)}
        if jax.process_index() == 0:
            (self._folder / "restored.json").write_text(json.dumps(found), encoding="utf-8")

    def on_batch(self, step: int, batch: Any, numbers: Sequence[int]) -> None:
        """See `Hook`."""
        line = {"step": step, "rows": digests_of_rows(batch, numbers)}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if step == self._orders.kill_at and not self._orders.while_saving:
            _kill()

    def on_checkpoint(self, step: int) -> None:
        """See `Hook`."""
        kill_at = self._orders.kill_at
        if self._orders.while_saving and kill_at is not None and step >= kill_at:
            threading.Thread(target=self._kill_while_saving, args=(step,), daemon=True).start()

    def on_end(self, step: int, error: BaseException | None) -> None:
        """See `Hook`."""
        self._file.close()

    def _kill_while_saving(self, step: int) -> None:
        """Waits for the folder that Orbax writes to before it has its name."""
        whole = self._checkpoints / str(step)
        while not whole.exists():
            names = [path.name for path in self._checkpoints.glob(f"{step}.*")]
            if names:
                _kill()
            time.sleep(0.0002)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
