"""The weights of a fine-tuning run: what it moves, what it leaves as it is, both as one model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import ConfigError
from llmasos_jax.models.adapters import is_adapter, merged
from llmasos_jax.models.definition import ModelDef, init_params
from llmasos_jax.nn.adapters import LORA, SCALES, dequantized, each, lengths_of_columns
from llmasos_jax.parallel.manual import Manual
from llmasos_jax.parallel.place import shardings
from llmasos_jax.train.trained import (
    HEADS,
    TEACHER,
    Path,
    is_trained,
    parted,
    together,
    without_teacher,
)
from llmasos_jax.train.weights import map_named
from llmasos_jax.types import Tree

if TYPE_CHECKING:
    from llmasos_jax.train.step import Trainer


class Pretrained(Protocol):
    """A model whose weights a fine-tuning run starts with."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its own."""
        ...

    @property
    def parameters(self) -> ModelConfig:
        """What it is."""
        ...

    @property
    def teacher(self) -> Pretrained | None:
        """The model that the run imitates, where it does."""
        ...

    def read(self, definition: ModelDef, abstract: Tree) -> tuple[Tree, list[str]]:
        """The weights at the leaves of `abstract`, in its dtypes and shardings.

        Returns:
          Those that the model has, and the paths ("classifier/w") of those that it has not.
        """
        ...


def abstract_frozen(trainer: Trainer) -> Tree:
    """Shapes, dtypes and shardings of the weights of its model that a run leaves as they are.

    Matrices are kept as products read them: in `precision.dtype`, or as codes.
    """
    return _abstract(trainer, trainer.definition, trainer.manual, is_trained(trainer.cfg))


def _abstract(
    trainer: Trainer, definition: ModelDef, manual: Manual, moved: Callable[[Path], bool]
) -> Tree:
    dtype = trainer.cfg.precision.dtype
    kept = jnp.dtype("float32" if dtype == "float16" else dtype)

    def abstract(leaf: Any, is_narrow: bool, where: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, kept if is_narrow else leaf.dtype, sharding=where)

    shapes, is_narrow, axes = (
        parted(tree, moved)[1]
        for tree in (definition.shapes, definition.is_narrow, definition.axes)
    )
    where = shardings(axes, trainer.mesh, manual.rules)
    return jax.tree.map(abstract, shapes, is_narrow, where)


def frozen_weights(trainer: Trainer, base: Pretrained) -> Tree:
    """The weights that a run leaves as they are, where its step wants them; the teacher's, too.

    Raises:
      ConfigError: the base does not have one of them.
    """
    found, missing = base.read(trainer.definition, abstract_frozen(trainer))
    if any(name.startswith("pooler/") for name in missing):
        raise ConfigError(
            f'the base has no pooler, and finetune.method="{trainer.cfg.finetune.method}" leaves '
            'the pooler as it is; set finetune.method="full" (or "head"), or model.pooler=False'
        )
    _refuse(missing)
    model, teacher = trainer.teacher, base.teacher
    if model is None or teacher is None:
        return found
    wanted = _abstract(trainer, model.definition, model.manual, lambda path: False)
    taught, missing = teacher.read(model.definition, wanted)
    _refuse(missing)
    return {**found, TEACHER: taught}


def moved_weights(trainer: Trainer, key: jax.Array, base: Pretrained, frozen: Tree) -> Tree:
    """What a new run starts to move: the base's weights, new adapters, a head the base has not.

    Args:
      trainer: of the run.
      key: typed PRNG key of what is new.
      base: the model.
      frozen: from `frozen_weights`.

    Raises:
      ConfigError: the base lacks a weight that is no head.
    """
    abstract = trainer.abstract_state.params
    _, wanted = parted(abstract, is_adapter)
    found, missing = base.read(trainer.definition, wanted)
    _refuse([name for name in missing if name.partition("/")[0] not in HEADS])
    new, _ = parted(abstract, lambda path: is_adapter(path) or "/".join(path) in missing)
    if not new:
        return found

    def make(key: jax.Array) -> Tree:
        drawn = init_params(trainer.definition, key, std=trainer.cfg.train.init_std)
        names = _names(new)
        return parted(drawn, lambda path: path in names)[0]

    where = jax.tree.map(lambda leaf: leaf.sharding, new)
    made = jax.jit(make, out_shardings=where)(jax.random.split(key)[0])
    if trainer.cfg.finetune.dora:
        definition = trainer.definition
        made = _with_magnitudes(made, frozen, definition.contractions, definition.leads)
    return together(found, made)


def whole_weights(trainer: Trainer, params: Tree, frozen: Tree) -> Tree:
    """All weights of the model, adapters merged, in the layout that is trained."""
    frozen = without_teacher(frozen)
    if not frozen:
        return params
    definition = trainer.definition
    how = (definition.adapters, definition.contractions, definition.leads)
    return jax.jit(lambda params, frozen: merged(together(params, frozen), *how))(params, frozen)


def _with_magnitudes(
    made: Tree, frozen: Tree, contractions: Tree, leads: Tree, *, is_stacked: bool = False
) -> Tree:
    """New adapters whose magnitudes are the lengths of the base's columns.

    Raises:
      ConfigError: a column has none.
    """
    result: Tree = {}
    for key, value in made.items():
        below = is_stacked or key == "periods"
        if key.endswith(LORA):
            name = key.removesuffix(LORA)
            num_in, scales = contractions[name], frozen.get(name + SCALES)

            def lengths(w: Any, s: Any, n: int = num_in) -> jax.Array:
                return lengths_of_columns(w if s is None else dequantized(w, s, n), n)

            found = each(lengths, below + leads[name])(frozen[name], scales)
            if bool((found == 0).any()):  # whose direction is 0 / 0, as in PEFT
                raise ConfigError(
                    f"finetune.dora=True gives each column of a weight a direction, and {name} has "
                    "columns of zeros in the base; leave it out of finetune.targets, or set "
                    "finetune.dora=False"
                )
            result[key] = value | {"magnitude": jax.device_put(found, value["magnitude"].sharding)}
        elif isinstance(value, dict):
            result[key] = _with_magnitudes(
                value, frozen.get(key, {}), contractions[key], leads[key], is_stacked=below
            )
        else:
            result[key] = value
    return result


def _names(tree: Tree) -> set[tuple[str, ...]]:
    names: set[tuple[str, ...]] = set()
    map_named(lambda path, _: names.add(path), tree)
    return names


def _refuse(missing: list[str]) -> None:
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ConfigError(
            f"the base has no {', '.join(missing[:5])}{more}; config.model may only add "
            f"{' and '.join(HEADS)} to it"
        )
