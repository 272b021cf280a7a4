"""Metrics, tasks and comparisons.

Importing this imports neither JAX nor what computes a metric: a name is looked up when first used.

Example:
  >>> from llmasos_jax import evals
  >>> evals.accuracy(["a", "b"], ["a", "a"])
  0.5
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmasos_jax.evals.metrics.intervals import bootstrap, paired_bootstrap, permutation
    from llmasos_jax.evals.metrics.labels import accuracy, calibration_error, exact_match, f1
    from llmasos_jax.evals.metrics.perplexity import perplexity
    from llmasos_jax.evals.metrics.summaries import rouge
    from llmasos_jax.evals.metrics.texts import bleu, chrf

__all__ = [
    "accuracy",
    "bleu",
    "bootstrap",
    "calibration_error",
    "chrf",
    "exact_match",
    "f1",
    "paired_bootstrap",
    "permutation",
    "perplexity",
    "rouge",
]

# Where each public name lives; a test holds this table, `__all__` and the imports above together.
_HOMES = {
    "accuracy": "metrics.labels",
    "bleu": "metrics.texts",
    "bootstrap": "metrics.intervals",
    "calibration_error": "metrics.labels",
    "chrf": "metrics.texts",
    "exact_match": "metrics.labels",
    "f1": "metrics.labels",
    "paired_bootstrap": "metrics.intervals",
    "permutation": "metrics.intervals",
    "perplexity": "metrics.perplexity",
    "rouge": "metrics.summaries",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
