"""A step folder as it was written before there were manifests."""

import json
import shutil
from pathlib import Path

from llmasos_jax.checkpoint import steps


def without_manifest(step_folder: Path) -> None:
    """Takes the manifest away, and the mark that there was one."""
    shutil.rmtree(step_folder / steps.MANIFEST)
    mark = step_folder / "_CHECKPOINT_METADATA"
    said = json.loads(mark.read_text())
    del said["item_handlers"][steps.MANIFEST]
    mark.write_text(json.dumps(said))
