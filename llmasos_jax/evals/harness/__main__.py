"""The command line of lm-eval, with the model `llmasos`."""

from __future__ import annotations

import sys

from llmasos_jax.errors import LLMasOSError
from llmasos_jax.evals.harness import register


def main() -> int:
    """Runs it; returns the exit status."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except LLMasOSError as error:
        print(f"llmasos: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
