"""Describe the machine of a result: processor, instruction sets and versions, but no host names."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "onnxruntime", "onnx", "peft", "transformers", "numpy")
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Instructions that determine the speed of integer matmuls."""


def cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def describe() -> dict[str, Any]:
    """Processor, cores, instruction sets, memory in GB."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    values = {name.strip(): value.strip() for name, value in fields.items()}
    flags = set(values.get("flags", values.get("Features", "")).split())
    return {
        "processor": values.get("model name", platform.machine()),
        "architecture": platform.machine(),
        "cores": cores(),
        "instructions": [name for name in FEATURES if name in flags],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }


OTHERS = {"ort-training": "onnxruntime-training-cpu", "onnxsim": "onnxsim", "executorch": "executorch"}
"""Packages that are measured in an environment of their own, by its name."""


def versions(environments: Path | None = None) -> dict[str, str]:
    """Versions of Python, of the libraries, and of what folders ``.venv-*`` in ``environments`` contain."""
    found = {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}
    if environments is None:
        return found
    for name, package in OTHERS.items():
        python = environments / f".venv-{name}/bin/python"
        if python.exists():
            code = f"import importlib.metadata as m; print(m.version({package!r}))"
            found[package] = subprocess.run(
                [python, "-c", code], capture_output=True, text=True, check=True
            ).stdout.strip()
    return found
