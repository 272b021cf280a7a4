"""How often a loop turns, from the text: where its counter starts, what it adds, where it ends.

A scan counts by one. The loops that the compiler makes of a product and a gather of one of its
sides (Wang et al., 2023, "Overlap Communication with Dependent Computation via Decomposition")
count by two, as each turn sends one part each way around the ring: there the bound alone is twice
the turns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmasos_jax.plan.hlo.text import Line

_SAME = frozenset(("copy", "bitcast", "convert", "reshape", "opt-barrier", "optimization-barrier"))
_TURNED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE", "NE": "NE"}


@dataclass(frozen=True)
class Scope:
    """A computation, and what is known of the tuple that it is given.

    Attributes:
      lines: by name.
      given: integers of the tuple, by their place in it.
    """

    lines: Mapping[str, Line]
    given: Mapping[int, int] = field(default_factory=dict)

    def integer(self, name: str) -> int | None:
        """What a scalar is, where it can be told."""
        line = self.origin(name)
        if line is None:
            return None
        if line.op == "constant":
            return int(line.arguments) if re.fullmatch(r"-?\d+", line.arguments) else None
        place = self.place(name)
        return None if place is None else self.given.get(place)

    def origin(self, name: str) -> Line | None:
        """The instruction behind copies and other names of one value."""
        line = self.lines.get(name)
        while line is not None and line.op in _SAME and line.operands:
            line = self.lines.get(line.operands[0])
        return line

    def place(self, name: str) -> int | None:
        """The place in the given tuple that a name stands for, if it does."""
        line = self.origin(name)
        if line is None or line.op != "get-tuple-element":
            return None
        whole = self.origin(line.operands[0])
        found = re.search(r"index=(\d+)", line.attributes)
        return int(found[1]) if found and whole is not None and whole.op == "parameter" else None

    def of(self, name: str) -> tuple[str, ...]:
        """The names of a tuple's parts; empty where it is not made here."""
        line = self.origin(name)
        return line.operands if line is not None and line.op == "tuple" else ()


def turns(
    line: Line, caller: Scope, computations: Mapping[str, Sequence[Line]]
) -> tuple[int | None, Scope]:
    """How often a `while` turns, and its body.

    Args:
      line: the instruction.
      caller: where it stands.
      computations: of the program.

    Returns:
      The turns, None where the text does not tell; and the body, with those integers of its tuple
      that are known and that no turn changes.

    Example:
      >>> from llmasos_jax.plan.hlo.text import parse
      >>> text = '''
      ... %cond (p: (s32[])) -> pred[] {
      ...   %p = (s32[]) parameter(0)
      ...   %i = s32[] get-tuple-element(%p), index=0
      ...   %n = s32[] constant(8)
      ...   ROOT %r = pred[] compare(%i, %n), direction=LT
      ... }
      ... %body (q: (s32[])) -> (s32[]) {
      ...   %q = (s32[]) parameter(0)
      ...   %j = s32[] get-tuple-element(%q), index=0
      ...   %two = s32[] constant(2)
      ...   %k = s32[] add(%j, %two)
      ...   ROOT %t = (s32[]) tuple(%k)
      ... }
      ... ENTRY %main (x: s32[]) -> (s32[]) {
      ...   %zero = s32[] constant(0)
      ...   %init = (s32[]) tuple(%zero)
      ...   ROOT %w = (s32[]) while(%init), condition=%cond, body=%body
      ... }'''
      >>> computations, entry = parse(text)
      >>> lines = {line.name: line for line in computations[entry]}
      >>> turns(lines["w"], Scope(lines), computations)[0]
      4
    """
    body = _lines(line.called("body"), computations)
    plain = Scope(body)
    root = next((inner for inner in body.values() if inner.is_root), None)
    after = plain.of(root.name) if root is not None else ()
    before = caller.of(line.operands[0])
    first = {place: caller.integer(name) for place, name in enumerate(before)}
    given = {
        place: value
        for place, value in first.items()
        if value is not None and place < len(after) and plain.place(after[place]) == place
    }
    scope = Scope(body, given)
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', line.rest)
    if known:
        return int(known[1]), scope
    ending = _end(Scope(_lines(line.called("condition"), computations), given))
    if ending is None:
        return None, scope
    place, direction, end = ending
    start = first.get(place)
    step = _step(scope, after[place], place, computations) if place < len(after) else None
    if start is None or step is None:
        return None, scope
    return _count(start, step, end, direction), scope


def _lines(names: Sequence[str], computations: Mapping[str, Sequence[Line]]) -> Mapping[str, Line]:
    return {line.name: line for name in names for line in computations.get(name, ())}


def _end(condition: Scope) -> tuple[int, str, int] | None:
    """Of `counter < end`: the counter's place, the direction, and the end."""
    root = next((line for line in condition.lines.values() if line.is_root), None)
    if root is None or root.op != "compare":
        return None
    direction = re.search(r"direction=(\w\w)", root.attributes)
    if direction is None or direction[1] not in _TURNED:
        return None
    left, right = root.operands[:2]
    for counter, bound, way in (
        (left, right, direction[1]),
        (right, left, _TURNED[direction[1]]),
    ):
        place, end = condition.place(counter), condition.integer(bound)
        if place is not None and end is not None and place not in condition.given:
            return place, way, end
    return None


def _step(
    body: Scope, name: str, place: int, computations: Mapping[str, Sequence[Line]]
) -> int | None:
    """What one turn adds to the counter."""
    total = 0
    for _ in range(len(body.lines)):
        if body.place(name) == place:
            return total
        line = body.origin(name)
        if line is None or line.op not in ("add", "subtract", "fusion"):
            return None
        if line.op == "fusion":
            return _fused_step(body, line, place, total, computations)
        added = [body.integer(operand) for operand in line.operands]
        if len(added) != 2 or (added[0] is None) == (added[1] is None):
            return None
        known = added[1] if added[0] is None else added[0]
        name = line.operands[0] if added[0] is None else line.operands[1]
        if line.op == "subtract" and added[0] is not None:
            return None
        total += -(known or 0) if line.op == "subtract" else known or 0
    return None


def _fused_step(
    body: Scope, line: Line, place: int, total: int, computations: Mapping[str, Sequence[Line]]
) -> int | None:
    """The same where the sum is a fusion of its own."""
    inside = Scope(_lines(line.called("calls"), computations))
    root = next((inner for inner in inside.lines.values() if inner.is_root), None)
    if root is None or root.op != "add":
        return None
    for counter, other in (root.operands[:2], root.operands[1::-1]):
        taken, added = inside.origin(counter), inside.integer(other)
        if taken is None or taken.op != "parameter" or added is None:
            continue
        if body.place(line.operands[int(taken.arguments)]) == place:
            return total + added
    return None


def _count(start: int, step: int, end: int, direction: str) -> int | None:
    """Turns of `for (i = start; i direction end; i += step)`."""
    if direction in ("LE", "GE"):
        end += 1 if direction == "LE" else -1
    length = end - start
    if direction == "NE":
        return length // step if step and length % step == 0 and length * step >= 0 else None
    if direction in ("GT", "GE"):
        length, step = -length, -step
    if length <= 0:
        return 0
    return -(-length // step) if step > 0 else None
