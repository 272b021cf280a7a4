"""lm-evaluation-harness with our models: `python -m llmasos_jax.evals.harness --model llmasos ...`.

lm-eval looks its models up in a table and loads no plugins, so a program has to put ours there
before it starts; `__main__.py` does that and then is lm-eval's own command line.
"""

from __future__ import annotations

from llmasos_jax.errors import MissingExtraError

NAME = "llmasos"


def register() -> None:
    """Makes `llmasos` a model of lm-eval in this process.

    Raises:
      MissingExtraError: lm-eval is not installed.

    Example:
      >>> register()  # doctest: +SKIP
      >>> lm_eval.simple_evaluate("llmasos", model_args="pretrained=...")  # doctest: +SKIP
    """
    try:
        from lm_eval.api.registry import model_registry, register_model
    except ImportError as error:
        raise MissingExtraError(
            f"lm-evaluation-harness is not installed ({error}); pip install 'llmasos-jax[harness]'"
        ) from error
    if NAME not in model_registry:
        from llmasos_jax.evals.harness.model import LLMasOSLM

        register_model(NAME)(LLMasOSLM)
