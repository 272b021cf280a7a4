"""Bytes that an instruction reads from HBM and writes to it: its operands and its results.

An estimate, and of each instruction a lower bound: a kernel may read an operand again. What is on
the chip already (another memory space than 0) is not counted, and of an operand that is only sliced
only the slices are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmasos_jax.plan.hlo.text import Array, Line

# They give names to what is there, or are counted where their work is.
FREE = frozenset(
    (
        "parameter constant tuple get-tuple-element bitcast while conditional call after-all "
        "partition-id replica-id optimization-barrier domain opt-barrier add-dependency iota"
    ).split()
)
_SLICES = ("dynamic-slice", "slice", "gather")
_RENAMES = ("bitcast", "get-tuple-element", "tuple", "copy")


def hbm_bytes(
    line: Line, lines: Mapping[str, Line], computations: Mapping[str, Sequence[Line]]
) -> int:
    """Bytes of one run of an instruction.

    Args:
      line: of a computation that is run as it stands, not inside of a fusion.
      lines: of that computation, by name.
      computations: of the program.
    """
    if line.op in FREE or line.op.endswith("-done"):
        return 0
    operands = [lines[name].arrays for name in line.operands if name in lines]
    if line.op == "dynamic-update-slice":
        return 2 * _in_hbm(operands[1]) if len(operands) > 1 else 0
    if line.op in _SLICES:
        return 2 * _in_hbm(line.arrays)
    if line.op.endswith("-start"):
        # Its type repeats what it takes.
        read, given = sum(map(_in_hbm, operands)), _in_hbm(line.arrays)
        return read + max(0, given - read)
    inner = line.called("calls")
    if line.op != "fusion" or not inner:
        return sum(map(_in_hbm, operands)) + _in_hbm(line.arrays)
    return _of_fusion(line, operands, computations.get(inner[0], ()))


def _of_fusion(line: Line, operands: Sequence[Sequence[Array]], body: Sequence[Line]) -> int:
    users: dict[str, list[Line]] = {}
    for inner in body:
        for name in inner.operands:
            users.setdefault(name, []).append(inner)
    parameters = {int(p.arguments): p.name for p in body if p.op == "parameter"}
    named = {inner.name: inner for inner in body}
    total = 0
    for index, arrays in enumerate(operands):
        whole = _in_hbm(arrays)
        if whole and index in parameters:
            whole = min(whole, _read(parameters[index], users))
        total += whole
    # Slots of a larger array that is updated in place: only they are written.
    updates = [inner for inner in body if inner.op == "dynamic-update-slice"]
    written = _in_hbm(line.arrays)
    for update in updates:
        slot = named.get(update.operands[1])
        if slot is not None and update.arrays[0].num_bytes <= written:
            written += slot.arrays[0].num_bytes - update.arrays[0].num_bytes
    return total + max(0, written)


def _read(name: str, users: Mapping[str, Sequence[Line]]) -> int:
    """Bytes read of a fusion's parameter: its slices, if it is only sliced; else no bound."""
    total = 0
    for user in users.get(name, ()):
        if user.op in _SLICES and user.operands[0] == name:
            total += sum(array.num_bytes for array in user.arrays)
        elif user.op == "dynamic-update-slice" and user.operands[0] == name:
            continue
        elif user.op in _RENAMES:
            total += _read(user.name, users) if user.name in users else 1 << 62
        else:
            return 1 << 62
    return total


def _in_hbm(arrays: Sequence[Array]) -> int:
    return sum(array.num_bytes for array in arrays if array.space == 0)
