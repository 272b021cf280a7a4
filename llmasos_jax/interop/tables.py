"""A family's table of weight names: which tensors of other people's files are which of ours.

A table is written once for all layers and serves both ways: `bind` gives our tensors from theirs,
`unbind` theirs from ours. Every tensor has a place, or a stated reason to have none, or it is an
error that names it.
"""

from __future__ import annotations

import fnmatch
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import FormatError, did_you_mean
from llmasos_jax.format.names import expected
from llmasos_jax.format.strict import shown
from llmasos_jax.format.tensorfile import CODES, StoredTensor
from llmasos_jax.interop.rows import Arrangement

_LOG = logging.getLogger(__name__)
_SHOWN_PROBLEMS = 20
_MOST_NAME = 120  # characters
_MOST_PROBLEMS = 2000  # after which no more are looked for
_CHUNK = 2**24  # bytes that are compared at a time


@dataclass(frozen=True)
class Row:
    """A group of our tensors, and the group of theirs that holds the same numbers.

    Attributes:
      ours: names in our files; "{i}" stands for the layer. A row that names tensors which the model
        does not have (a bias, a tied head) is left out.
      theirs: names in theirs; "{i}" for the layer, "{e}" for the expert.
      arrangement: how the numbers lie in theirs.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    arrangement: Arrangement


@dataclass(frozen=True)
class Ignored:
    """Tensors of theirs that our model needs not.

    Attributes:
      pattern: regular expression of the whole name.
      reason: why nothing is lost.
      equals: name of the tensor whose bytes it must repeat, else it is an error.
      is_zero: whether it must be zero everywhere, else it is an error.
    """

    pattern: str
    reason: str
    equals: str | None = None
    is_zero: bool = False


@dataclass(frozen=True)
class Table:
    """Rows and what is ignored.

    Rows that name one of our tensors twice are alternatives: the first whose tensors are there
    counts.
    """

    rows: tuple[Row, ...]
    ignored: tuple[Ignored, ...] = ()


def row(ours: str, theirs: str, arrangement: Arrangement) -> Row:
    """A row; several names are separated by spaces.

    Example:
      >>> from llmasos_jax.interop.rows import PRODUCT
      >>> row("mlp.gate mlp.up", "gate_up.weight", PRODUCT).ours
      ('mlp.gate', 'mlp.up')
    """
    return Row(tuple(ours.split()), tuple(theirs.split()), arrangement)


def bind(
    table: Table,
    cfg: ModelConfig,
    theirs: Mapping[str, StoredTensor],
    where: str,
    *,
    ignore: Iterable[str] = (),
    spelled: Callable[[str], str] = str,
) -> dict[str, StoredTensor]:
    """Our tensors, each read from theirs when asked for.

    Args:
      table: of the family.
      cfg: the model.
      theirs: every tensor of their files, by name.
      where: what is read, for messages.
      ignore: names of theirs that the caller accepts to lose; "*" stands for anything.
      spelled: a name of theirs -> the same as the file has it, for messages and for `ignore`.

    Returns:
      Exactly the tensors of the model, in the order of the format.

    Raises:
      FormatError: naming each tensor that is missing, has no place, or has another shape or type.
    """
    _check_size(cfg, theirs, where)
    specs = expected(cfg)
    problems: list[str] = []
    bound: dict[str, StoredTensor] = {}
    used: set[str] = set()
    missing: dict[str, str] = {}
    for group in expanded(table.rows, cfg, theirs):
        used.update(group.theirs)
        absent = [name for name in group.theirs if name not in theirs]
        missing.update({spelled(n): f"missing, it holds {', '.join(group.ours)}" for n in absent})
        if not absent:
            problems += _misfits(group, cfg, theirs, spelled)
            bound.update(_read_group(group, cfg, theirs))
        if len(missing) + len(problems) > _MOST_PROBLEMS:
            # Another model's files, or a hostile one's: the rest would say nothing new.
            raise FormatError(
                _report(where, problems + _lines(missing, (), missing.__getitem__), " or more")
            )
    extra, more = _unused(table, theirs, used, tuple(ignore), spelled)
    problems += more
    problems += _lines(missing, extra, missing.__getitem__)
    problems += _lines(extra, missing, lambda name: f"{extra[name]} has no place in the model")
    unsaid = [name for name in specs if name not in bound and not missing]
    problems += [f"  {name}: no row of the table says where it is" for name in unsaid]
    if problems:
        raise FormatError(_report(where, problems))
    return {name: bound[name] for name in specs}


def _check_size(cfg: ModelConfig, theirs: Mapping[str, StoredTensor], where: str) -> None:
    """Refuses a config that asks for far more than is there, before its names are made."""
    num_layers = cfg.num_layers + cfg.encoder.num_layers
    if num_layers > len(theirs):
        raise FormatError(
            f"{where}: the config asks for {num_layers} layers, the files hold {len(theirs)} "
            "tensors; a part of the files is missing"
        )


def unbind(
    table: Table, cfg: ModelConfig, ours: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """Their tensors from ours: the inverse of `bind`. What `bind` ignores is not there.

    Args:
      table: of the family. Of alternative rows the first counts.
      cfg: the model.
      ours: exactly its tensors.
    """
    made: dict[str, StoredTensor] = {}
    for group in expanded(table.rows, cfg):
        tensors = [ours[name] for name in group.ours]
        shapes = group.arrangement.shapes([tensor.shape for tensor in tensors])
        for index, (name, shape) in enumerate(zip(group.theirs, shapes, strict=True)):
            read = partial(group.arrangement.give, index, tensors)
            made.setdefault(name, StoredTensor(shape, tensors[0].dtype, read))
    return made


def expanded(
    rows: Sequence[Row], cfg: ModelConfig, theirs: Collection[str] | None = None
) -> Iterator[Row]:
    """The rows of every layer that the model has, layer by layer, so that a reader may stop early.

    Each of our tensors is in one at most.
    """
    specs = expected(cfg)
    most_layers = max(cfg.num_layers, cfg.encoder.num_layers)
    mixtures = sum(cfg.has_experts(layer) for layer in range(cfg.num_layers))
    if theirs is not None and mixtures * cfg.experts.count > 2 * len(theirs):
        # Too few tensors for one of each expert; their names alone could fill the memory.
        rows = [written for written in rows if not any("{e}" in n for n in written.theirs)]
    for is_layered in (False, True):
        some = [written for written in rows if ("{i}" in written.ours[0]) == is_layered]
        for layer in range(most_layers if is_layered else 1):
            possible = [
                _of_layer(written, layer, cfg)
                for written in some
                if all(_in_layer(name, layer) in specs for name in written.ours)
            ]
            yield from _chosen(possible, theirs)


def _chosen(possible: Sequence[Row], theirs: Collection[str] | None) -> Iterator[Row]:
    """Of rows for the same tensors of ours, one.

    Rows whose tensors are there go before those whose are not, so that alternatives work.
    """
    claimed: set[str] = set()
    for is_first in (True, False):
        for single in possible:
            is_there = theirs is None or all(name in theirs for name in single.theirs)
            if (is_there or not is_first) and claimed.isdisjoint(single.ours):
                claimed.update(single.ours)
                yield single


def _in_layer(name: str, layer: int) -> str:
    return name.replace("{i}", str(layer))


def _of_layer(written: Row, layer: int, cfg: ModelConfig) -> Row:
    theirs = [
        name.replace("{e}", str(expert))
        for name in written.theirs
        for expert in (range(cfg.experts.count) if "{e}" in name else (0,))
    ]
    return Row(
        tuple(_in_layer(name, layer) for name in written.ours),
        tuple(_in_layer(name, layer) for name in theirs),
        written.arrangement,
    )


def _misfits(
    group: Row,
    cfg: ModelConfig,
    theirs: Mapping[str, StoredTensor],
    spelled: Callable[[str], str],
) -> list[str]:
    specs = expected(cfg)
    shapes = group.arrangement.shapes([specs[name].shape for name in group.ours])
    found = []
    for name, shape in zip(group.theirs, shapes, strict=True):
        tensor = theirs[name]
        if tensor.shape != shape:
            found.append(
                f"  {_shown(spelled(name))}: the file has {list(tensor.shape)}, the config "
                f"{list(shape)}"
            )
        elif tensor.dtype not in CODES:
            known = ", ".join(CODES)
            found.append(
                f"  {_shown(spelled(name))}: it is {tensor.dtype}; weights are read from {known}"
            )
    dtypes = {theirs[name].dtype for name in group.theirs}
    if len(dtypes) > 1:
        found.append(
            f"  {', '.join(group.ours)}: its tensors are of several types, {sorted(dtypes)}"
        )
    return found


def _read_group(
    group: Row, cfg: ModelConfig, theirs: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    specs = expected(cfg)
    shapes = [specs[name].shape for name in group.ours]
    sources = [theirs[name] for name in group.theirs]
    return {
        name: StoredTensor(
            shape,
            sources[0].dtype,
            partial(group.arrangement.take, index, sources, shapes),
        )
        for index, (name, shape) in enumerate(zip(group.ours, shapes, strict=True))
    }


def _unused(
    table: Table,
    theirs: Mapping[str, StoredTensor],
    used: set[str],
    ignore: Sequence[str],
    spelled: Callable[[str], str],
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Names that nothing accounts for, and what is wrong with those that are ignored."""
    rules = [(re.compile(rule.pattern), rule) for rule in table.ignored]
    extra: dict[str, StoredTensor] = {}
    problems = []
    for name, tensor in theirs.items():
        if name in used:
            continue
        said = spelled(name)
        if any(fnmatch.fnmatchcase(n, pattern) for pattern in ignore for n in (said, name)):
            _LOG.warning("%s is left out, as asked", _shown(said))
            continue
        rule = next((rule for pattern, rule in rules if pattern.fullmatch(name)), None)
        if rule is None:
            extra[said] = tensor
        elif rule.is_zero and tensor.read().any():
            problems.append(f"  {_shown(said)}: not zero, {rule.reason}")
        elif rule.equals is not None and not _is_equal(tensor, theirs.get(rule.equals)):
            problems.append(
                f"  {_shown(said)}: differs from {spelled(rule.equals)}, {rule.reason}; "
                f"ignore={said!r} takes the other one"
            )
    return extra, problems


