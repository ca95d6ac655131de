"""Describe the machine of a result: processor, instruction sets and versions, but no host names."""

from __future__ import annotations

import json
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


def versions(training_python: Path | None) -> dict[str, str]:
    """Versions of Python, of the libraries, and of onnxruntime-training if there is an environment with it."""
    found = {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}
    if training_python is not None and training_python.exists():
        code = "import importlib.metadata as m, json; print(json.dumps(m.version('onnxruntime-training-cpu')))"
        printed = subprocess.run([training_python, "-c", code], capture_output=True, text=True, check=True).stdout
        found["onnxruntime-training-cpu"] = json.loads(printed)
    return found
