"""A model's parts: what it says of itself, its weights, its tokenizer, its adapters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import GenerationError
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.names import flatten
from llmasos_jax.generate.adapters import Adapted, check_name
from llmasos_jax.generate.forward import Forward
from llmasos_jax.generate.weights import Weights
from llmasos_jax.nn.adapters import SCALES


class Held:
    """What a model holds; `Reader` reads with it, `Model` writes with it."""

    def __init__(
        self,
        manifest: Manifest,
        weights: Weights,
        tokenizer: Tokenizer | None = None,
        adapters: Mapping[str, Adapted] = MappingProxyType({}),
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self._weights = weights
        self._adapted = adapters

    @property
    def config(self) -> ModelConfig:
        """The parameters of the model, frozen."""
        return self.manifest.parameters

    @property
    def adapters(self) -> tuple[str, ...]:
        """What `adapter=` may name: those that `load_model` put beside the weights."""
        return tuple(self._adapted)

    @property
    def num_parameters(self) -> int:
        """How many numbers the weights have, without adapters."""
        named = flatten(self._weights.params)
        return sum(leaf.size for name, leaf in named.items() if not name.endswith(SCALES))

    @property
    def weights(self) -> Weights:
        """The weights where and how they run, without adapters."""
        return self._weights

    def __repr__(self) -> str:
        cfg, count = self.config, self.num_parameters
        size = f"{count / 1e6:,.1f}M" if count >= 1e5 else f"{count:,}"
        beside = f", adapters {', '.join(self.adapters)}" if self.adapters else ""
        return (
            f'Model("{self.manifest.name}", {size} parameters, {cfg.num_layers} layers, width '
            f"{cfg.embedding_dim}, {cfg.vocab_size} tokens, context {cfg.context_length}, "
            f"{self._weights.where}{beside})"
        )

    def _require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise GenerationError(
                f'model "{self.manifest.name}" has no tokenizer, so it reads ids only (logits, '
                'hidden_states); add a "tokenizer" to its model.json'
            )
        return self.tokenizer

    def _chosen(self, adapter: str | None) -> Adapted | None:
        """One of the adapters; None for the model alone.

        Raises:
          GenerationError: there is none of this name.
        """
        name = check_name(adapter, self.adapters, f'model "{self.manifest.name}"')
        return None if name is None else self._adapted[name]

    def _forward_with(self, adapter: str | None) -> Forward:
        chosen = self._chosen(adapter)
        return self._forward if chosen is None else self._forward_beside.on(chosen.weights)

    @cached_property
    def _forward(self) -> Forward:
        return Forward(self._weights)

    @cached_property
    def _forward_beside(self) -> Forward:
        """The programs of all adapters, which have one structure."""
        return Forward(next(iter(self._adapted.values())).weights)
