"""The tensors of a model: their names in files, shapes, axes, and places in a tree of parameters.

file                tree of the unrolled layout         tree of a training run
embed.table         embed / table                       embed / table
layers.5.attn.q     prefix / 5 / attn / q               periods / 0 / attn / q, row 5

and the same below `encoder.` for the encoder of an encoder-decoder.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llmasos_jax.config.heads import Encoder
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ConfigError, FormatError, did_you_mean
from llmasos_jax.format.strict import shown
from llmasos_jax.format.tensorfile import StoredTensor
from llmasos_jax.models.definition import file_def
from llmasos_jax.models.layout import ENCODER, Layout, encoder_config

LAYERS = "layers"
_UNROLLED = "prefix"  # where the unrolled layout keeps its layers
_SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a model has.

    Attributes:
      shape: sizes of its axes.
      axes: logical name of each axis ("embed", "heads", ...; None: never split).
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]


@functools.lru_cache(maxsize=64)
def expected(cfg: ModelConfig) -> Mapping[str, TensorSpec]:
    """Every tensor of a model, by its name in files, in the order in which they are written.

    Raises:
      FormatError: the model names a part that is code and cannot be imported.

    Example:
      >>> specs = expected(ModelConfig(vocab_size=10, embedding_dim=64, num_layers=2))
      >>> list(specs)[:2], specs["layers.1.attn.q"].shape
      (['embed.table', 'layers.0.attn.k'], (64, 1, 64))
    """
    # One layer of each kind stands for all of it: windows have no weights, experts and norms have.
    kind_of = [(cfg.has_attn_norm(i), cfg.has_experts(i)) for i in range(cfg.num_layers)]
    kinds = sorted(set(kind_of))  # one without a norm is the first, as it is in the model
    definition = file_def(_with_layers(cfg, kinds))
    try:
        shapes, axes = flatten(definition.shapes), flatten(definition.axes)
    except ConfigError as error:  # a part that is code and cannot be found
        raise FormatError(str(error).replace("model.", "parameters.")) from error
    one = {name: TensorSpec(tuple(shapes[name].shape), tuple(axes[name])) for name in shapes}
    blocks: dict[tuple[bool, bool], dict[str, TensorSpec]] = {}
    for number, kind in enumerate(kinds):
        stem = f"{LAYERS}.{number}."
        blocks[kind] = {n.removeprefix(stem): s for n, s in one.items() if n.startswith(stem)}
    head = {name: spec for name, spec in one.items() if name.startswith("embed.")}
    encoder = _of_encoder(cfg)
    layers = {
        f"{LAYERS}.{i}.{name}": spec
        for i in range(cfg.num_layers)
        for name, spec in blocks[kind_of[i]].items()
    }
    not_tail = ("embed.", f"{LAYERS}.", f"{ENCODER}.")
    tail = {name: spec for name, spec in one.items() if not name.startswith(not_tail)}
    return MappingProxyType({**head, **encoder, **layers, **tail})


def _of_encoder(cfg: ModelConfig) -> dict[str, TensorSpec]:
    """The tensors of an encoder-decoder's encoder: those of a model, but for what is shared."""
    if not cfg.encoder.num_layers:
        return {}
    own = expected(encoder_config(cfg))
    return {f"{ENCODER}.{n}": spec for n, spec in own.items() if not n.startswith("embed.")}


def _with_layers(cfg: ModelConfig, kinds: list[tuple[bool, bool]]) -> ModelConfig:
    """The model with one layer for each of these: has it a norm before attention, and experts."""
    experts = cfg.experts
    if experts.count:
        dense = tuple(i for i, (_, has_experts) in enumerate(kinds) if not has_experts)
        experts = dataclasses.replace(experts, dense_layers=dense)
    encoder = Encoder(min(cfg.encoder.num_layers, 1))
    return cfg.replace(
        num_layers=len(kinds), encoder=encoder, attention_windows=(None,), experts=experts
    )


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Names the leaves of an unrolled tree of parameters as files do.

    Example:
      >>> flatten({"prefix": {"0": {"attn": {"q": 1}}}, "embed": {"table": 2}})
      {'layers.0.attn.q': 1, 'embed.table': 2}
    """
    named: dict[str, Any] = {}
    for key, node in tree.items():
        if key == ENCODER:
            named |= {f"{ENCODER}.{name}": leaf for name, leaf in flatten(node).items()}
        else:
            _flatten_into(named, LAYERS if key == _UNROLLED else key, node)
    return named


def _flatten_into(named: dict[str, Any], name: str, node: Any) -> None:
    if isinstance(node, Mapping):
        for key, below in node.items():
            _flatten_into(named, f"{name}.{key}", below)
    else:
        named[name] = node


def unflatten(named: Mapping[str, Any]) -> dict[str, Any]:
    """The unrolled tree whose leaves have these names: the inverse of `flatten`.

    Example:
      >>> unflatten({"layers.0.attn.q": 1})
      {'prefix': {'0': {'attn': {'q': 1}}}}
    """
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split(".")
        top = 1 if parents[:1] == [ENCODER] else 0
        if parents[top : top + 1] == [LAYERS]:
            parents[top] = _UNROLLED
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def place_of(name: str, layout: Layout) -> tuple[str, int | None]:
    """Where a file's tensor is in a tree of parameters: path with slashes, and row if stacked.

    Example:
      >>> place_of("layers.5.attn.q", Layout(prefix=0, period=2, count=3, suffix=0))
      ('periods/1/attn/q', 2)
    """
    parts = name.split(".")
    if parts[0] == ENCODER and layout.encoder is not None:
        path, row = place_of(".".join(parts[1:]), layout.encoder)
        return f"{ENCODER}/{path}", row
    if parts[0] != LAYERS:
        return "/".join(parts), None
    part, key, row = layout.place_of(int(parts[1]))
    return "/".join([part, str(key), *parts[2:]]), row


def check_tensors(cfg: ModelConfig, found: Mapping[str, StoredTensor], where: str) -> None:
    """Raises FormatError, naming each, unless `found` are exactly the tensors of the model."""
    wanted = expected(cfg)
    if wanted.keys() == found.keys() and all(found[n].shape == s.shape for n, s in wanted.items()):
        return
    problems = [
        f"  {name}: the file has {list(found[name].shape)}, the model {list(spec.shape)}"
        for name, spec in wanted.items()
        if name in found and found[name].shape != spec.shape
    ]
    extra = [name for name in found if name not in wanted]
    missing = [name for name in wanted if name not in found]
    problems += _lines(missing, extra, lambda n: f"missing, expected {list(wanted[n].shape)}")
    problems += _lines(extra, missing, lambda n: f"{found[n]} is not a tensor of the model")
    more = len(problems) - _SHOWN_PROBLEMS
    lines = problems[:_SHOWN_PROBLEMS] + ([f"  and {more} more"] if more > 0 else [])
    raise FormatError(
        f"{where}: these weights are not the model's that `parameters` describe; correct either "
        f"({len(problems)} tensors differ):\n" + "\n".join(lines)
    )


def _lines(names: list[str], others: list[str], say: Any) -> list[str]:
    few = others[:200]  # looking for near names takes time that a hostile file must not choose
    hints = (
        did_you_mean(n, few) if few and i < _SHOWN_PROBLEMS else "" for i, n in enumerate(names)
    )
    return [f"  {shown(n)}: {say(n)}{hint}" for n, hint in zip(names, hints, strict=True)]
