"""Bytes that an instruction reads from HBM and writes to it: its operands and its results.

An estimate, and of each instruction a lower bound: a kernel may read an operand again, and padding
is left out. What is on the chip already (another memory space than 0) is not counted; a slice
reads what it gives, an update in place writes its slot, a gather reads its rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from llmasos_jax.plan.hlo.fused import SLICES, adds, fusion_bytes, in_hbm
from llmasos_jax.plan.hlo.text import Line

# They give names to what is there, or are counted where their work is.
FREE = frozenset(
    (
        "parameter constant tuple get-tuple-element bitcast while conditional call after-all "
        "partition-id replica-id optimization-barrier domain opt-barrier add-dependency iota "
        "async-start call-start async-update"
    ).split()
)
_FREE_CALLS = frozenset(
    (
        "AllocateBuffer ConcatBitcast AssumeGatherIndicesInBound AsyncCollectiveStart "
        "AsyncCollectiveDone PrepareAsyncCallStart PrepareAsyncCallDone"
    ).split()
)


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
    operands = [lines[name].arrays if name in lines else () for name in line.operands]
    if line.op == "fusion" and line.called("calls"):
        return fusion_bytes(line, operands, computations)
    if line.op == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', line.attributes)
        if target and target[1] in _FREE_CALLS:
            return 0
    read, given = [in_hbm(arrays) for arrays in operands], in_hbm(line.arrays)
    if line.op in SLICES or line.op == "gather":
        rows = sum(array.num_bytes for array in line.arrays)
        return (rows if read[0] else 0) + sum(read[1:]) + given
    if line.op in ("dynamic-update-slice", "scatter"):
        place = 1 if line.op == "dynamic-update-slice" else len(operands) - 1
        slot = sum(array.num_bytes for array in operands[place])
        times = 2 if adds(line, computations) else 1
        return sum(read[1:]) + (times * slot if given else 0)
    if line.op in ("slice-start", "dynamic-slice-start"):
        return _slice_start(line, read)
    if line.op.endswith("-start") and line.op != "all-reduce-start":
        # Its type repeats what it takes.
        return sum(read) + max(0, given - sum(read))
    return sum(read) + given


def _slice_start(line: Line, read: Sequence[int]) -> int:
    """Of a slice that is fetched while other work goes on: its type is (whole), slice, flag."""
    slices = [array for array in line.arrays[1:] if array.shape][:1]
    part = sum(array.num_bytes for array in slices)
    return (part if read[0] else 0) + sum(read[1:]) + in_hbm(slices)
