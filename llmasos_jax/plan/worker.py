"""The process that compiles: `python -m llmasos_jax.plan.worker OUT`, a request on standard input.

The compiler takes gigabytes and keeps them, writes on standard error, and may crash: so it has a
process of its own. OUT becomes a JSON object, with "figures" or an "error".
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from llmasos_jax.errors import LLMasOSError


def main() -> None:
    """Answers one request."""
    leave_with_parent(Path(sys.argv[1]).parent)
    request = json.load(sys.stdin)
    out = Path(sys.argv[1])
    try:
        answer = {"figures": _figures(request)}
    except LLMasOSError as error:
        answer = {"error": str(error), "kind": type(error).__name__}
    part = out.with_suffix(".part")
    part.write_text(json.dumps(answer), encoding="utf-8")
    part.replace(out)


def leave_with_parent(folder: Path) -> None:
    """Ends this process, and takes its folder away, when the one that asked is gone.

    Nobody would read the answer, and compiling takes gigabytes for minutes more.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _figures(request: dict[str, Any]) -> dict[str, Any]:
    import jax

    from llmasos_jax.config.build import from_dict
    from llmasos_jax.plan.chips import parse_topology
    from llmasos_jax.plan.compile import compile_figures
    from llmasos_jax.plan.figures import to_json

    # What is compiled for devices that are not here cannot be read back from JAX's cache.
    jax.config.update("jax_enable_compilation_cache", False)
    topology = parse_topology(request["topology"], request["slices"])
    return to_json(compile_figures(from_dict(request["config"]), topology, _say))


def _say(what: str) -> None:
    print(what, flush=True)


if __name__ == "__main__":
    main()
