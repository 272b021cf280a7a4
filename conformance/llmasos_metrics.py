"""This package as the command of `check_metrics.py`: REQUEST.json ANSWER.json."""

import json
import sys
from pathlib import Path

KIT = Path(__file__).resolve().parent
sys.path[:0] = [str(KIT.parent)]

from llmasos_jax import evals  # noqa: E402
from llmasos_jax.evals.sandbox.passk import pass_at_k  # noqa: E402


def answer(request: dict) -> dict:
    """The figures that a request asks for."""
    arguments = dict(request["arguments"])
    if request["metric"] == "perplexity":
        from llmasos_jax.generate.load import load_model

        # An absolute path stays what it is.
        arguments["model"] = load_model(KIT / "models" / arguments["model"])
    metric = pass_at_k if request["metric"] == "pass_at_k" else getattr(evals, request["metric"])
    found = metric(**arguments, **request["options"])
    if isinstance(found, dict):
        return found
    more = getattr(found, "details", {})
    return {"value": float(found), **{k: more[k] for k in ("per_byte", "per_word") if k in more}}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(answer(json.loads(Path(sys.argv[1]).read_text()))))
