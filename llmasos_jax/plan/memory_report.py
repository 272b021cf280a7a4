"""Reads what the compiler says where a program does not fit in memory."""

from __future__ import annotations

import re

from llmasos_jax.plan.figures import OutOfMemory
from llmasos_jax.plan.hlo.live import Buffer

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = r"([\d.]+)([KMGT]?)B?"


def read_out_of_memory(message: str) -> OutOfMemory | None:
    """Reads the compiler's error; None where it is about something else.

    Two forms are known: an early one, where what loops need is too much by itself, and a late one
    with a table of the largest allocations.

    Example:
      >>> found = read_out_of_memory(
      ...     "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
      ...     "temporaries (32.39G) exceeds available HBM (15.75G).")
      >>> round(found.needed / 2**30, 2), found.what
      (32.39, 'temporaries')
    """
    if "memory" not in message or "RESOURCE_EXHAUSTED" not in message:
        return None
    line = " ".join(message.split("\n\n")[0].split())[:300]
    early = re.search(rf"temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)", message)
    if early:
        needed, available = _bytes(*early.groups()[:2]), _bytes(*early.groups()[2:])
        return OutOfMemory(needed, available, "temporaries", (), line)
    late = re.search(rf"[Uu]sed {_SIZE} of {_SIZE} hbm", message)
    if late:
        needed, available = _bytes(*late.groups()[:2]), _bytes(*late.groups()[2:])
        return OutOfMemory(needed, available, "the program", _allocations(message), line)
    return None


def _allocations(message: str) -> tuple[Buffer, ...]:
    found = []
    for part in re.split(r"\n\s*\d+\. (?=Size:)", message)[1:]:
        size = re.match(rf"Size: {_SIZE}", part)
        shape = re.search(r"Shape: ([a-z]\w*\[[\d,]*\])", part)
        source = re.search(r'op_name="([^"]*)"', part) or re.search(r"XLA label: (\S+)", part)
        kind = re.search(r"Allocation type: ([^\n]+)", part)
        if size:
            found.append(
                Buffer(
                    _bytes(size[1], size[2]),
                    shape[1] if shape else "",
                    source[1] if source else "",
                    "temporary" if kind is None or "temp" in kind[1] else "argument",
                )
            )
    return tuple(found)


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])
