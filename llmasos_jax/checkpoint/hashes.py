"""The part of a save that Orbax calls for the manifest: sums on each host, hashes at the end."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import future

from llmasos_jax.checkpoint import manifest, steps
from llmasos_jax.checkpoint.leaves import Leaf
from llmasos_jax.checkpoint.sums import added, own_pieces, sums_of_pieces


class HashesHandler(ocp.AsyncCheckpointHandler):
    """Adds up what each process holds while the arrays are written, then hashes the files.

    Each process writes its sums to a file; when all have written everything, process 0 adds them,
    hashes what is in the folder and writes the manifest. All of it runs beside the training steps.
    """

    def __init__(self) -> None:
        self._saving: tuple[Path, SaveHashes] | None = None

    async def async_save(self, directory: Path, args: SaveHashes) -> list[Any]:
        """Takes hold of the numbers; what is returned works in the background."""
        pieces = own_pieces(args.arrays)
        self._saving = (Path(directory).parent, args)
        path = Path(directory) / f"sums-{jax.process_index()}.json"

        async def add() -> None:
            # One thread: the other cores are the training's.
            found = sums_of_pieces(pieces, threads=1)
            pieces.clear()
            path.write_text(json.dumps({name: str(value) for name, value in found.items()}))

        return [future.CommitFutureAwaitingContractedSignals(add(), name="sums")]

    def save(self, directory: Path, args: SaveHashes) -> None:
        """Orbax asks for this method; no save of ours waits."""
        raise NotImplementedError("manifests are written by asynchronous saves")

    def restore(self, directory: Path, args: Any = None) -> Any:
        """Orbax asks for this method; see `manifest.read`."""
        raise NotImplementedError("manifests are read by `manifest.read`")

    def write(self) -> None:
        """Writes the manifest of the save under way; called in process 0 when all is on disk."""
        if self._saving is None:
            return
        (folder, save), self._saving = self._saving, None
        parts = sorted((folder / steps.MANIFEST).glob("sums-*.json"))
        texts = [json.loads(part.read_text()) for part in parts]
        sums = added([{name: int(value) for name, value in text.items()} for text in texts])
        for part in parts:
            part.unlink()
        empty = dict.fromkeys(save.leaves, 0)  # leaves without numbers are in no file
        manifest.write(folder, save.step, save.leaves, empty | sums)


@ocp.args.register_with_handler(HashesHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class SaveHashes(ocp.args.CheckpointArgs):
    """What a manifest is written of.

    Attributes:
      step: of the run.
      arrays: that are saved, by name; typed keys as their data.
      leaves: what each leaf is, those without numbers too.
    """

    step: int
    arrays: Mapping[str, Any]
    leaves: Mapping[str, Leaf]
