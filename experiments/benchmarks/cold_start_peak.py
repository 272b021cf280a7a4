"""The peak of a process's resident pages. Read by the workers of cold_start.py."""

from __future__ import annotations

import re
from pathlib import Path


def peak_mb() -> float:
    """Megabytes (10^6), file pages included.

    Not getrusage: its peak is that of the process that started this one, carried over by exec.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    if found is None:
        raise SystemExit("/proc/self/status has no VmHWM; memory is measured on Linux only")
    return round(int(found[1]) * 1024 / 1e6, 1)
