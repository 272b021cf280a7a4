"""Compares two models place by place, then looks for what makes them agree."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llmasos_jax.errors import ConfigError, FormatError, GenerationError
from llmasos_jax.evals.parity.hypotheses import changes, config_differences
from llmasos_jax.evals.parity.probe import Probe, distance, length_for, make_probes
from llmasos_jax.evals.parity.reach import long_from, unreached
from llmasos_jax.evals.parity.report import Parity, PlaceDifference
from llmasos_jax.evals.parity.sides import (
    FINAL_NORM,
    LOGITS,
    Change,
    Leaves,
    OurSide,
    Side,
    Values,
    in_stack,
    places,
    read_leaves,
)
from llmasos_jax.evals.parity.theirs import TransformersSide
from llmasos_jax.evals.parity.weights import LeafDifference, compare_weights
from llmasos_jax.hub.open import open_model

Source = str | os.PathLike[str]
TRANSFORMERS = "transformers:"
# Of the largest number at a place. Two models whose weights are stored in different types cannot
# be nearer than the narrower of them rounds.
TOLERANCES = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2}
# Of the tolerance: what is nearer than this is rounding.
_ROUNDING = 0.1
# By what it is, what each part of a block ends in.
_ENDS = {
    "attention": ("attn.o", "attn.o_bias"),
    "cross-attention": ("cross_attn.o", "cross_attn.o_bias"),
    "mlp": ("mlp.down", "mlp.down_bias", "moe.down", "moe.shared.down"),
}


@dataclass(frozen=True)
class _Apart:
    """The first place that differs, with what stood before it and what stands there."""

    place: str
    before: Values
    there: Values  # in the first model; nothing where only one of them has the place
    only: str | None = None  # "first" or "second": the model that alone has the place


def compare(
    a: Source,
    b: Source,
    *,
    tokens: int | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    allow_code: bool = False,
    ignore: Sequence[str] = (),
    tick: Callable[[str], None] = lambda _: None,
) -> Parity:
    """Compares two models. Memory is a layer of each, and the activations of one place.

    Args:
      a: what `load_model` reads, or "transformers:FOLDER" for a Hugging Face folder run by
        transformers and torch.
      b: the same; what is found is said of `b`, seen from `a`.
      tokens: in the longest row; None goes past every window, up to 1024.
      tolerance: share of the largest number; None is 1e-4, more where the stored types differ.
      seed: of the random ids.
      allow_code: as in `load_model`, for both.
      ignore: as in `load_model`, for both.
      tick: told what is being done.

    Raises:
      FormatError: one of them is no model.
      MissingExtraError: "transformers:" without torch and transformers.
      GenerationError: an argument is out of range.
    """
    _check_arguments(tolerance, seed)
    one, two = (_open(source, allow_code, ignore) for source in (a, b))
    tick("weights")
    weights: list[LeafDifference] = []
    if one.files is not None and two.files is not None:
        weights = list(compare_weights(one.files, two.files, tick))
    length = length_for((one.config, two.config), tokens)
    found = Parity(
        a=one.title,
        b=two.title,
        same=False,
        tolerance=tolerance if tolerance is not None else _tolerance(one, two),
        places=(),
        options=tuple(config_differences(one.config, two.config)),
        weights=tuple(weights),
        notes=_notes(one, two, length),
    )
    if (misfit := _misfit(one, two)) is not None:
        note = "widths or depths differ, so no activations were compared"
        return dataclasses.replace(found, first=misfit, notes=(*found.notes, note))
    probes = _probes(one, two, weights, length, seed)
    found = _compare_places(one, two, found, probes, tick)
    if not found.same:
        return found
    missed = tuple(unreached(one, two, found.options, weights, length))
    return dataclasses.replace(found, same=not missed, unreached=missed)


def _check_arguments(tolerance: float | None, seed: int) -> None:
    if tolerance is not None and not 0 < tolerance < 1:
        raise GenerationError(f"tolerance={tolerance} is not possible; give a share, above 0")
    if seed < 0:
        raise GenerationError(f"seed={seed} is not possible; give 0 or more")


def _probes(
    one: Side, two: Side, weights: Sequence[LeafDifference], length: int, seed: int
) -> Sequence[Probe]:
    """Ids that both models know, those among them whose embeddings differ."""
    vocab = min(one.vocab_size, two.vocab_size)
    also = _rows_that_differ(one, two, weights)
    types = min((0 if s.config is None else s.config.token_types) for s in (one, two))
    return make_probes(vocab, length, seed, (*one.avoid, *two.avoid), also, types)


def _compare_places(
    one: Side, two: Side, found: Parity, probes: Sequence[Probe], tick: Callable[[str], None]
) -> Parity:
    """What was found so far, with the places, and where they part with what explains it."""
    runs = _runs(one, two, probes)
    depths = one.num_layers, one.num_encoder_layers
    differences, apart = _walk(*runs, depths, probes, found.tolerance, tick)
    if apart is None:
        return dataclasses.replace(found, same=True, places=tuple(differences))
    if apart.only is not None:
        what = {FINAL_NORM: "final norm", LOGITS: "output layer"}[in_stack(apart.place)[0]]
        hint = f"{what}: only the {apart.only} model has one"
        return dataclasses.replace(found, places=tuple(differences), first=apart.place, hint=hint)
    tick(f"what makes {apart.place} agree")
    tried, explains_all = _explain(one, two, apart, probes, found.weights, found.tolerance, tick)
    return dataclasses.replace(
        found,
        places=tuple(differences),
        first=apart.place,
        parts=_inside(one, two, apart, probes),
        hint=None if tried is None else tried.hint,
        tried=None if tried is None else tried.what,
        explains_all=explains_all,
    )


def _runs(
    one: Side, two: Side, probes: Sequence[Probe], change: Change | None = None
) -> tuple[Iterator[tuple[str, Values]], Iterator[tuple[str, Values]]]:
    """Both models' places; a final norm that one of ours lacks is the identity there.

    Args:
      one: a model.
      two: the other.
      probes: the ids.
      change: of `two`, which must be ours then.
    """
    norms = False
    if isinstance(one, OurSide) and isinstance(two, OurSide):
        norms = one.has_final_norm() or two.has_final_norm(change)
    left = one.run(probes, norms=norms) if isinstance(one, OurSide) else one.run(probes)
    right = two.run(probes, change, norms=norms) if isinstance(two, OurSide) else two.run(probes)
    return left, right


def _open(source: Source, allow_code: bool, ignore: Sequence[str]) -> Side:
    text = os.fspath(source)
    if text.startswith(TRANSFORMERS):
        return TransformersSide(Path(text.removeprefix(TRANSFORMERS)))
    return OurSide(text, open_model(source, allow_code=allow_code, ignore=ignore))


def _tolerance(one: Side, two: Side) -> float:
    dtypes = [
        {tensor.dtype for tensor in side.files.tensors.values()}
        for side in (one, two)
        if side.files is not None
    ]
    if len(dtypes) < 2 or dtypes[0] == dtypes[1]:
        return TOLERANCES["float32"]  # both compute in float32 from what is stored
    return max(TOLERANCES[dtype] for dtype in dtypes[0] | dtypes[1])


def _notes(one: Side, two: Side, length: int) -> tuple[str, ...]:
    notes = []
    windows = [
        w for s in (one, two) if s.config for w in s.config.attention_windows if w is not None
    ]
    if windows and max(windows) >= length:
        notes.append(
            f"rows have {length} tokens, the window {max(windows)}: what it hides was not compared "
            f"(--tokens={max(windows) + 24})"
        )
    configs = [s.config for s in (one, two) if s.config]
    if (begin := long_from(configs)) >= length:
        notes.append(
            f"rows have {length} tokens: LongRoPE's long factors, past {begin}, were not compared"
        )
    contexts = {cfg.context_length for cfg in configs}
    if len(contexts) > 1 and min(contexts) <= length:
        notes.append(f"rows have {length} tokens: one of the models takes no more")
    if any(cfg.position == "learned" and cfg.context_length > length for cfg in configs):
        notes.append(f"rows have {length} tokens: learned positions past them were not run")
    if one.vocab_size != two.vocab_size:
        sizes = sorted((one.vocab_size, two.vocab_size))
        notes.append(f"vocabularies of {sizes[0]} and {sizes[1]}: ids below {sizes[0]} were run")
    for side in (one, two):
        if side.files is None:
            notes.append(f"{side.title}: weights and options are not readable as ours")
    return tuple(notes)


def _misfit(one: Side, two: Side) -> str | None:
    if one.num_layers != two.num_layers:
        return f"the number of layers ({one.num_layers} and {two.num_layers})"
    encoders = one.num_encoder_layers, two.num_encoder_layers
    if encoders[0] != encoders[1]:
        return f"the number of the encoder's layers ({encoders[0]} and {encoders[1]})"
    a, b = one.config, two.config
    if a is not None and b is not None and a.embedding_dim != b.embedding_dim:
        return f"the width ({a.embedding_dim} and {b.embedding_dim})"
    return None


def _rows_that_differ(one: Side, two: Side, weights: Sequence[LeafDifference]) -> list[int]:
    """Ids whose embeddings differ: random ones might not meet them."""
    if one.files is None or two.files is None or all(w.name != "embed.table" for w in weights):
        return []
    x, y = (read_leaves(side.files.tensors, "embed")["table"] for side in (one, two) if side.files)
    rows = min(len(x), len(y))
    differ = np.abs(x[:rows] - y[:rows]).max(axis=1)
    return np.argsort(-differ, kind="stable")[: int((differ > 0).sum())].tolist()


def _walk(
    a: Iterator[tuple[str, Values]],
    b: Iterator[tuple[str, Values]],
    depths: tuple[int, int],
    probes: Sequence[Probe],
    tolerance: float,
    tick: Callable[[str], None],
) -> tuple[list[PlaceDifference], _Apart | None]:
    """Runs both models side by side; a hidden place that one does not show is passed over.

    Models part where the difference that leads past the tolerance begins to stand out of rounding,
    or where only one of them has a final norm or an output layer. A final norm that transformers
    does not show is none that it lacks if the logits agree after it.
    """
    rank = {place: i for i, place in enumerate(places(*depths))}
    end = ("", [])
    rank[""] = len(rank)
    found, apart, before = [], None, []
    alone: _Apart | None = None
    is_past = False
    (place_a, x), (place_b, y) = next(a), next(b)
    while place_a or place_b:
        if place_a != place_b:
            first = rank[place_a] < rank[place_b]
            place = place_a if first else place_b
            if in_stack(place)[0] in (FINAL_NORM, LOGITS) and alone is None:
                alone = _Apart(place, [], [], "first" if first else "second")
            if first:
                place_a, x = next(a, end)
            else:
                place_b, y = next(b, end)
            continue
        tick(place_a)
        if place_a == LOGITS:  # rows that pad a vocabulary are no difference
            x, y = _as_wide(x, y), _as_wide(y, x)
            alone = None
        relative = distance(x, y, probes)
        found.append(PlaceDifference(place_a, relative))
        if not is_past:
            if relative <= tolerance * _ROUNDING:
                apart = None
            elif apart is None:
                apart = _Apart(place_a, before, x)
            is_past = not relative <= tolerance
        before = [] if is_past else x
        (place_a, x), (place_b, y) = next(a, end), next(b, end)
    if alone is not None:
        found.append(PlaceDifference(alone.place, float("inf")))
    return found, apart if is_past else alone


def _as_wide(x: Values, other: Values) -> Values:
    return [z[..., : min(z.shape[-1], w.shape[-1])] for z, w in zip(x, other, strict=True)]


def _inside(
    one: Side, two: Side, apart: _Apart, probes: Sequence[Probe]
) -> tuple[PlaceDifference, ...]:
    """Which part of a block differs: each alone, the others silenced, on the same input."""
    if not isinstance(one, OurSide) or not isinstance(two, OurSide):
        return ()
    inner, stem = in_stack(apart.place)
    if not inner.startswith("layer "):
        return ()
    has_cross = bool(one.num_encoder_layers) and not stem

    def without(names: tuple[str, ...]) -> Change:
        def edit(_: str, leaves: Leaves) -> Leaves:
            return {n: np.zeros_like(x) if n in names else x for n, x in leaves.items()}

        return Change("", "", None, edit)

    found = []
    for name in _ENDS if has_cross else ("attention", "mlp"):
        change = without(tuple(n for other, ends in _ENDS.items() if other != name for n in ends))
        x = one.at(apart.place, apart.before, probes, change)
        y = two.at(apart.place, apart.before, probes, change)
        found.append(PlaceDifference(name, distance(x, y, probes)))
    return tuple(found)


def _explain(
    one: Side,
    two: Side,
    apart: _Apart,
    probes: Sequence[Probe],
    weights: Sequence[LeafDifference],
    tolerance: float,
    tick: Callable[[str], None],
) -> tuple[Change | None, bool | None]:
    """The change of one of our models that makes the first place agree, and whether all do then."""
    changed, other = (two, one) if isinstance(two, OurSide) else (one, two)
    if not isinstance(changed, OurSide) or changed.config is None:
        return None, None
    target = apart.there
    if changed is one:  # the other's values there, which the walk did not keep
        target = next(values for place, values in two.run(probes) if place == apart.place)
    files = other.files
    reader = None if files is None else lambda part: read_leaves(files.tensors, part)
    unchanged = changed.at(apart.place, apart.before, probes)
    enough = min(tolerance, 0.3 * distance(target, unchanged, probes))
    for change in changes(apart.place, changed.config, other.config, weights, reader):
        tick(change.what)
        try:
            values = changed.at(apart.place, apart.before, probes, change)
        except (KeyError, ConfigError, FormatError, ValueError, TypeError):
            continue  # the change wants weights of another shape: not this one
        if not distance(target, _as_wide(values, target), probes) <= enough:
            continue
        return change, _agrees(other, changed, change, probes, tolerance, tick)
    return None, None


def _agrees(
    other: Side,
    changed: OurSide,
    change: Change,
    probes: Sequence[Probe],
    tolerance: float,
    tick: Callable[[str], None],
) -> bool:
    """Whether the whole models agree with the change."""
    try:
        runs = _runs(other, changed, probes, change)
        depths = changed.num_layers, changed.num_encoder_layers
        return _walk(*runs, depths, probes, tolerance, tick)[1] is None
    except (KeyError, ValueError, TypeError):
        return False  # it fits that place only
