"""The two sides of a comparison, each run part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.evals.parity.probe import SCORED, Probe
from llmasos_jax.format.names import flatten, unflatten
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.models import parts
from llmasos_jax.models.layout import ENCODER, encoder_config

Leaves = dict[str, np.ndarray]
Values = list[np.ndarray]  # one array for each probe
EMBEDDING, FINAL_NORM, LOGITS = "embedding", "final norm", "logits"
OF_ENCODER = "encoder "  # before the name of a place in the encoder of an encoder-decoder


def layer_place(layer: int) -> str:
    """What a place in a model is called: "layer 3"."""
    return f"layer {layer}"


def places(num_layers: int, num_encoder_layers: int = 0) -> list[str]:
    """Every place that is compared, in the order in which a model computes them.

    Example:
      >>> places(1, 1)[:4]
      ['encoder embedding', 'encoder layer 0', 'encoder final norm', 'embedding']
    """
    read = [EMBEDDING, *map(layer_place, range(num_encoder_layers)), FINAL_NORM]
    encoder = [OF_ENCODER + place for place in read] if num_encoder_layers else []
    return [*encoder, EMBEDDING, *map(layer_place, range(num_layers)), FINAL_NORM, LOGITS]


def in_stack(place: str) -> tuple[str, str]:
    """A place's name in its stack, and what the names of that stack's weights begin with.

    Example:
      >>> in_stack("encoder layer 2"), in_stack("logits")
      (('layer 2', 'encoder.'), ('logits', ''))
    """
    is_encoder = place.startswith(OF_ENCODER)
    return place.removeprefix(OF_ENCODER), f"{ENCODER}." if is_encoder else ""


class Side(Protocol):
    """A model that is compared.

    Attributes:
      title: for people.
      config: its parameters as ours; None if they cannot be read so.
      files: its weights as ours; None if they cannot be read so.
      vocab_size: ids that it takes.
      num_layers: blocks; of an encoder-decoder, of its decoder.
      num_encoder_layers: blocks of the encoder of an encoder-decoder; elsewhere 0.
      avoid: ids that are not to be tried.
    """

    title: str
    config: ModelConfig | None
    files: ModelFiles | None
    vocab_size: int
    num_layers: int
    num_encoder_layers: int
    avoid: tuple[int, ...]

    def run(self, probes: Sequence[Probe]) -> Iterator[tuple[str, Values]]:
        """Yields what stands at each place, in order; a place may be left out."""
        ...


@dataclass(frozen=True)
class Change:
    """Something that is tried on one of our models.

    Attributes:
      what: what is changed, for people.
      hint: what that would mean.
      config: the parameters to run with; None keeps them.
      edit: changes the weights of a part, given its name and leaves; None keeps them.
    """

    what: str
    hint: str
    config: ModelConfig | None = None
    edit: Callable[[str, Leaves], Leaves] | None = None


class OurSide:
    """A model that this package computes, its weights read one part at a time.

    The decoder of an encoder-decoder reads the ids that its encoder reads.
    """

    def __init__(self, title: str, files: ModelFiles) -> None:
        self.title = title
        self.files: ModelFiles | None = files
        self.config: ModelConfig | None = files.manifest.parameters
        self.vocab_size = files.manifest.parameters.vocab_size
        self.num_layers = files.manifest.parameters.num_layers
        self.num_encoder_layers = files.manifest.parameters.encoder.num_layers
        self.avoid: tuple[int, ...] = ()
        self._files = files
        self._encoded: Values = []  # of the latest run: what decoder blocks read beside `before`

    def run(
        self, probes: Sequence[Probe], change: Change | None = None, *, norms: bool = False
    ) -> Iterator[tuple[str, Values]]:
        """Yields what stands at each place, in order; with `norms` a final norm that is not there.

        Such a norm changes nothing: what stands there is what stood before it.
        """
        values: Values = []
        cfg = (change and change.config) or self._files.manifest.parameters
        norms = norms or cfg.final_norm
        for place in places(self.num_layers, self.num_encoder_layers):
            inner, stem = in_stack(place)
            if (inner == FINAL_NORM and not norms) or (place == LOGITS and not cfg.head):
                continue
            out = self.at(place, values, probes, change)
            if stem:
                self._encoded = out
            yield place, out
            values = out

    def has_final_norm(self, change: Change | None = None) -> bool:
        """Whether a norm follows the last block, with the change."""
        return ((change and change.config) or self._files.manifest.parameters).final_norm

    def at(
        self, place: str, before: Values, probes: Sequence[Probe], change: Change | None = None
    ) -> Values:
        """What stands at a place, given what stands at the place before it.

        Raises:
          KeyError: the change asks for weights that are not there.
        """
        cfg = (change and change.config) or self._files.manifest.parameters
        inner, stem = in_stack(place)
        if inner == EMBEDDING:
            params = self._params(cfg, "embed", change)
            run = [parts.embed(cfg, params, p.tokens_bt, p.mask_bt, p.types_bt) for p in probes]
        elif inner == FINAL_NORM:
            params = self._params(cfg, f"{stem}final_norm", change)
            run = [parts.final_norm(cfg, params, x) for x in before]
        elif place == LOGITS:
            names = ("embed", "head") if parts.shapes(cfg, "head") else ("embed",)
            both = {name: self._params(cfg, name, change) for name in names}
            run = [parts.logits(cfg, both, x[:, -SCORED:]) for x in before]
        else:
            layer = int(inner.removeprefix("layer "))
            params = {"layer": self._params(cfg, f"{stem}layers.{layer}", change)}
            if cfg.position == "relative":
                params["relative"] = self._params(cfg, f"{stem}relative", change)
            run = self._blocks(cfg, place, layer, params, before, probes)
        return [np.asarray(x) for x in run]

    def _blocks(
        self,
        cfg: ModelConfig,
        place: str,
        layer: int,
        params: Mapping[str, Any],
        before: Values,
        probes: Sequence[Probe],
    ) -> list[Any]:
        """What a block gives for each probe."""
        is_encoder = bool(in_stack(place)[1])
        if not self.num_encoder_layers or is_encoder:
            stack = encoder_config(cfg) if is_encoder else cfg
            pairs = zip(before, probes, strict=True)
            return [parts.block(stack, layer, params, x, p.mask_bt) for x, p in pairs]
        return [
            parts.block(cfg, layer, params, x, p.mask_bt, (states, p.mask_bt))
            for x, p, states in zip(before, probes, self._encoded, strict=True)
        ]

    def leaves(self, part: str) -> Leaves:
        """The weights of a part ("embed", "layers.3", ...), float32, by their names in it."""
        return read_leaves(self._files.tensors, part)

    def _params(self, cfg: ModelConfig, part: str, change: Change | None) -> Any:
        leaves = self.leaves(part)
        if change is not None and change.edit is not None:
            leaves = change.edit(part, leaves)
        wanted = flatten(parts.shapes(cfg, part))
        for name, shape in wanted.items():
            if name not in leaves or leaves[name].shape != shape.shape:
                raise KeyError(f"{part}.{name}")
        return jax.device_put(unflatten({name: leaves[name] for name in wanted}))


def read_leaves(tensors: Mapping[str, Any], part: str) -> Leaves:
    """The tensors of a part, float32, by their names in it."""
    stem = f"{part}."
    return {
        name.removeprefix(stem): np.asarray(tensor.read()).astype(np.float32)
        for name, tensor in tensors.items()
        if name.startswith(stem)
    }
