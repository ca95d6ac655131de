"""Definitions of operators by others, a file per family. Importing this package registers them all."""

from edgepeft_export.graph.definitions import arithmetic, fused, indexing, pooling, recurrent, regions, sampling, signal
from edgepeft_export.graph.definitions.registry import DEFINITIONS, NotDefined, expand_definition

__all__ = [
    "DEFINITIONS",
    "NotDefined",
    "arithmetic",
    "expand_definition",
    "fused",
    "indexing",
    "pooling",
    "recurrent",
    "regions",
    "sampling",
    "signal",
]
