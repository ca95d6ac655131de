"""Definitions of operators by others, a file per family. Importing this package registers them all."""

from edgepeft_export.graph.definitions import (
    arithmetic,
    classical,
    deformed,
    fused,
    indexing,
    pooling,
    recurrent,
    regions,
    sampling,
    signal,
)
from edgepeft_export.graph.definitions.registry import DEFINITIONS, NotDefined, expand_definition

__all__ = [
    "DEFINITIONS",
    "NotDefined",
    "arithmetic",
    "classical",
    "deformed",
    "expand_definition",
    "fused",
    "indexing",
    "pooling",
    "recurrent",
    "regions",
    "sampling",
    "signal",
]
