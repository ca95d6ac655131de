"""edgepeft: fine-tune a model on any device that runs stock ONNX Runtime, and bring back only the adapter."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgepeft_runtime.version import VERSION

if TYPE_CHECKING:
    from edgepeft.aggregation import Aggregate, aggregate
    from edgepeft.compress import Pruning
    from edgepeft.merging import merge
    from edgepeft.methods import (
        IA3,
        Adapter,
        BitFit,
        Dora,
        Freeze,
        FrozenA,
        Full,
        Head,
        Lora,
        Norm,
        Prefix,
        Prompt,
        Pruned,
        PTuning,
        RsLora,
        Shared,
        Sift,
        Vera,
    )
    from edgepeft.preparation.memory_budget import MemoryBudget
    from edgepeft.preparation.picking import pick
    from edgepeft.preparation.prepare import Diagnosis, Prepared, doctor, prepare
    from edgepeft.sources.load import Source, load_source
    from edgepeft.sync import pull
    from edgepeft_export.forward.torch_source.recurrent import over_lengths
    from edgepeft_export.ort_training import OrtTraining, export_ort_training
    from edgepeft_export.quantize import Quantization

__version__ = VERSION

# A device installs this package without torch: each name is imported when it is first asked for.
_METHODS = (
    "Adapter BitFit Dora Freeze FrozenA Full Head IA3 Lora Norm PTuning Prefix Prompt Pruned RsLora Shared Sift Vera"
)
_HOMES = {
    "edgepeft.aggregation": "Aggregate aggregate",
    "edgepeft.compress": "Pruning",
    "edgepeft.preparation.memory_budget": "MemoryBudget",
    "edgepeft.merging": "merge",
    "edgepeft.methods": _METHODS,
    "edgepeft.preparation.picking": "pick",
    "edgepeft.preparation.prepare": "Diagnosis Prepared doctor prepare",
    "edgepeft.sources.load": "Source load_source",
    "edgepeft.sync": "pull",
    "edgepeft_export.forward.torch_source.recurrent": "over_lengths",
    "edgepeft_export.ort_training": "OrtTraining export_ort_training",
    "edgepeft_export.quantize": "Quantization",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "IA3",
    "Adapter",
    "Aggregate",
    "BitFit",
    "Diagnosis",
    "Dora",
    "Freeze",
    "FrozenA",
    "Full",
    "Head",
    "Lora",
    "MemoryBudget",
    "Norm",
    "OrtTraining",
    "PTuning",
    "Prefix",
    "Prepared",
    "Prompt",
    "Pruned",
    "Pruning",
    "Quantization",
    "RsLora",
    "Shared",
    "Sift",
    "Source",
    "Vera",
    "aggregate",
    "doctor",
    "export_ort_training",
    "load_source",
    "merge",
    "over_lengths",
    "pick",
    "prepare",
    "pull",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'edgepeft' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)
