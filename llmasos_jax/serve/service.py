"""What a server serves: one model that writes, one that embeds, or both."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from llmasos_jax.engine.engine import Engine
from llmasos_jax.engine.replicas import Replicas
from llmasos_jax.generate.model import Model
from llmasos_jax.serve.failures import RefusedError
from llmasos_jax.serve.metrics import Metrics
from llmasos_jax.serve.options import ServeOptions


class Service:
    """Models behind the routes.

    Args:
      engine: writes with the model that is served; None where it only embeds.
      embedder: an encoder, and its name; None embeds nothing.
      options: limits.

    Attributes:
      metrics: counts.
      is_draining: whether the server was told to stop.
    """

    def __init__(
        self,
        engine: Engine | Replicas | None,
        embedder: tuple[str, Model] | None,
        options: ServeOptions,
    ) -> None:
        self._engine, self._embedder, self.options = engine, embedder, options
        self.metrics = Metrics(None if engine is None else engine.stats)
        self.is_draining = False
        self._lock = threading.Lock()

    @property
    def writes(self) -> bool:
        """Whether it writes texts."""
        return self._engine is not None

    @property
    def embedders(self) -> list[str]:
        """Names of the models that embed."""
        return [] if self._embedder is None else [self._embedder[0]]

    @property
    def names(self) -> list[str]:
        """Names of all models."""
        writers = [self.options.model_name] if self.writes else []
        return list(dict.fromkeys([*writers, *self.embedders]))

    @property
    def engine(self) -> Engine | Replicas:
        """What writes."""
        if self._engine is None:
            raise RefusedError(404, "no model here writes texts", code="model_not_found")
        return self._engine

    @property
    def model(self) -> Model:
        """The model that writes."""
        return self.engine.model

    @property
    def context(self) -> int:
        """Tokens of a text at most, its prompt included."""
        return self.engine.sizes.context

    @property
    def status(self) -> str:
        """As `/health` tells it."""
        if self.is_draining:
            return "draining"
        return "ok" if self._engine is None or self._engine.is_open else "failed"

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""
        return self.model.decode(ids)

    def unknown(self, name: str) -> RefusedError:
        """What is said of a model that is not here."""
        served = ", ".join(self.names)
        return RefusedError(
            404,
            f'there is no model "{name[:80]}"; this server has {served}',
            param="model",
            code="model_not_found",
        )

    def require_model(self, name: str) -> None:
        """Raises RefusedError unless the model of this name writes, now."""
        self._require_open()
        if not self.writes or name != self.options.model_name:
            raise self.unknown(name)

    def require_embedder(self, name: str) -> None:
        """Raises RefusedError unless the model of this name embeds, now."""
        self._require_open()
        if name not in self.embedders:
            raise self.unknown(name)

    def embed(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """Vectors, float32 [B, D], and how many tokens were read."""
        if self._embedder is None:
            raise RefusedError(404, "no model here embeds texts", code="model_not_found")
        model = self._embedder[1]
        num_tokens = sum(len(model.encode(text)) for text in texts)
        with self._lock:  # one batch at a time: the cores are shared
            return np.asarray(model.embed(list(texts))), num_tokens

    def _require_open(self) -> None:
        if self.is_draining:
            raise RefusedError(503, "the server is being stopped", code="shutting_down")