def _is_equal(one: StoredTensor, other: StoredTensor | None) -> bool:
    if other is None or (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    a, b = (np.ascontiguousarray(t.read()).reshape(-1).view(np.uint8) for t in (one, other))
    return all(
        np.array_equal(a[i : i + _CHUNK], b[i : i + _CHUNK]) for i in range(0, len(a), _CHUNK)
    )


def _shown(name: str) -> str:
    """A name of theirs in a message; those of models for images are longer than other values."""
    return shown(name, _MOST_NAME)


def _lines(names: Iterable[str], others: Iterable[str], say: Callable[[str], str]) -> list[str]:
    few = [_shown(other) for other, _ in zip(others, range(200), strict=False)]
    lines = []
    for index, name in enumerate(names):
        # What nobody sees is not written: a hostile file must not choose how long that takes.
        if index >= _SHOWN_PROBLEMS:
            lines.append("")
            continue
        hint = did_you_mean(_shown(name), few) if few else ""
        near = hint if "did you mean" in hint else ""
        lines.append(f"  {_shown(name)}: {say(name)}{near}")
    return lines


def _report(where: str, problems: Sequence[str], more_than: str = "") -> str:
    more, count = len(problems) - _SHOWN_PROBLEMS, f"{len(problems)}{more_than}"
    lines = [*problems[:_SHOWN_PROBLEMS], *([f"  and {more} more"] if more > 0 else [])]
    return (
        f"{where}: its tensors are not those that its config asks for; correct either, or accept "
        f"to lose one with ignore=(name,) ({count} problems):\n" + "\n".join(lines)
    )
