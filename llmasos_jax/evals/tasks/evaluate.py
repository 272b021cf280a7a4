"""`llmasos.evaluate`: a model, a task, and what came out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llmasos_jax.evals.tasks.result import TaskResult
from llmasos_jax.evals.tasks.run import run_task
from llmasos_jax.evals.tasks.task import load_task
from llmasos_jax.generate.load import load_model
from llmasos_jax.generate.model import Model


def evaluate(
    model: Model | str | os.PathLike[str],
    task: Any,
    *,
    out: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
    fresh: bool = False,
) -> TaskResult:
    """Asks a model what a task asks, and scores what it answers.

    Args:
      model: a model, or what `load_model` reads.
      task: a .toml or .json file, the name of a task that comes with the package, or its keys as a
        dict (docs/evaluation.md).
      out: folder for the result and its examples, where the same call goes on if it was stopped;
        None keeps nothing.
      limit: examples at most, the first ones; None is all.
      seed: of sampling and of the intervals.
      fresh: whether to begin again where examples are there already.

    Returns:
      The figures with their intervals, and all that is needed to find them again.

    Raises:
      EvaluationError: there is no such task, or it does not fit the model.
      MissingExtraError: a metric or the data needs a package that is not installed.

    Example:
      >>> from llmasos_jax.config.model import ModelConfig
      >>> from llmasos_jax.format.manifest import Manifest
      >>> from llmasos_jax.generate.load import init_model
      >>> manifest = Manifest("m", ModelConfig(259, 64, 1), tokenizer={"kind": "bytes"})
      >>> result = evaluate(init_model(manifest), "addition", limit=2)
      >>> result.num_examples, result.metrics["exact_match_normalized"].value
      (2, 0.0)
    """
    asked = load_task(task)
    loaded = model if isinstance(model, Model) else load_model(model)
    folder = None if out is None else Path(out)
    return run_task(loaded, asked, out=folder, limit=limit, seed=seed, fresh=fresh)
