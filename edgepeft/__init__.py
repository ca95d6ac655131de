"""edgepeft: fine-tune a model on any device that runs stock ONNX Runtime, and bring back only the adapter."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgepeft.compress import Pruning
    from edgepeft.memory_budget import MemoryBudget
    from edgepeft.merging import merge
    from edgepeft.methods import BitFit, Freeze, Full, Head, Lora, Sift
    from edgepeft.picking import pick
    from edgepeft.preparation import Diagnosis, Prepared, doctor, prepare
    from edgepeft.sources import Source, load_source
    from edgepeft.sync import pull
    from edgepeft_export.quantize import Quantization

__version__ = "0.1.0"

# A device installs this package without torch: each name is imported when it is first asked for.
_HOME = {
    "BitFit": "edgepeft.methods",
    "Diagnosis": "edgepeft.preparation",
    "Freeze": "edgepeft.methods",
    "Full": "edgepeft.methods",
    "Head": "edgepeft.methods",
    "Lora": "edgepeft.methods",
    "MemoryBudget": "edgepeft.memory_budget",
    "Prepared": "edgepeft.preparation",
    "Pruning": "edgepeft.compress",
    "Quantization": "edgepeft_export.quantize",
    "Sift": "edgepeft.methods",
    "Source": "edgepeft.sources",
    "doctor": "edgepeft.preparation",
    "load_source": "edgepeft.sources",
    "merge": "edgepeft.merging",
    "pick": "edgepeft.picking",
    "prepare": "edgepeft.preparation",
    "pull": "edgepeft.sync",
}

__all__ = [
    "BitFit",
    "Diagnosis",
    "Freeze",
    "Full",
    "Head",
    "Lora",
    "MemoryBudget",
    "Prepared",
    "Pruning",
    "Quantization",
    "Sift",
    "Source",
    "doctor",
    "load_source",
    "merge",
    "pick",
    "prepare",
    "pull",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgepeft' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
