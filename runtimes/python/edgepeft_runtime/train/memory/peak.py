"""The peak memory of this process."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory() -> int:
    """Return the largest resident set of this process so far, in bytes; 0 where the system does not report it."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: ru_maxrss would count the parent's memory too, as a fork has it until it runs
        lines = status.read_text(encoding="ascii").splitlines()
        return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
