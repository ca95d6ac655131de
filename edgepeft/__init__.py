"""edgepeft: fine-tune a model on any device that runs stock ONNX Runtime, and bring back only the adapter.

A device installs this package without torch: each name is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from edgepeft_runtime.version import VERSION

if TYPE_CHECKING:  # what editors and type checkers see
    from edgepeft.aggregation import Aggregate as Aggregate
    from edgepeft.aggregation import aggregate as aggregate
    from edgepeft.compress import Pruning as Pruning
    from edgepeft.merging import merge as merge
    from edgepeft.methods.bottleneck import Adapter as Adapter
    from edgepeft.methods.freeze import Freeze as Freeze
    from edgepeft.methods.frozen_a import FrozenA as FrozenA
    from edgepeft.methods.lora import Dora as Dora
    from edgepeft.methods.lora import Lora as Lora
    from edgepeft.methods.lora import RsLora as RsLora
    from edgepeft.methods.prompts import Prefix as Prefix
    from edgepeft.methods.prompts import Prompt as Prompt
    from edgepeft.methods.prompts import PTuning as PTuning
    from edgepeft.methods.pruned import Pruned as Pruned
    from edgepeft.methods.scaling import IA3 as IA3
    from edgepeft.methods.scaling import Norm as Norm
    from edgepeft.methods.scaling import Vera as Vera
    from edgepeft.methods.select import BitFit as BitFit
    from edgepeft.methods.select import Full as Full
    from edgepeft.methods.select import Head as Head
    from edgepeft.methods.shared import Shared as Shared
    from edgepeft.methods.sift import Sift as Sift
    from edgepeft.preparation.memory_budget import MemoryBudget as MemoryBudget
    from edgepeft.preparation.options import Compression as Compression
    from edgepeft.preparation.options import Interface as Interface
    from edgepeft.preparation.options import Preprocessing as Preprocessing
    from edgepeft.preparation.picking import pick as pick
    from edgepeft.preparation.prepare import Diagnosis as Diagnosis
    from edgepeft.preparation.prepare import Prepared as Prepared
    from edgepeft.preparation.prepare import doctor as doctor
    from edgepeft.preparation.prepare import prepare as prepare
    from edgepeft.sources.load import Source as Source
    from edgepeft.sources.load import load_source as load_source
    from edgepeft.sync import pull as pull
    from edgepeft_export.forward.torch_source.recurrent import over_lengths as over_lengths
    from edgepeft_export.ort_training import OrtTraining as OrtTraining
    from edgepeft_export.ort_training import export_ort_training as export_ort_training
    from edgepeft_export.quantize import Quantization as Quantization

__version__ = VERSION

_HOMES = {
    "edgepeft.aggregation": "Aggregate aggregate",
    "edgepeft.compress": "Pruning",
    "edgepeft.preparation.memory_budget": "MemoryBudget",
    "edgepeft.merging": "merge",
    "edgepeft.preparation.options": "Compression Interface Preprocessing",
    "edgepeft.preparation.picking": "pick",
    "edgepeft.preparation.prepare": "Diagnosis Prepared doctor prepare",
    "edgepeft.sources.load": "Source load_source",
    "edgepeft.sync": "pull",
    "edgepeft_export.forward.torch_source.recurrent": "over_lengths",
    "edgepeft_export.ort_training": "OrtTraining export_ort_training",
    "edgepeft_export.quantize": "Quantization",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    """A public name. Classes of methods need no entry above: the methods are found by their files."""
    home = _HOME_OF.get(name, "edgepeft.methods" if name[:1].isupper() else None)
    if home is None or not hasattr(import_module(home), name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(home), name)
    return found
