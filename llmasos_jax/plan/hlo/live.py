"""Arrays in HBM while most of it is in use, from the order in which the program runs.

The compiler keeps its own table of buffers to itself (`serialized_buffer_assignment_proto` is empty
for TPU). The text is scheduled, so who is alive when can be read off it: a buffer is there from the
instruction that makes it to the last one that uses it, names for it included; a loop works in the
buffers that it is given. The compiler may put two arrays into one place where this does not see it,
so the sum is an estimate. `memory_analysis` has the truth for the sum.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmasos_jax.plan.hlo.text import Line, parse

_NAMES = frozenset("tuple get-tuple-element bitcast while optimization-barrier opt-barrier".split())
_SMALLEST = 1 << 16


@dataclass(frozen=True)
class Buffer:
    """One array.

    Attributes:
      num_bytes: that it takes, padding included.
      shape: with its dtype, "bf16[4,2048,4096]".
      source: the JAX operation that made it; of an argument its name.
      kind: "argument", "result" (a loop's carry) or "temporary".
    """

    num_bytes: int
    shape: str
    source: str
    kind: str


def live_at_peak(text: str) -> tuple[Buffer, ...]:
    """The buffers at the moment with most bytes, largest first; the small ones are left out.

    Example:
      >>> lines = ["ENTRY %main (x: f32[65536]) -> f32[65536] {",
      ...          "  %x = f32[65536]{0} parameter(0)",
      ...          "  ROOT %y = f32[65536]{0} negate(%x)",
      ...          "}"]
      >>> [b.kind for b in live_at_peak(chr(10).join(lines))]
      ['argument', 'temporary']
    """
    computations, entry = parse(text)
    _, buffers = _peak(computations.get(entry, ()), computations, is_entry=True)
    return tuple(sorted(buffers, key=lambda b: -b.num_bytes))


def _peak(
    lines: Sequence[Line], computations: Mapping[str, Sequence[Line]], *, is_entry: bool
) -> tuple[int, list[Buffer]]:
    """Bytes and buffers at the fullest moment of a computation; what it is given is not counted."""
    held, made, last, inside = _lifetimes(lines, computations, is_entry)
    starts: dict[int, list[str]] = {}
    ends: dict[int, list[str]] = {}
    for name, place in made.items():
        starts.setdefault(0 if held[name].kind == "argument" else place, []).append(name)
        ends.setdefault(last.get(name, place), []).append(name)
    now, best, at = 0, -1, 0
    for place in range(len(lines)):
        now += sum(held[name].num_bytes for name in starts.get(place, ()))
        total = now + inside.get(place, (0, []))[0]
        if total > best:
            best, at = total, place
        now -= sum(held[name].num_bytes for name in ends.get(place, ()))
    alive = [
        held[name]
        for name, place in made.items()
        if (place <= at or held[name].kind == "argument") and last.get(name, place) >= at
    ]
    inner = inside.get(at, (0, []))[1]
    return max(best, 0), [b for b in alive if b.num_bytes >= _SMALLEST] + inner


def _lifetimes(
    lines: Sequence[Line], computations: Mapping[str, Sequence[Line]], is_entry: bool
) -> tuple[dict[str, Buffer], dict[str, int], dict[str, int], dict[int, tuple[int, list[Buffer]]]]:
    """Buffers by name, where each is made and last used, and what loops need at their place."""
    held: dict[str, Buffer] = {}
    made: dict[str, int] = {}
    last: dict[str, int] = {}
    inside: dict[int, tuple[int, list[Buffer]]] = {}
    # What each name stands for: one set of buffers for each array of its type.
    parts: dict[str, list[set[str]]] = {}
    for place, line in enumerate(lines):
        taken = [parts.get(name, []) for name in line.operands]
        for group in (group for part in taken for group in part):
            for name in group:
                last[name] = place
        if line.op == "while":
            inside[place] = _peak(
                computations.get(line.called("body")[0], ()), computations, is_entry=False
            )
        parts[line.name] = named = _stands_for(line, taken, is_entry, computations, last, place)
        for index, group in enumerate(named):
            if group == {key := f"{line.name}#{index}"}:
                kind = "argument" if line.op == "parameter" else "temporary"
                array = line.arrays[index]
                source = line.source or line.name
                held[key] = Buffer(array.padded_bytes, str(array), source, kind)
                made[key] = place
        if line.is_root:
            for name in (name for group in named for name in group):
                last[name] = len(lines)
    return held, made, last, inside


def _stands_for(
    line: Line,
    taken: Sequence[list[set[str]]],
    is_entry: bool,
    computations: Mapping[str, Sequence[Line]],
    last: Mapping[str, int],
    place: int,
) -> list[set[str]]:
    """The buffers behind each array that an instruction gives; a new one is `name#index`."""
    flat = [group for part in taken for group in part]
    count = len(line.arrays)
    if line.op == "get-tuple-element":
        index = re.search(r"index=(\d+)", line.attributes)
        whole = taken[0] if taken else []
        number = int(index[1]) if index else 0
        if count == 1 and number < len(whole):
            return [whole[number]]
        return [set().union(*whole)] * count
    if line.op in _NAMES and len(flat) == count:
        return flat
    if line.op.endswith("-done"):
        # Its start has made room for it: of the start's arrays, one looks like this.
        return [set().union(*flat) if flat else set()] * count
    if line.op in ("parameter", "constant") and not (line.op == "parameter" and is_entry):
        return [set() for _ in range(count)]
    if line.op in _NAMES:
        return [set().union(*flat)] * count
    new: list[set[str]] = []
    for index, array in enumerate(line.arrays):
        if array.space != 0 or (line.op.endswith("-start") and index != _result_of_start(line)):
            new.append(set())
            continue
        same = _updated_in_place(line, index, taken, computations)
        new.append({f"{line.name}#{index}"} if same is None else same)
    return new


def _result_of_start(line: Line) -> int:
    """Of the arrays of a `-start`, the one that is made: a copy's first, a gather's second."""
    return 0 if line.op == "copy-start" or len(line.arrays) < 2 else 1


def _updated_in_place(
    line: Line,
    index: int,
    taken: Sequence[list[set[str]]],
    computations: Mapping[str, Sequence[Line]],
) -> set[str] | None:
    """The buffer of which an instruction only writes a slot, for one array that it gives."""
    if line.op == "dynamic-update-slice":
        return taken[0][0] if taken and taken[0] else None
    if line.op != "fusion":
        return None
    body = computations.get((line.called("calls") or ("",))[0], ())
    named = {inner.name: inner for inner in body}
    update = next((inner for inner in body if inner.is_root), None)
    if update is not None and update.op == "tuple":
        update = named.get(update.operands[index])
    while update is not None and update.op in ("bitcast", "copy"):
        update = named.get(update.operands[0])
    if update is None or update.op != "dynamic-update-slice":
        return None
    target = named.get(update.operands[0])
    while target is not None and target.op == "bitcast":
        target = named.get(target.operands[0])
    if target is None or target.op != "parameter":
        return None
    group = taken[int(target.arguments)] if int(target.arguments) < len(taken) else []
    return group[0] if group else None
